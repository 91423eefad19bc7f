"""Published benchmarks; `benchmark` defines what one is, and `registry` lists them."""
