"""What selections keep of a comparison, on responses that are known by their tokens."""

import itertools
from functools import partial
from math import exp, log

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.algorithms.selection import (
  add_mismatches,
  best_against_worst,
  best_and_worst,
  chain,
  mean_payoff,
  pair_by_mean_payoff,
  pair_with_best,
  payoff_to_log_odds,
  rejection_sample,
  rejection_sampling,
  split_pairs,
  subtract_constant,
  subtract_log_partition,
  token_overlap,
  unchanged,
)
from nlhf_jax.errors import UserError
from nlhf_jax.structs import Comparison, Prompts, Responses

KEY = jax.random.key(0)


def responses(names):
  """Responses [B, K, 2]: of two tokens, the first of which is the name, but one if it is odd."""
  names = jnp.array(names)
  tokens = jnp.stack([names, jnp.zeros_like(names)], axis=-1)
  mask = jnp.stack([names >= 0, names % 2 == 0], axis=-1)
  spent = jnp.where(mask, -names[..., None] / 8, 0)
  return Responses(tokens, mask, spent, 2 * spent)


def comparison(payoff, left, right=None):
  prompts = Prompts(jnp.zeros((len(left), 1), jnp.int32), jnp.ones((len(left), 1), bool))
  left = responses(left)
  return Comparison(
    prompts, left, left if right is None else responses(right), jnp.array(payoff, jnp.float32)
  )


def assert_are(found, names):
  """Every leaf of the responses belongs to the names."""
  jax.tree.map(np.testing.assert_array_equal, found, responses(names))


# Worth (of 1, 2, 3; 4, 5, 6): 0, .15, -.15; .1, -.2, .1.
SELF = comparison(
  [
    [[0, -0.3, 0.3], [0.3, 0, 0.15], [-0.3, -0.15, 0]],
    [[0, 0.3, 0], [-0.3, 0, -0.3], [0, 0.3, 0]],
  ],
  [[1, 2, 3], [4, 5, 6]],
)
TIED = comparison(np.zeros((1, 3, 3)), [[7, 8, 9]])


def test_mean_payoff_averages_the_right_side():
  np.testing.assert_allclose(mean_payoff(SELF), [[0, 0.15, -0.15], [0.1, -0.2, 0.1]], atol=1e-7)


def test_unchanged_keeps_the_comparison():
  assert unchanged(SELF, KEY) is SELF


def test_best_and_worst_keep_their_payoffs_against_all():
  chosen = best_and_worst(SELF, KEY)
  assert_are(chosen.left, [[2, 3], [4, 5]])
  assert_are(chosen.right, [[1, 2, 3], [4, 5, 6]])
  np.testing.assert_array_equal(chosen.payoff[0], SELF.payoff[0][jnp.array([1, 2])])
  np.testing.assert_array_equal(chosen.payoff[1], SELF.payoff[1][jnp.array([0, 1])])
  np.testing.assert_allclose(mean_payoff(chosen), [[0.15, -0.15], [0.1, -0.2]], atol=1e-7)


def test_best_is_compared_with_worst():
  chosen = best_against_worst(SELF, KEY)
  assert_are(chosen.left, [[2], [4]])
  assert_are(chosen.right, [[3], [5]])
  np.testing.assert_allclose(chosen.payoff, [[[0.15]], [[0.3]]])


def test_ties_give_two_different_responses():
  assert_are(best_and_worst(TIED, KEY).left, [[7, 9]])
  chosen = best_against_worst(TIED, KEY)
  assert_are(chosen.left, [[7]])
  assert_are(chosen.right, [[9]])


def test_pair_by_mean_payoff_pairs_two_left_responses():
  three = comparison([[[0.3, -0.1, 0.1], [0.2, 0.4, -0.3]]], [[1, 2]], [[3, 4, 5]])
  pair = pair_by_mean_payoff(three, KEY)
  assert_are(pair.left, [[1]])
  assert_are(pair.right, [[2]])
  np.testing.assert_allclose(pair.payoff, [[[0.1 - 0.1]]], atol=1e-7)
  one = pair_by_mean_payoff(
    three._replace(right=responses([[4]]), payoff=three.payoff[:, :, 1:2]), KEY
  )
  np.testing.assert_allclose(one.payoff, [[[-0.5]]], atol=1e-7)


def test_pair_with_best_ranks_candidates_among_themselves():
  """Of 5 and 6, 6 wins; wins of 5 over the others do not count. Payoffs are against 4."""
  beats = np.zeros((4, 4))
  beats[0, 1], beats[3, 1], beats[3, 2], beats[2, 0], beats[2, 1] = 0.2, 0.3, 0.1, 0.5, 0.4
  pair = pair_with_best(comparison([beats - beats.T], [[3, 4, 5, 6]]), KEY)
  assert_are(pair.left, [[3]])
  assert_are(pair.right, [[6]])
  np.testing.assert_allclose(pair.payoff, [[[0.2 - 0.3]]], rtol=1e-6)


def test_token_overlap_is_the_cosine_of_counts():
  tokens = np.array([[[1, 2, 2], [2, 2, 1], [3, 4, 9], [1, 3, 9], [9, 9, 9]]])
  mask = np.array([[[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0], [0, 0, 0]]], bool)
  side = Responses(jnp.asarray(tokens), jnp.asarray(mask))
  found = token_overlap(Comparison(None, side, side, None))[0]
  part = 1 / 10**0.5
  rows = [[1, 1, 0, part, 0], [1, 1, 0, part, 0], [0, 0, 1, 0.5, 0], [part, part, 0.5, 1, 0]]
  np.testing.assert_allclose(found, [*rows, [0] * 5], rtol=0, atol=1e-6)
  one = jax.tree.map(lambda leaf: leaf[:, :2], side)
  np.testing.assert_array_equal(token_overlap(Comparison(None, one, side, None))[0], found[:2])


def test_split_pairs_gives_a_winner_and_loser():
  points = split_pairs(comparison([[[0.5]], [[-0.2]]], [[1], [2]], [[3], [4]]), KEY)
  assert_are(points.left, [[1, 3], [2, 4]])
  assert points.right is None
  np.testing.assert_allclose(points.payoff, [[[0.5], [-0.5]], [[-0.2], [0.2]]])


def test_mismatches_are_the_responses_to_the_next_prompt():
  points = comparison(
    [[[0.5], [-0.5]], [[0.2], [-0.2]], [[0.1], [-0.1]]], [[1, 2], [3, 4], [5, 6]], [[0]] * 3
  )
  both = add_mismatches(points, KEY)
  assert_are(both.left, [[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 1, 2]])
  np.testing.assert_array_equal(both.payoff[:, :2], points.payoff)
  np.testing.assert_array_equal(both.payoff[:, 2:], np.zeros((3, 2, 1)))


def test_single_prompt_has_no_mismatches():
  with pytest.raises(UserError, match='at least 2 prompts'):
    add_mismatches(comparison([[[0.5], [-0.5]]], [[1, 2]], [[0]]), KEY)


def test_log_odds_are_bounded():
  scored = payoff_to_log_odds(comparison([[[0.3, 0.5, -0.5, 0]]], [[1]], [[2, 3, 4, 5]]), KEY)
  limit = log(0.9999 / 0.0001)
  np.testing.assert_allclose(scored.payoff, [[[log(4), limit, -limit, 0]]], rtol=1e-4)


def test_log_odds_are_antisymmetric():
  scores = payoff_to_log_odds(SELF, KEY).payoff
  np.testing.assert_allclose(scores, -scores.swapaxes(1, 2), atol=1e-6)


def test_subtract_constant_shifts_payoffs():
  np.testing.assert_allclose(subtract_constant(0.2)(SELF, KEY).payoff, SELF.payoff - 0.2)


@pytest.mark.parametrize('eta', [0.1, 4.0, 1e3])
def test_subtract_log_partition_normalises_the_tilt(eta):
  # log pi_{t+1} / pi_t = eta u - log Z, so its exponentials are one in the mean of the samples.
  target = eta * np.array(mean_payoff(subtract_log_partition(eta)(SELF, KEY)), float)
  np.testing.assert_allclose(np.exp(target).mean(axis=1), 1, rtol=1e-3)
  np.testing.assert_allclose(
    target - target[:, :1],
    eta * (mean_payoff(SELF) - mean_payoff(SELF)[:, :1]),
    rtol=1e-4,
    atol=1e-6,
  )


def coins(size):
  """Independent fair votes on every pair."""
  upper = np.triu(np.random.default_rng(0).choice([-0.5, 0.5], (size, size)), 1)
  return upper - upper.T


def order(size):
  """The first beats all."""
  return np.sign(np.arange(size) - np.arange(size)[:, None]) / 2


@pytest.mark.parametrize('eta', [1.0, 3.0])
@pytest.mark.parametrize(
  ('game', 'limit'),
  # Of arXiv 2405.00675, appendix A: log Z of P^ = u + 1/2, for many samples.
  [(coins, lambda eta: eta / 2), (order, lambda eta: log((exp(eta) - 1) / eta))],
  ids=['disordered', 'ordered'],
)
def test_log_partition_has_the_right_limits(game, limit, eta):
  size = 300
  many = comparison(game(size)[None], [list(range(size))])
  taken = many.payoff - subtract_log_partition(eta)(many, KEY).payoff
  assert np.ptp(taken) < 1e-5
  np.testing.assert_allclose(eta * (taken.mean() + 0.5), limit(eta), atol=4e-3 * eta)


def test_chain_gives_each_selection_its_key():
  seen = []

  def note(comparison, key):
    seen.append(jax.random.key_data(key).tolist())
    return comparison._replace(payoff=comparison.payoff + 1)

  chosen = chain(note, note, best_and_worst)(SELF, KEY)
  assert_are(chosen.left, [[2, 3], [4, 5]])
  np.testing.assert_allclose(mean_payoff(chosen), [[2.15, 1.85], [2.1, 1.8]], rtol=1e-6)
  assert seen[0] != seen[1]


# --- Rejection sampling ---

REWARD = [0.3, 1.0, -0.4]
BETA = 0.8


def after_visit(reward, beta, keep, order):
  """Order of acceptance -> its chance, from arXiv 2309.06657, algorithm 1, place by place."""
  if len(order) == keep:
    return {order: 1.0}
  rest = [place for place in range(len(reward)) if place not in order]
  top = max(reward[place] for place in rest)
  # What the visit has accepted so far -> its chance; it ends at once where enough are.
  visits = {order: 1.0}
  for place in rest:
    accept = exp((reward[place] - top) / beta)
    following = {}
    for accepted, chance in visits.items():
      full = len(accepted) == keep
      branches = (
        [(accepted, 1.0)] if full else [((*accepted, place), accept), (accepted, 1 - accept)]
      )
      for branch, share in branches:
        following[branch] = following.get(branch, 0.0) + chance * share
    visits = following
  chances = {}
  for accepted, chance in visits.items():
    if chance:
      for final, share in after_visit(reward, beta, keep, accepted).items():
        chances[final] = chances.get(final, 0.0) + chance * share
  return chances


@partial(jax.jit, static_argnums=(2, 3))
def many(keys, reward, beta, keep):
  return jax.vmap(lambda key: rejection_sample(key, reward, beta, keep))(keys)


def draw(reward, beta, keep, count=20_000):
  return np.array(many(jax.random.split(KEY, count), jnp.array(reward), beta, keep))


def test_first_accepted_of_three_candidates():
  # The best is always accepted where it is visited, so what follows it never comes first.
  first = exp((0.3 - 1.0) / BETA)
  chances = after_visit(REWARD, BETA, 1, ())
  assert chances == pytest.approx({(0,): first, (1,): 1 - first})
  # Where the best comes last, each of the others has its turn.
  a, b = exp(-1.4 / BETA), exp(-0.7 / BETA)
  chances = after_visit([-0.4, 0.3, 1.0], BETA, 1, ())
  assert chances == pytest.approx({(0,): a, (1,): (1 - a) * b, (2,): (1 - a) * (1 - b)})


@pytest.mark.parametrize('keep', [1, 2, 3])
@pytest.mark.parametrize(
  'reward', [REWARD, [-0.4, 0.3, 1.0], [1.0, 0.3, 1.0], [0.2, -1.0, 0.1, 0.6]]
)
def test_acceptance_orders_have_the_right_frequencies(reward, keep):
  # Each of the 85 frequencies of these tests within five standard errors, which chance leaves once
  # in 20,000 runs, and on this seed never.
  drawn = draw(reward, BETA, keep)
  chances = after_visit(reward, BETA, keep, ())
  assert sum(chances.values()) == pytest.approx(1)
  for order in itertools.permutations(range(len(reward)), keep):
    chance = chances.get(order, 0.0)
    frequency = np.mean(np.all(drawn == order, axis=1))
    assert abs(frequency - chance) <= 5 * np.sqrt(chance * (1 - chance) / len(drawn)), order


def test_first_accepted_has_the_tilted_distribution():
  # Two kinds of response, alike likely, of rewards 0 and 1: the target is mu exp(r / beta) / Z. The
  # largest reward is estimated on the candidates, and few are far from it: many are not.
  kinds = np.random.default_rng(0).integers(0, 2, (5000, 32)).astype(np.float32)
  keys = jax.random.split(KEY, len(kinds))
  sample = jax.jit(jax.vmap(lambda key, reward: rejection_sample(key, reward, 1.0, 1)[0]))
  accepted = np.array(sample(keys, jnp.array(kinds)))
  share = kinds[np.arange(len(kinds)), accepted].mean()
  target = exp(1) / (1 + exp(1))
  assert abs(share - target) < 5 * np.sqrt(target * (1 - target) / len(kinds))


@pytest.mark.parametrize('keep', [3, 6])
@pytest.mark.parametrize('beta', [0.01, 100.0])
def test_kept_indices_differ_for_equal_rewards(beta, keep):
  for reward in ([0.0] * 6, [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]):
    drawn = draw(reward, beta, keep, 500)
    assert drawn.shape == (500, keep)
    assert np.all((drawn >= 0) & (drawn < 6))
    assert np.all(np.diff(np.sort(drawn, axis=1), axis=1) > 0)


def test_all_candidates_can_be_kept():
  drawn = draw([0.3, -2.0, 5.0, 0.3, -9.0], 0.5, 5, 500)
  np.testing.assert_array_equal(np.sort(drawn, axis=1), np.tile(np.arange(5), (500, 1)))


def test_large_beta_accepts_in_order():
  np.testing.assert_array_equal(draw([0.3, -2.0, 5.0, 0.1], 1e9, 3, 500), [[0, 1, 2]] * 500)


def test_small_beta_accepts_the_best():
  np.testing.assert_array_equal(draw([0.3, -2.0, 5.0, 0.1], 1e-4, 3, 500), [[2, 0, 3]] * 500)


def test_impossible_candidates_are_accepted_last():
  drawn = draw([-np.inf, 0.0, -np.inf, -3.0], 0.5, 2, 500)
  np.testing.assert_array_equal(np.sort(drawn, axis=1), [[1, 3]] * 500)


@pytest.mark.parametrize('keep', [0, -1, 4])
def test_impossible_numbers_to_keep_are_refused(keep):
  with pytest.raises(UserError, match=f'cannot keep {keep} of 3 candidates'):
    rejection_sample(KEY, jnp.array(REWARD), 0.5, keep)


def test_rejection_sampling_is_equal_under_jit():
  keys, reward = jax.random.split(KEY, 5), jnp.array(REWARD)
  alone = [rejection_sample(key, reward, BETA, 2) for key in keys]
  np.testing.assert_array_equal(many(keys, reward, BETA, 2), alone)


def test_baseline_is_not_among_candidates():
  size, prompts, keep = 6, 200, 3
  random = np.random.default_rng(1)
  upper = np.triu(random.uniform(-0.5, 0.5, (prompts, size, size)), 1)
  payoff = upper - upper.swapaxes(1, 2)
  names = np.arange(prompts * size).reshape(prompts, size)
  kept = jax.jit(rejection_sampling(0.5, keep))(comparison(payoff, names.tolist()), KEY)

  places = np.array(kept.left.tokens[..., 0]) % size
  assert np.all(places > 0)
  assert np.all(np.diff(np.sort(places, axis=1), axis=1) > 0)
  found = np.take_along_axis(names, places, axis=1)
  assert_are(kept.left, found)
  assert_are(kept.right, found)
  for row, place in enumerate(places):
    np.testing.assert_allclose(kept.payoff[row], payoff[row][np.ix_(place, place)], rtol=1e-6)


def test_prompts_are_sampled_independently_by_log_odds():
  # Candidates 1 and 2 beat the baseline in 50 and 80 of 100 comparisons: odds of 1 and 4.
  payoff = np.zeros((4000, 3, 3))
  payoff[:, 2, 0], payoff[:, 0, 2] = 0.3, -0.3
  kept = rejection_sampling(1.0, 1)(comparison(payoff, [[0, 1, 2]] * 4000), KEY)
  share = np.mean(np.array(kept.left.tokens[:, 0, 0]) == 1)
  assert abs(share - 1 / 4) < 5 * np.sqrt(3 / 16 / 4000)


@pytest.mark.parametrize('reward', [[0.0, -np.inf, -np.inf], [np.nan, 0.0, 1.0]])
def test_rejection_sampling_ends_for_nan_rewards(reward):
  places = draw(reward, 0.5, 2, 5)
  assert all(len(set(row)) == 2 for row in places.tolist())
  if np.isfinite(reward[0]):
    assert set(places[:, 0]) == {0}
