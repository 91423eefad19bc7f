"""Batches as a function of the step: deterministic shuffles, few lengths, any position at once.

A run that resumes asks for the batch of its next step; there is nothing to save. Examples of like
length come together, for padding is computed like anything else, and lengths are few, for each has
a program of its own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import grain
import jax
import numpy as np

from nlhf_jax import distributed
from nlhf_jax.structs import Comparison, Prompts

Tree = TypeVar('Tree')

SHORTEST = 32  # tokens that no batch is cut below
WINDOW = 32  # batches whose examples are put together by length
ROWS, NUMBERS = 256, 2**18  # of a chunk of examples, unless something else is asked for, at most


class Examples(NamedTuple):
  """Examples that are read as they are needed.

  `lengths` are the tokens of each one's prompt and of its longest response, [n, 2], and `longest`
  what they may be. `read(rows, widths)` gives rows, padded to such a pair of lengths; row -1 is
  nothing but padding.
  """

  lengths: np.ndarray
  longest: tuple[int, int]
  read: Callable[[np.ndarray, tuple[int, int]], Comparison | Prompts]

  def all(self) -> Comparison | Prompts:
    """All of them at once."""
    return self.read(np.arange(len(self.lengths)), self.longest)


def take(examples: Tree, rows) -> Tree:
  """The given rows of every array in a tree."""
  return jax.tree.map(lambda leaf: leaf[rows], examples)


def batches(
  examples: Examples, size: int, seed: int, here: np.ndarray | None = None
) -> grain.MapDataset:
  """Batches of `size` rows, indexed by step; each epoch is another permutation of the examples.

  Of so many batches in a row as an epoch has, at most `WINDOW`, the examples are put together by
  length; where all have one length nothing moves.

  Args:
    examples: to draw from.
    size: rows of a batch.
    seed: of the permutations.
    here: which rows of a batch this process needs, [size]; it leaves the others empty. All, if none
      are given.
  """
  count = len(examples.lengths)
  widths = np.stack(
    [_widths(*column) for column in zip(examples.lengths.T, examples.longest, strict=True)], axis=1
  )
  drawn = grain.MapDataset.range(count).seed(seed).shuffle().repeat().batch(size)
  window = max(min(WINDOW, count // size), 1)

  @functools.lru_cache(maxsize=2)
  def together(number):
    rows = np.concatenate([drawn[number * window + i] for i in range(window)])
    # The shorter responses and then the shorter prompts first, else in the order they were drawn.
    order = np.lexsort((widths[rows, 0], widths[rows, 1])).reshape(window, size)
    # A batch comes when the last of its examples is drawn: short and long ones in turn.
    return rows[order[np.argsort(order.max(axis=1))]]

  alike = (widths == widths[:1]).all()

  def read(step, rows):
    rows = rows if alike else together(step // window)[step % window]
    longest = tuple(widths[rows].max(axis=0).tolist())
    return examples.read(rows if here is None else np.where(here, rows, -1), longest)

  return drawn.map_with_index(read)


def _widths(lengths: np.ndarray, longest: int) -> np.ndarray:
  """What to pad each length to: the longest, halved as often as there is room."""
  widths, width = np.full(lengths.shape, longest), longest
  while width % 4 == 0 and width // 2 >= SHORTEST:  # kernels like even lengths
    width //= 2
    widths[lengths <= width] = width
  return widths


def swap_sides(comparisons: grain.MapDataset) -> grain.MapDataset:
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


def map_chunks(function: Callable, examples: Tree, size: int | None = None) -> Any:
  """Applies `function(rows of examples, number of the chunk)` to `size` rows at a time.

  Where no size is given those are `ROWS`, or fewer long ones that have `NUMBERS` numbers together.
  The last chunk is filled up with rows from the start, so that every call has the same shapes; what
  they give is dropped. Returns the results, concatenated as NumPy arrays.
  """
  leaves = jax.tree.leaves(examples)
  count = len(leaves[0])
  if size is None:
    size = max(min(ROWS, NUMBERS * count // sum(leaf.size for leaf in leaves)), 1)
  size = min(size, count)
  results = [
    distributed.fetch(function(take(examples, np.arange(start, start + size) % count), number))
    for number, start in enumerate(range(0, count, size))
  ]
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)
