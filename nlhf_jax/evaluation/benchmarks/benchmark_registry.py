"""The benchmarks that an evaluation can run, by the names of their sections in the config."""

from collections.abc import Mapping
from typing import Any

from nlhf_jax.evaluation.benchmarks import (
  agreement,
  alpaca_eval,
  arena_hard,
  harness,
  mt_bench,
)
from nlhf_jax.evaluation.benchmarks.benchmark import Benchmark

# `make(section)` returns the benchmark, or None if the section requests nothing.
BENCHMARKS = {
  'alpaca_eval': alpaca_eval.make,
  'mt_bench': mt_bench.make,
  'arena_hard': arena_hard.make,
  'harness': harness.make,
  'agreement': agreement.make,
}


def make_benchmarks(sections: Mapping[str, Mapping[str, Any]]) -> list[Benchmark]:
  """The benchmarks that the sections of a config request.

  Raises:
    UserError: if a setting or a file cannot be used.
  """
  made = [make(sections[name]) for name, make in BENCHMARKS.items()]
  return [benchmark for benchmark in made if benchmark is not None]
