"""A batch is a function of the step, and computing in chunks equals computing at once."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest

from nlhf_jax.data.batches import Examples, batches, map_chunks, swap_sides, take
from nlhf_jax.structs import Comparison, Prompts, Responses

COUNT, SIZE = 12, 4


@pytest.fixture
def comparisons():
  """Number i has i in its prompt, 100 + i on the left, 200 + i on the right, a payoff above 0."""
  numbers = np.arange(COUNT)

  def side(start):
    tokens = np.repeat(start + numbers[:, None, None], 3, axis=2)
    return Responses(tokens, tokens % 2 == 0)

  return Comparison(
    Prompts(numbers[:, None].repeat(2, axis=1), np.ones((COUNT, 2), bool)),
    side(100),
    side(200),
    np.float32(1 + numbers)[:, None, None] / 100,
  )


@pytest.fixture
def examples(comparisons):
  """The same as examples, all of the longest lengths."""

  def read(rows, widths):
    assert widths == (2, 3)
    return take(comparisons, rows)

  return Examples(np.tile([2, 3], (COUNT, 1)), (2, 3), read)


def rows(batch):
  return batch.prompts.tokens[:, 0].tolist()


def test_a_batch_does_not_depend_on_earlier_reads(examples):
  one, other = (batches(examples, SIZE, seed=3) for _ in range(2))
  forwards = [rows(one[step]) for step in range(10)]
  backwards = [rows(other[step]) for step in reversed(range(10))]
  assert forwards == backwards[::-1]
  assert rows(one[10**6]) == rows(other[10**6])


def test_another_seed_gives_another_order(examples):
  assert rows(batches(examples, COUNT, seed=0)[0]) != rows(batches(examples, COUNT, seed=1)[0])


@pytest.mark.parametrize('size', [1, SIZE, 5, 2 * COUNT])
def test_an_epoch_has_every_example_once(examples, size):
  source = batches(examples, size, seed=0)
  steps = range(-(-3 * COUNT // size))
  shuffled = [row for step in steps for row in rows(source[step])][: 3 * COUNT]
  epochs = [shuffled[start : start + COUNT] for start in range(0, 3 * COUNT, COUNT)]
  assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3, 'an epoch repeats the order of another'


def test_batches_keep_comparisons_together(examples, comparisons):
  batch = batches(examples, SIZE, seed=0)[7]
  expected = take(comparisons, np.array(rows(batch)))
  jax.tree.map(np.testing.assert_array_equal, batch, expected)


def test_swapped_sides_negate_the_payoff(examples, comparisons):
  for step in range(5):
    batch = swap_sides(batches(examples, SIZE, seed=0))[step]
    swapped = batch.payoff[:, 0, 0] < 0
    kept = take(comparisons, np.array(rows(batch)))
    for side, straight, crossed in (
      (batch.left, kept.left, kept.right),
      (batch.right, kept.right, kept.left),
    ):
      jax.tree.map(
        np.testing.assert_array_equal,
        side,
        jax.tree.map(
          lambda one, other, swapped=swapped: np.where(swapped[:, None, None], other, one),
          straight,
          crossed,
        ),
      )
    np.testing.assert_array_equal(abs(batch.payoff), kept.payoff)


def test_about_half_the_sides_are_swapped(examples):
  source = swap_sides(batches(examples, COUNT, seed=0))
  times = Counter()
  for step in range(40):
    batch = source[step]
    times.update(np.array(rows(batch))[batch.payoff[:, 0, 0] < 0].tolist())
  assert all(8 < times[row] < 32 for row in range(COUNT))
  assert sum(times.values()) / (40 * COUNT) == pytest.approx(0.5, abs=0.08)


def test_swaps_depend_only_on_the_step(examples):
  one, other = (swap_sides(batches(examples, SIZE, seed=0)) for _ in range(2))
  forwards = [one[step].payoff for step in range(8)]
  backwards = [other[step].payoff for step in reversed(range(8))]
  np.testing.assert_array_equal(forwards, backwards[::-1])


@pytest.mark.parametrize('size', [1, 4, 5, COUNT, 100])
def test_chunks_equal_the_whole_and_share_one_shape(comparisons, size):
  calls = []

  def function(chunk, number):
    calls.append((number, jax.tree.map(np.shape, chunk)))
    return {'sum': chunk.left.tokens.sum(axis=(1, 2)), 'row': chunk.prompts.tokens}

  chunked = map_chunks(function, comparisons, size)
  whole = function(comparisons, 0)
  jax.tree.map(np.testing.assert_array_equal, chunked, whole)
  numbers, shapes = zip(*calls[:-1], strict=True)
  assert numbers == tuple(range(-(-COUNT // min(size, COUNT))))
  assert all(shape == shapes[0] for shape in shapes)
  assert shapes[0].payoff[0] == min(size, COUNT)


@pytest.mark.parametrize(('width', 'rows'), [(1, 256), (128, 256), (4096, 8), (2**19, 1)])
def test_chunks_of_long_examples_have_fewer_rows(width, rows):
  examples = np.broadcast_to(np.arange(300)[:, None], (300, width))
  shapes = []

  def function(chunk, _):
    shapes.append(chunk.shape)
    return chunk[:, 0]

  np.testing.assert_array_equal(map_chunks(function, examples), np.arange(300))
  assert set(shapes) == {(rows, width)}


def lengths_only(lengths, longest, seen=None):
  """Examples that only have lengths; the widths of each batch are recorded."""

  def read(rows, widths):
    if seen is not None:
      seen.append((rows, widths))
    return Prompts(rows[:, None], np.ones((len(rows), 1), bool))

  return Examples(np.array(lengths), longest, read)


@pytest.mark.parametrize(
  ('length', 'width'), [(0, 32), (1, 32), (32, 32), (33, 64), (64, 64), (65, 128), (128, 128)]
)
def test_widths_halve_while_the_longest_example_fits(length, width):
  seen = []
  batches(lengths_only([[1, 1], [length, 1], [1, length]], (128, 128), seen), 3, seed=0)[0]
  assert seen[0][1] == (width, width)


def test_short_and_odd_widths_are_not_halved():
  seen = []
  batches(lengths_only([[1, 2], [2, 1]], (25, 75), seen), 2, seed=0)[0]
  assert seen[0][1] == (25, 75)


@pytest.mark.parametrize('seed', [0, 1])
def test_batches_group_similar_lengths_in_few_shapes(seed):
  random = np.random.default_rng(seed)
  lengths = random.choice([20, 100, 400], (1200, 2), p=[0.6, 0.3, 0.1])
  seen = []
  source = batches(lengths_only(lengths, (512, 512), seen), 8, seed=seed)
  for step in range(128):  # four windows of 32 batches
    source[step]
  for start in range(0, 128, 32):
    shuffled = np.concatenate([rows for rows, _ in seen[start : start + 32]])
    assert len(set(shuffled.tolist())) == 256  # each once in less than an epoch
  widths = [widths for _, widths in seen]
  assert set(widths) <= set(itertools.product([32, 128, 512], repeat=2))
  tokens = sum(8 * sum(pair) for pair in widths)
  needed = sum(lengths[rows].sum() for rows, _ in seen)
  assert tokens < 1.6 * needed
  # In the shuffled order, few batches have no long example.
  plain = [lengths[rows].max() for rows in np.arange(1200).reshape(-1, 8)]
  assert np.mean(np.array(plain) == 400) > 0.7
  # Short and long batches alternate.
  long = np.array([max(pair) == 512 for pair in widths])
  assert 8 < long.sum() < 64
  assert all(long[start : start + 32].any() for start in range(0, 128, 32))
  assert (np.diff(long.astype(int)) != 0).sum() > 8


def test_grouped_batches_depend_only_on_the_step():
  lengths = np.random.default_rng(0).choice([20, 100, 400], (300, 2))
  one, other = (batches(lengths_only(lengths, (512, 512)), 8, seed=3) for _ in range(2))
  forwards = [one[step].tokens for step in range(90)]
  backwards = [other[step].tokens for step in reversed(range(90))]
  np.testing.assert_array_equal(forwards, backwards[::-1])


def test_processes_read_their_rows_with_equal_widths():
  lengths = np.random.default_rng(0).choice([20, 100], (64, 2))
  first = np.arange(8) < 4
  seen = {}
  for name, here in (('all', None), ('first', first), ('second', ~first)):
    seen[name] = []
    source = batches(lengths_only(lengths, (128, 128), seen[name]), 8, 0, here)
    for step in range(8):
      source[step]
  for whole, one, other in zip(*seen.values(), strict=True):
    assert whole[1] == one[1] == other[1]
    np.testing.assert_array_equal(np.where(first, whole[0], -1), one[0])
    np.testing.assert_array_equal(np.where(first, -1, whole[0]), other[0])
