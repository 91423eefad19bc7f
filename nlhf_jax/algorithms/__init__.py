"""Algorithms as records: who plays whom, what loss is minimised, how the references move.

Every algorithm of the catalogue is exported here, as `algorithms.nash_md_pg(beta=0.125, tau=0.06)`;
`python -m nlhf_jax.algorithms` prints them all.
"""

from collections.abc import Callable

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import Algorithm

__all__ = [
  'Algorithm',
  *(
    name
    for name, make in vars(catalogue).items()
    if getattr(make, '__annotations__', {}).get('return') is Algorithm
  ),
]


def __getattr__(name: str) -> Callable[..., Algorithm]:
  if name in __all__:
    return getattr(catalogue, name)
  raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
