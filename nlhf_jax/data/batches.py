"""Batches as a function of the step: deterministic shuffles, few lengths, random access.

A run that resumes computes the batch of its next step; no iterator state is saved. Batches group
examples of similar length, because padding costs as much as text, and pad them to few different
lengths, because each length is compiled on its own.
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

SHORTEST = 32  # tokens; no batch is padded to fewer
WINDOW = 32  # batches whose examples are grouped by length
CHUNK_ROWS, CHUNK_NUMBERS = 256, 2**15  # default limits of a chunk of `map_chunks`


class Examples(NamedTuple):
  """Tokenised examples that are read when they are needed.

  Attributes:
    lengths: tokens of each example's prompt and of its longest response, [n, 2].
    max_lengths: the maximum of both.
    read: (rows, two widths) -> those examples, padded to the widths; row -1 is only padding.
  """

  lengths: np.ndarray
  max_lengths: tuple[int, int]
  read: Callable[[np.ndarray, tuple[int, int]], Comparison | Prompts]

  def all(self) -> Comparison | Prompts:
    """All of them at once."""
    return self.read(np.arange(len(self.lengths)), self.max_lengths)


def take(examples: Tree, rows) -> Tree:
  """The given rows of every array in a tree."""
  return jax.tree.map(lambda leaf: leaf[rows], examples)


def batches(
  examples: Examples, size: int, seed: int, here: np.ndarray | None = None
) -> grain.MapDataset:
  """Batches of `size` rows, indexed by step; each epoch is a new permutation of the examples.

  The examples of each window of consecutive batches are grouped by length. A window is an epoch, or
  `WINDOW` batches if that is shorter. If all examples are padded alike, nothing is grouped.

  Args:
    examples: what to batch.
    size: rows of a batch.
    seed: seed of the permutations.
    here: which rows of a batch this process needs, [size]; the others are padding. None means all.
  """
  count = len(examples.lengths)
  widths = np.stack(
    [_widths(*column) for column in zip(examples.lengths.T, examples.max_lengths, strict=True)],
    axis=1,
  )
  shuffled = grain.MapDataset.range(count).seed(seed).shuffle().repeat().batch(size)
  window = max(min(WINDOW, count // size), 1)

  @functools.lru_cache(maxsize=2)
  def window_rows(number):
    rows = np.concatenate([shuffled[number * window + i] for i in range(window)])
    # By the length of responses, then of prompts, then in the shuffled order.
    order = np.lexsort((widths[rows, 0], widths[rows, 1])).reshape(window, size)
    # Batches are ordered by the last of their examples in the shuffled order, not by length.
    return rows[order[np.argsort(order.max(axis=1))]]

  alike = (widths == widths[:1]).all()

  def read(step, rows):
    rows = rows if alike else window_rows(step // window)[step % window]
    batch_widths = tuple(widths[rows].max(axis=0).tolist())
    return examples.read(rows if here is None else np.where(here, rows, -1), batch_widths)

  return shuffled.map_with_index(read)


def _widths(lengths: np.ndarray, most: int) -> np.ndarray:
  """The padded width of each length: `most`, halved for as long as the length fits."""
  widths, width = np.full(lengths.shape, most), most
  while width % 4 == 0 and width // 2 >= SHORTEST:  # kernels like even lengths
    width //= 2
    widths[lengths <= width] = width
  return widths


def swap_sides(comparisons: grain.MapDataset) -> grain.MapDataset:
  """Swaps the sides of about half the comparisons of each batch, and negates their payoffs.

  Data list the preferred response first. Unless sides are swapped, a network that always prefers
  the first response has no loss (K = J = 1).
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


def chunk_size(examples: Tree) -> int:
  """`CHUNK_ROWS`, or fewer rows that hold at most `CHUNK_NUMBERS` numbers; at least 1."""
  leaves = jax.tree.leaves(examples)
  numbers = sum(leaf.size for leaf in leaves)
  return max(min(CHUNK_ROWS, CHUNK_NUMBERS * len(leaves[0]) // numbers), 1)


def map_chunks(
  function: Callable,
  examples: Tree,
  size: int | None = None,
  *,
  update: Callable[[int], None] = lambda count: None,
) -> Any:
  """Applies `function(rows of examples, number of the chunk)` to `size` rows at a time.

  The default size is `chunk_size`. The last chunk is filled up with the first rows, so that all
  calls have the same shapes, and their results are dropped. `update(count)` is called when so many
  more rows are done. Returns the results, concatenated as NumPy arrays.
  """
  count = len(jax.tree.leaves(examples)[0])
  size = min(size or chunk_size(examples), count)
  results = []
  for number, start in enumerate(range(0, count, size)):
    rows = take(examples, np.arange(start, start + size) % count)
    results.append(distributed.fetch(function(rows, number)))
    update(min(size, count - start))
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)
