"""A batch is a function of the step, and whatever is done in chunks is as if done at once."""

from collections import Counter

import jax
import numpy as np
import pytest

from nlhf_jax.data.batches import batches, in_random_order, map_chunks, take, trimmed
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


def rows(batch):
  return batch.prompts.tokens[:, 0].tolist()


def test_a_step_has_the_same_batch_whatever_was_asked_before(comparisons):
  one, other = (batches(comparisons, SIZE, seed=3) for _ in range(2))
  forwards = [rows(one[step]) for step in range(10)]
  backwards = [rows(other[step]) for step in reversed(range(10))]
  assert forwards == backwards[::-1]
  assert rows(one[10**6]) == rows(other[10**6])


def test_another_seed_gives_another_order(comparisons):
  assert rows(batches(comparisons, COUNT, seed=0)[0]) != rows(
    batches(comparisons, COUNT, seed=1)[0]
  )


@pytest.mark.parametrize('size', [1, SIZE, 5, 2 * COUNT])
def test_an_epoch_has_every_example_once(comparisons, size):
  source = batches(comparisons, size, seed=0)
  steps = range(-(-3 * COUNT // size))
  drawn = [row for step in steps for row in rows(source[step])][: 3 * COUNT]
  epochs = [drawn[start : start + COUNT] for start in range(0, 3 * COUNT, COUNT)]
  assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3, 'an epoch repeats the order of another'


def test_a_batch_holds_whole_comparisons(comparisons):
  batch = batches(comparisons, SIZE, seed=0)[7]
  expected = take(comparisons, np.array(rows(batch)))
  jax.tree.map(np.testing.assert_array_equal, batch, expected)


def test_sides_swap_together_with_the_sign_of_the_payoff(comparisons):
  for step in range(5):
    batch = in_random_order(batches(comparisons, SIZE, seed=0))[step]
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


def test_about_half_the_sides_swap_and_an_example_is_seen_both_ways(comparisons):
  source = in_random_order(batches(comparisons, COUNT, seed=0))
  times = Counter()
  for step in range(40):
    batch = source[step]
    times.update(np.array(rows(batch))[batch.payoff[:, 0, 0] < 0].tolist())
  assert all(8 < times[row] < 32 for row in range(COUNT))
  assert sum(times.values()) / (40 * COUNT) == pytest.approx(0.5, abs=0.08)


def test_which_sides_swap_depends_on_the_step_alone(comparisons):
  one, other = (in_random_order(batches(comparisons, SIZE, seed=0)) for _ in range(2))
  forwards = [one[step].payoff for step in range(8)]
  backwards = [other[step].payoff for step in reversed(range(8))]
  np.testing.assert_array_equal(forwards, backwards[::-1])


@pytest.mark.parametrize('size', [1, 4, 5, COUNT, 100])
def test_chunks_give_the_result_of_the_whole_with_calls_of_one_shape(comparisons, size):
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


def padded(lengths, width, left):
  mask = np.arange(width) < np.array(lengths)[..., None]
  mask = mask[..., ::-1] if left else mask
  return np.where(mask, 7, 0), mask


@pytest.mark.parametrize(
  ('longest', 'width'), [(1, 32), (32, 32), (33, 64), (64, 64), (65, 128), (128, 128)]
)
def test_padding_that_all_rows_have_is_cut_to_a_half_or_a_quarter(longest, width):
  prompts = Prompts(*padded([longest, 1], 128, left=True))
  cut = trimmed(prompts)
  assert cut.tokens.shape == (2, width)
  assert cut.mask.sum() == longest + 1
  np.testing.assert_array_equal(cut.tokens, prompts.tokens[:, -width:])
  sides = [Responses(*padded([[5], [n]], 128, left=False)) for n in (3, longest)]
  batch = trimmed(Comparison(prompts, *sides, np.zeros((2, 1, 1))))
  for whole, side in zip(sides, (batch.left, batch.right), strict=True):
    assert side.tokens.shape == (2, 1, width)
    assert side.mask.sum() == whole.mask.sum()
    assert side.log_probs is None
  assert trimmed(Comparison(prompts, sides[1])).left.tokens.shape == (2, 1, width)


def test_short_and_odd_lengths_stay_as_they_are():
  for width in (25, 75):
    assert trimmed(Prompts(*padded([1, 2], width, left=True))).tokens.shape == (2, width)
