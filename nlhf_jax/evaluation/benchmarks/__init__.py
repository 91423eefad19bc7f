"""Published benchmarks; `benchmark` defines what one is, and `benchmark_registry` lists them."""
