"""How policies and judges are evaluated: tournaments, rankings, benchmarks."""
