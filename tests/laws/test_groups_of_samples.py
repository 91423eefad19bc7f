"""K samples a prompt: the rest of every baseline and scale, in expectation over all groups.

Numbers were computed apart to ten digits, on the cycle of `test_fixed_points` at tau = .1. Forces
are per response: the natural gradient of the logits is the mean advantage of each action.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.losses import clipped_policy_gradient
from nlhf_jax.structs import Comparison, Responses, Scores
from tests.laws import exact, theory, tiny
from tests.laws.exact import natural
from tests.laws.test_fixed_points import GAMES

pytestmark = pytest.mark.usefixtures('float64')

TAU, PAYOFF, MU = 0.1, exact.CYCLE - 0.5, exact.CYCLE_MU
NASH = {
  0.05: (0.3203252275, 0.2659294827, 0.4137452898),
  0.1: (0.2749172053, 0.2797225768, 0.4453602180),
  2 / 15: (0.2498391122, 0.2960161928, 0.4541446949),
  0.2: (0.2156620215, 0.3331994372, 0.4511385414),
}
NASH_075 = (0.2968800681, 0.2707198571, 0.4324000747)


def listed_groups(size):
  """All groups of K actions, [3^K, K]."""
  return np.array(list(itertools.product(range(3), repeat=size)))


def mean_force(advantages, groups, pi):
  """E[1/K sum_k grad log pi(y_k) A_k] as a natural gradient: of the logits, over pi, centred."""
  chance = np.prod(pi[groups], axis=1)
  by_action = np.stack([np.where(groups == a, advantages, 0).mean(axis=1) for a in range(3)], 1)
  gradient = chance @ by_action - pi * (chance @ advantages.mean(axis=1))
  force = gradient / pi
  return force - force.mean()


def find_rest(advantages_of, groups, rate=0.3, steps=3000):
  """Follows the natural force from mu until it vanishes."""
  log_pi = np.log(MU)
  for _ in range(steps):
    pi = softmax(log_pi)
    force = mean_force(advantages_of(log_pi - np.log(MU)), groups, pi)
    log_pi = np.log(pi) + rate * force
  assert abs(force).max() < 1e-11
  return pi


def leave_one_out(values):
  count = values.shape[1]
  return values - (values.sum(axis=1, keepdims=True) - values) / (count - 1)


def less_mean(values):
  return values - values.mean(axis=1, keepdims=True)


# Baseline -> (advantages of gains and prices); gains are means over the K^2 pairs of a group.
BASELINES = {
  'none': lambda gain, price: gain - price,
  'leave one out': lambda gain, price: leave_one_out(gain - price),
  'leave one out of the gain': lambda gain, price: leave_one_out(gain) - price,
  'group mean': lambda gain, price: less_mean(gain - price),
}


@pytest.mark.parametrize(
  ('baseline', 'diagonal', 'rests'),
  [
    ('none', True, {2: NASH[0.2], 4: NASH[2 / 15]}),
    ('none', False, {2: NASH[0.1], 4: NASH[0.1]}),
    ('leave one out', True, {2: NASH[0.1], 4: NASH[0.1]}),
    ('leave one out of the gain', True, {2: NASH[0.1], 4: NASH[0.1]}),
    ('leave one out', False, {2: NASH[0.05], 4: NASH_075}),
    ('group mean', True, {2: NASH[0.1], 4: NASH[0.1]}),
    ('group mean', False, {2: NASH[0.05], 4: NASH_075}),
  ],
)
def test_shared_sides_rest_where_their_baseline_says(baseline, diagonal, rests):
  for size, expected in rests.items():
    groups = listed_groups(size)
    gains = PAYOFF[groups[:, :, None], groups[:, None, :]].sum(axis=2)
    gains /= size if diagonal else size - 1

    def advantages(rho, gains=gains, groups=groups):
      return BASELINES[baseline](gains, TAU * rho[groups])

    np.testing.assert_allclose(find_rest(advantages, groups), expected, rtol=0, atol=1e-9)


def standardised(gains, ddof):
  spread = gains.std(axis=1, ddof=ddof, keepdims=True)
  return np.divide(less_mean(gains), spread, out=np.zeros_like(gains), where=spread > 1e-12)


@pytest.mark.parametrize(
  ('size', 'ddof', 'expected'),
  [
    (2, 0, (0.3126314309, 0.3247610337, 0.3626075354)),
    (2, 1, (0.3025943336, 0.3241170751, 0.3732885912)),
    (4, 0, (0.3460409927, 0.2734620276, 0.3804969797)),
    (4, 1, (0.3435862308, 0.2729657372, 0.3834480319)),
  ],
)
def test_standardised_shared_groups(size, ddof, expected):
  groups = listed_groups(size)
  scaled = standardised(PAYOFF[groups[:, :, None], groups[:, None, :]].mean(axis=2), ddof)
  found = find_rest(lambda rho: scaled - TAU * rho[groups], groups, 0.1, 8000)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_the_direction_of_standardised_groups_is_not_that_of_the_payoff():
  true = PAYOFF @ MU * MU
  np.testing.assert_allclose(true, (-0.022, -0.02, 0.042), rtol=0, atol=1e-12)
  for size, expected in (
    (2, (-0.04, -0.05, 0.09)),
    (4, (-0.1118838616, -0.0909555693, 0.2028394310)),
  ):
    groups = listed_groups(size)
    scaled = standardised(PAYOFF[groups[:, :, None], groups[:, None, :]].mean(axis=2), 0)
    chance = np.prod(MU[groups], axis=1)
    found = [chance @ np.where(groups == a, scaled, 0).mean(axis=1) for a in range(3)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_more_opponents_lower_the_variance_more_than_more_responses():
  """v10 / K + v01 / J + v11 / (K J), the trace over logits, at mu without a price."""
  score = np.eye(3) - MU
  each = score[:, None, :] * PAYOFF[:, :, None]  # [response, opponent, logit]
  mean = np.einsum('i,j,ijc->c', MU, MU, each)
  own, other = np.einsum('j,ijc->ic', MU, each) - mean, np.einsum('i,ijc->jc', MU, each) - mean
  v10, v01 = (MU @ (part**2).sum(axis=1) for part in (own, other))
  both = each - own[:, None] - other[None] - mean
  v11 = np.einsum('i,j,ijc->', MU, MU, both**2)
  np.testing.assert_allclose((v10, v01, v11), (0.004614, 0.022506, 0.029336), rtol=0, atol=6e-7)
  for (k, j), expected in {
    (1, 1): 0.056456,
    (2, 2): 0.020894,
    (4, 1): 0.0309935,
    (1, 4): 0.0175745,
  }.items():
    np.testing.assert_allclose(v10 / k + v01 / j + v11 / (k * j), expected, rtol=0, atol=1e-6)


def test_grpo_penalty_rests_at_a_forward_kl():
  """The estimate mu / pi - log(mu / pi) - 1, differentiated without a ratio: force mu - pi."""
  for game, tau, expected in (
    ('cycle', 0.1, (0.2624075656, 0.2821357785, 0.4554566558)),
    ('cycle', 0.02, (0.3439665567, 0.2691986722, 0.3868347711)),
    ('random', 0.1, (0.4461981227, 0.3325581176, 0.2212437597)),
  ):
    preference, mu = GAMES[game]
    log_pi = np.log(mu)
    for _ in range(6000):
      pi = softmax(log_pi)
      log_pi = np.log(pi) + 0.3 * ((preference - 0.5) @ pi + tau * (mu / pi - 1))
    np.testing.assert_allclose(softmax(log_pi), expected, rtol=0, atol=1e-9)


# --- Clipped ratios ---

OLD, ADVANTAGE = exact.CYCLE_MU, np.array([-0.11, -0.04, 0.14])


def clipped_gradient(pi, clip, advantage=ADVANTAGE, old=OLD):
  """Minus the expected gradient of the logits, with responses listed by the old policy."""
  ones = jnp.ones((3, 1, 1), bool)
  actions = Responses(jnp.arange(3)[:, None, None], ones)
  comparison = Comparison(None, actions, actions, jnp.asarray(advantage)[:, None, None])

  def value(logits):
    tables = {'policy': jax.nn.log_softmax(logits), 'snapshot': jnp.log(old)}
    scores = {slot: Scores(table[:, None, None]) for slot, table in tables.items()}
    return old @ clipped_policy_gradient(clip)(scores, comparison).ravel()

  return -jax.grad(value)(jnp.log(jnp.asarray(pi)))


@pytest.mark.parametrize(
  ('pi', 'unclipped', 'clipped', 'fresh'),
  [
    (
      (0.15, 0.45, 0.40),
      (-0.019725, -0.027675, 0.0474),
      (0.0027, -0.0099, 0.0072),  # of the other sign than self-play, at the first action
      (-0.009, -0.045, 0.054),
    ),
    (
      (0.25, 0.35, 0.40),
      (-0.031125, -0.019075, 0.0502),
      (-0.020625, 0.009625, 0.011),
      (-0.005, -0.021, 0.026),
    ),
  ],
)
def test_clipping_changes_the_path(pi, unclipped, clipped, fresh):
  np.testing.assert_allclose(clipped_gradient(pi, 1e9), unclipped, rtol=0, atol=1e-12)
  np.testing.assert_allclose(clipped_gradient(pi, 0.2), clipped, rtol=0, atol=1e-12)
  np.testing.assert_allclose(pi * (PAYOFF @ pi), fresh, rtol=0, atol=1e-12)


def test_nothing_is_clipped_at_the_policy_that_sampled():
  expected = OLD * (ADVANTAGE - OLD @ ADVANTAGE)
  for clip in (0.01, 0.2, 1e9):
    np.testing.assert_allclose(clipped_gradient(OLD, clip), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('clip', [0.2, 1e9])
@pytest.mark.parametrize(
  'every', [1, 4, *(pytest.param(every, marks=pytest.mark.slow) for every in (2, 8, 16))]
)
def test_clipped_self_play_rests_at_the_regularised_nash(clip, every):
  algorithm = catalogue.clipped_self_play(TAU, clip, every)
  # After sixteen steps a round is nearly a best reply, and the policy turns for a long time.
  find = exact.make_find_fixed_point(algorithm, natural(0.3), 4_000 if every < 16 else 240_000)
  for (preference, mu), expected in zip(
    GAMES.values(), (NASH[0.1], (0.4302581344, 0.3546523917, 0.2150894739)), strict=True
  ):
    np.testing.assert_allclose(np.exp(find(preference, mu)['policy']), expected, rtol=0, atol=6e-11)


@pytest.mark.slow
@pytest.mark.parametrize(('clip', 'a_round'), [(0.2, 0.058), (1e9, 0.6)])
def test_many_long_steps_a_round_do_not_settle(clip, a_round):
  """Without a price of the distance to the snapshot they approach undamped best replies."""
  algorithm = catalogue.clipped_self_play(TAU, clip, 16)
  path, _ = exact.make_run(algorithm, natural(1.0), 8000)(exact.CYCLE, MU)
  rounds = np.exp(path[15::16])
  moved = abs(np.diff(rounds[-100:], axis=0)).max(axis=1)
  assert moved.min() > a_round / 4
  np.testing.assert_allclose(moved.mean(), a_round, rtol=0.05)


# --- Ratios of tokens, of sequences, and their geometric mean ---

LOGITS, REWARDS = np.array([[1, 0], [0.5, 0], [0, 1]]), np.array([1, -0.5, 0.3, -0.8])


def test_only_the_ratio_of_the_whole_sequence_is_unbiased():
  """`clipped_policy_gradient` has the ratio of the sequence; two other ratios are published.

  Gradients at the first symbol of each row of logits, for samples of uniform tokens.
  """

  def values(logits):
    log_pi = exact.two_tokens(logits)
    ratio = log_pi - jnp.log(0.5)
    surrogates = (
      jnp.exp(ratio.sum(axis=1)),
      jnp.exp(ratio).sum(axis=1),
      # GSPO's geometric mean divides the log-ratio by the length; this is its value times 2.
      2 * jnp.exp(ratio.mean(axis=1)),
    )
    true = jnp.exp(log_pi.sum(axis=1)) @ REWARDS
    return jnp.stack([true, *(jnp.mean(REWARDS * surrogate) for surrogate in surrogates)])

  true, sequence, tokens, geometric = tiny.jit(jax.jacrev(values))(LOGITS)[:, :, 0]
  expected = (0.1843931766, 0.2577022197, 0.0581648021)
  np.testing.assert_allclose(true, expected, rtol=0, atol=6e-11)
  np.testing.assert_allclose(sequence, expected, rtol=0, atol=6e-11)
  expected = (0.0983059666, 0.1762527842, 0.1081365633)
  np.testing.assert_allclose(tokens, expected, rtol=0, atol=6e-11)
  expected = (0.1555595356, 0.2090941291, 0.0771922562)
  np.testing.assert_allclose(geometric, expected, rtol=0, atol=6e-11)


def test_signs_at_two_samples_are_a_lottery_of_signs():
  signs = 0.5 + np.sign(PAYOFF)
  expected = theory.regularised(TAU)(signs, MU)
  groups = listed_groups(2)
  scaled = standardised(PAYOFF[groups[:, :, None], groups[:, None, :]].mean(axis=2), 0)
  found = find_rest(lambda rho: scaled - TAU * rho[groups], groups, 0.1, 8000)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
