"""Evaluation of policies and judges: tournaments, rankings, benchmarks."""
