"""Batches as a function of the step: deterministic shuffles, and any position at once."""

from collections.abc import Callable
from typing import Any, TypeVar

import grain
import jax
import numpy as np

from nlhf_jax import processes
from nlhf_jax.structs import Comparison, Prompts, Responses

Examples = TypeVar('Examples')

SHORTEST = 32  # tokens that no batch is cut below


def take(examples: Examples, rows) -> Examples:
  """The given rows of every array in a tree."""
  return jax.tree.map(lambda leaf: leaf[rows], examples)


def batches(examples: Examples, size: int, seed: int) -> grain.MapDataset:
  """Batches of `size` rows, indexed by step; each epoch is another permutation of the examples."""
  count = len(jax.tree.leaves(examples)[0])
  rows = grain.MapDataset.range(count).seed(seed).shuffle().repeat().batch(size)
  return rows.map(lambda chosen: take(examples, chosen))


def trimmed(batch: Comparison | Prompts) -> Comparison | Prompts:
  """The batch without padding that all of its rows have, as far as lengths can be halved.

  Few lengths are left then, and a program for each. Both sides keep one length.
  """
  if isinstance(batch, Prompts):
    start = -_halved(batch.mask[:, ::-1])
    return jax.tree.map(lambda leaf: leaf[:, start:], batch)
  sides = [side for side in (batch.left, batch.right) if side is not None]
  masks = [side.mask.reshape(-1, side.mask.shape[-1]) for side in sides]
  end = _halved(np.concatenate(masks))

  def shorter(side):
    return side and Responses(*(leaf if leaf is None else leaf[..., :end] for leaf in side))

  return batch._replace(
    prompts=trimmed(batch.prompts), left=shorter(batch.left), right=shorter(batch.right)
  )


def _halved(mask: np.ndarray) -> int:
  """The length [N, L] halved as often as the tokens of every row, from the first, leave room."""
  length = mask.shape[1]
  needed = max(np.flatnonzero(mask.any(axis=0))[-1:] + 1, default=0)
  while length % 4 == 0 and length // 2 >= max(needed, SHORTEST):  # kernels like even lengths
    length //= 2
  return int(length)


def in_random_order(comparisons: grain.MapDataset) -> grain.MapDataset:
  """Swaps the sides of about half the comparisons of each batch, and the sign of their payoffs.

  Without it a preference network that always answers "the first" would be right wherever the
  preferred response is written first (K = J = 1).
  """

  def swap(comparison: Comparison, random: np.random.Generator) -> Comparison:
    swapped = random.random(len(comparison.payoff)) < 0.5

    def choose(one, other):
      return np.where(swapped.reshape(-1, *(1,) * (one.ndim - 1)), other, one)

    left, right = comparison.left, comparison.right
    return Comparison(
      comparison.prompts,
      jax.tree.map(choose, left, right),
      jax.tree.map(choose, right, left),
      choose(comparison.payoff, -comparison.payoff),
    )

  return comparisons.random_map(swap)


def map_chunks(function: Callable, examples: Examples, size: int = 256) -> Any:
  """Applies `function(rows of examples, number of the chunk)` to `size` rows at a time.

  The last chunk is filled up with rows from the start, so that every call has the same shapes; what
  they give is dropped. Returns the results, concatenated as NumPy arrays.
  """
  count = len(jax.tree.leaves(examples)[0])
  size = min(size, count)
  results = [
    processes.fetch(function(take(examples, np.arange(start, start + size) % count), number))
    for number, start in enumerate(range(0, count, size))
  ]
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)
