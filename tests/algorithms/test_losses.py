"""Every loss on one pair whose numbers are worked out by hand, in the letters of the papers."""

from math import exp, log

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.losses import cross_entropy, pairwise_loss
from nlhf_jax.algorithms.selection import pair_by_mean_payoff
from nlhf_jax.structs import Comparison, Prompts, Responses, Scores

# Log-probabilities of the tokens of y, three, and of y', two and a place of padding.
#                 sum  -1.75              -2.75
# reference            -3                 -2               rho = 1.25, -.75:  lead 2
# snapshot             -2.25              -2.25            rho = .5, -.5:     lead 1
# older                -2                 -1
PAIR = {
  'policy': ([-1.0, -0.5, -0.25], [-2.0, -0.75, 0.0]),
  'reference': ([-1.5, -1.0, -0.5], [-1.5, -0.5, 0.0]),
  'snapshot': ([-1.0, -1.0, -0.25], [-1.25, -1.0, 0.0]),
  'older': ([-0.5, -0.5, -1.0], [-0.5, -0.5, 0.0]),
}
WIN, LOSS = 0.5, -0.5


def sigmoid(x):
  return 1 / (1 + exp(-x))


def logistic(x):
  """-log sigmoid(x)."""
  return log(1 + exp(-x))


def scores(**renamed):
  """slot -> scores [1, 1, 3] of the pair; a slot of another name reads as one of the above."""
  slots = PAIR | {slot: PAIR[name] for slot, name in renamed.items()}
  return {slot: Scores(*(jnp.array([[side]]) for side in pair)) for slot, pair in slots.items()}


def compared(payoff, of=(3, 2)):
  """The pair, with lengths, and with the payoff of y against y'."""
  sides = [
    Responses(jnp.zeros((1, 1, 3), jnp.int32), (jnp.arange(3) < length)[None, None])
    for length in of
  ]
  prompts = Prompts(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
  return Comparison(prompts, *sides, jnp.array([[[payoff]]]))


def value(algorithm, payoff=WIN, **renamed):
  value = algorithm.loss(scores(**renamed), compared(payoff))
  assert value.shape == (1, 1, 1)
  return value.item()


def gradient(algorithm, payoff=WIN, **renamed):
  """In the log-probability of each token that the policy gives: ([3], [3])."""
  others = scores(**renamed)

  def loss(policy):
    return jnp.sum(algorithm.loss({**others, 'policy': policy}, compared(payoff)))

  return [np.array(side[0, 0]) for side in jax.grad(loss)(others['policy'])]


def is_close(actual, desired):
  np.testing.assert_allclose(actual, desired, rtol=2e-6, atol=1e-6)


# --- Contrasts of a winner and a loser ---

CLOSED_FORMS = {
  'dpo': (catalogue.dpo(0.5), logistic(1)),
  'online_dpo': (catalogue.online_dpo(0.5), logistic(1)),
  'cdpo': (catalogue.cdpo(0.5, 0.1), 0.9 * logistic(1) + 0.1 * logistic(-1)),
  'robust_dpo': (catalogue.robust_dpo(0.5, 0.1), (0.9 * logistic(1) - 0.1 * logistic(-1)) / 0.8),
  'ipo': (catalogue.ipo(1.0), (2 - 0.5) ** 2),
  'online_ipo': (catalogue.online_ipo(0.2), (2 - 2.5) ** 2),
  'ipo_md': (catalogue.ipo_md(0.125, 0.2), (2 - 2.5) ** 2),
  'ipo_per_token': (catalogue.ipo_per_token(1.0), (1.25 / 3 + 0.75 / 2 - 0.5) ** 2),
  'slic': (catalogue.slic(1.5, 0.1), 1.5 - 1 + 0.1 * 1.75),
  'slic_beyond_its_margin': (catalogue.slic(0.5, 0.1), 0.1 * 1.75),
  'simpo': (catalogue.simpo(2.0, 0.5), logistic(2 * (-1.75 / 3 + 2.75 / 2) - 0.5)),
  'rso': (catalogue.rso(0.5, 0.05, 4, 2), logistic(0.05 * 2)),
  'rso_hinge': (catalogue.rso_hinge(0.5, 0.05, 4, 2), 1 - 0.05 * 2),
  'rso_hinge_beyond_its_margin': (catalogue.rso_hinge(0.5, 1.0, 4, 2), 0),
  'spin': (catalogue.spin(0.5, 1), logistic(0.5 * 1)),
  'xpo': (catalogue.xpo(0.1, 0.5), logistic(1) - 0.1 * 2.75),
  # A quarter of the reference and three of the snapshot: rho = .6875, -.5625.
  'inpo': (catalogue.inpo(0.05, 0.2, 1), (1.25 - 2.5) ** 2),
  'comal': (catalogue.comal(0.05, 0.2, 1, 2), (1.25 - 2.5) ** 2),
  # A quarter of the reference, 3/8 of the snapshot and of the older one: rho = .59375, -1.03125.
  'mnpo': (catalogue.mnpo(0.25, 0.4, 1, 2), (1.625 - 1.25) ** 2),
  'onpo': (catalogue.onpo(3.0, 1), (1 - 1.5) ** 2),
}
RENAMED = {
  'comal': {'magnet': 'reference'},
  'mnpo': {'history_1': 'snapshot', 'history_2': 'older'},
  'onpo': {'centre': 'snapshot'},
}


@pytest.mark.parametrize('name', CLOSED_FORMS)
def test_pair_losses_have_closed_forms(name):
  algorithm, desired = CLOSED_FORMS[name]
  is_close(value(algorithm, **RENAMED.get(name, {})), desired)


LOST = {
  'dpo': (catalogue.dpo(0.5), logistic(-1)),
  'cdpo': (catalogue.cdpo(0.5, 0.1), 0.9 * logistic(-1) + 0.1 * logistic(1)),
  'robust_dpo': (catalogue.robust_dpo(0.5, 0.1), (0.9 * logistic(-1) - 0.1 * logistic(1)) / 0.8),
  'ipo': (catalogue.ipo(1.0), (-2 - 0.5) ** 2),
  'ipo_per_token': (catalogue.ipo_per_token(1.0), (-1.25 / 3 - 0.75 / 2 - 0.5) ** 2),
  'slic': (catalogue.slic(1.5, 0.1), 1.5 + 1 + 0.1 * 2.75),
  'simpo': (catalogue.simpo(2.0, 0.5), logistic(-2 * (-1.75 / 3 + 2.75 / 2) - 0.5)),
  'rso_hinge': (catalogue.rso_hinge(0.5, 0.05, 4, 2), 1 + 0.05 * 2),
  'inpo': (catalogue.inpo(0.05, 0.2, 1), (-1.25 - 2.5) ** 2),
}


@pytest.mark.parametrize('name', LOST)
def test_losses_swap_with_the_winner(name):
  algorithm, desired = LOST[name]
  is_close(value(algorithm, LOSS), desired)


@pytest.mark.parametrize('name', LOST)
def test_fractional_labels_weigh_both_outcomes(name):
  algorithm, lost = LOST[name]
  _, won = CLOSED_FORMS[name]
  is_close(value(algorithm, 0.2), 0.7 * won + 0.3 * lost)


def test_robust_dpo_is_unbiased_under_label_flips():
  flips = 0.1

  def mean(algorithm):
    return (1 - flips) * value(algorithm, WIN) + flips * value(algorithm, LOSS)

  is_close(mean(catalogue.robust_dpo(0.5, flips)), logistic(1))
  assert abs(mean(catalogue.cdpo(0.5, flips)) - logistic(1)) > 0.1


def test_all_tokens_of_a_pair_get_equal_gradients():
  pull = 0.5 * sigmoid(-1)  # DPO: -beta sigmoid(-beta lead)
  left, right = gradient(catalogue.dpo(0.5))
  is_close(left, np.full(3, -pull))
  is_close(right, np.full(3, pull))

  left, right = gradient(catalogue.ipo(1.0))
  is_close(left, np.full(3, 2 * 1.5))
  is_close(right, np.full(3, -2 * 1.5))

  # A token of the shorter response counts for more.
  off = 1.25 / 3 + 0.75 / 2 - 0.5
  left, right = gradient(catalogue.ipo_per_token(1.0))
  is_close(left, np.full(3, 2 * off / 3))
  is_close(right, np.full(3, -2 * off / 2))

  left, right = gradient(catalogue.simpo(2.0, 0.5))
  pull = 2 * sigmoid(0.5 - 2 * (-1.75 / 3 + 2.75 / 2))
  is_close(left, np.full(3, -pull / 3))
  is_close(right, np.full(3, pull / 2))


def test_hinge_has_no_gradient_beyond_its_margin():
  for side in gradient(catalogue.rso_hinge(0.5, 1.0, 4, 2)):
    is_close(side, np.zeros(3))
  left, right = gradient(catalogue.slic(0.5, 0.1))
  is_close(left, np.full(3, -0.1))
  is_close(right, np.zeros(3))


def test_xpo_lowers_reference_responses_by_alpha():
  of_dpo, of_xpo = gradient(catalogue.dpo(0.5)), gradient(catalogue.xpo(0.1, 0.5))
  is_close(of_xpo[0], of_dpo[0])
  is_close(of_xpo[1], of_dpo[1] + 0.1)


def test_losses_cover_all_pairs_of_responses():
  left, right = np.array([[[-1.0], [-3.0]]]), np.array([[[-2.0], [-2.5], [-4.0]]])
  payoff = np.array([[[0.5, -0.5, 0.25], [0.0, 0.5, -0.5]]])
  pair = compared(WIN)._replace(payoff=jnp.array(payoff))
  value = pairwise_loss(jnp.square, margin=0.5)(
    {'policy': Scores(jnp.array(left), jnp.array(right))}, pair
  )
  # Leads 1, 1.5, 3 and -1, -.5, 1.
  desired = [
    [0.5**2, 2.0**2, 0.75 * 2.5**2 + 0.25 * 3.5**2],
    [0.5 * 1.5**2 + 0.5 * 0.5**2, 1.0**2, 1.5**2],
  ]
  is_close(value, [desired])


def test_reward_model_is_dpo_without_reference():
  rewards = {'policy': Scores(jnp.array([[[0.7]]]), jnp.array([[[-0.4]]]))}
  is_close(catalogue.reward_model().loss(rewards, compared(WIN)), [[[logistic(1.1)]]])
  is_close(catalogue.reward_model().loss(rewards, compared(LOSS)), [[[logistic(-1.1)]]])


@pytest.mark.parametrize(('payoff', 'desired'), [(WIN, logistic(0.8)), (LOSS, logistic(-0.8))])
def test_preference_model_loss_is_cross_entropy(payoff, desired):
  is_close(cross_entropy({'policy': jnp.array([[[0.8]]])}, compared(payoff)), [[[desired]]])


# --- KTO ---


def prospects(mismatched):
  """KTO's values [2, 2] of a winner and a loser to each of two prompts, and their gradients.

  The winners' rho are 1.25 and 1, the losers' -.75 and 0, those of the mismatched ones are given.
  """
  first, second = mismatched
  policy = np.array([[1.25, -0.75, first, first], [1.0, 0.0, second, second]], np.float32)
  payoff = jnp.array([[[0.5], [-0.5], [0.0], [0.0]]] * 2)
  comparison = compared(WIN)._replace(right=None, payoff=payoff)

  def values(left):
    slots = {'policy': Scores(left), 'reference': Scores(jnp.zeros_like(left))}
    return catalogue.kto(2.0, 1.5, 0.5).loss(slots, comparison)

  policy = jnp.array(policy)[:, :, None]
  total = jax.grad(lambda left: jnp.sum(values(left)))
  return values(policy), total(policy)[:, :, 0]


@pytest.mark.parametrize(
  ('mismatched', 'z'), [((0.5, 0.1), 0.3), ((-0.5, 0.1), 0), ((-1.0, 3.0), 1.0)]
)
def test_kto_baseline_is_the_nonnegative_mismatched_kl(mismatched, z):
  values, slopes = prospects(mismatched)
  win = lambda rho: 1.5 * sigmoid(-2 * (rho - z))  # 1.5 (1 - sigmoid(2 (rho - z)))
  lose = lambda rho: 0.5 * sigmoid(-2 * (z - rho))
  is_close(values, [[win(1.25), lose(-0.75)], [win(1), lose(0)]])

  slope = lambda x: 2 * sigmoid(2 * x) * sigmoid(-2 * x)
  desired = [
    [-1.5 * slope(1.25 - z), 0.5 * slope(-0.75 - z), 0, 0],  # and none through z
    [-1.5 * slope(1 - z), 0.5 * slope(-z), 0, 0],
  ]
  is_close(slopes, desired)


def test_kto_mismatches_come_from_the_next_prompt():
  algorithm = catalogue.kto(2.0, 1.5, 0.5)
  tokens = jnp.array([[[10]], [[20]]])
  prompts = Prompts(jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 1), bool))
  left, right = (Responses(tokens + side, tokens > 0) for side in (0, 1))
  pairs = Comparison(prompts, left, right, jnp.array([[[0.5]], [[-0.5]]]))
  selected = algorithm.select(pairs, jax.random.key(0))
  np.testing.assert_array_equal(selected.left.tokens[..., 0], [[10, 11, 20, 21], [20, 21, 10, 11]])

  # rho is a hundredth of the token: z = .155.
  ratio = {'policy': Scores(selected.left.tokens / 100), 'reference': Scores(jnp.zeros((2, 4, 1)))}
  win = lambda rho: 1.5 * sigmoid(-2 * (rho - 0.155))
  lose = lambda rho: 0.5 * sigmoid(-2 * (0.155 - rho))
  desired = [[win(0.1), lose(0.11)], [lose(0.2), win(0.21)]]
  is_close(algorithm.loss(ratio, selected), desired)


# --- Regressions of log-ratios ---


def points(algorithm, payoff, policy=(-1.75, -2.75), **others):
  """The loss of two left responses, scored as a whole, after the algorithm's own selection."""
  slots = {'policy': policy, **others}
  slots = {slot: Scores(jnp.array(rho)[None, :, None]) for slot, rho in slots.items()}
  comparison = compared(WIN)._replace(right=None, payoff=jnp.array(payoff)[None])
  return np.array(algorithm.loss(slots, comparison)[0])


# Win rates .8 and .35 over three samples.
WIN_RATES = [[0.0, 0.5, 0.4], [-0.5, 0.0, 0.05]]


def test_sppo_is_twice_the_released_loss():
  values = points(catalogue.sppo(10.0, 3, 1, 0.5), WIN_RATES, snapshot=(-2.25, -2.25))
  is_close(values, [(0.5 - 10 * (0.8 - 0.5)) ** 2, (-0.5 - 10 * (0.35 - 0.5)) ** 2])
  beta = 1 / 10
  released = ((0.5 - (0.8 - 0.5) / beta) ** 2 + (-0.5 - (0.35 - 0.5) / beta) ** 2) / 2
  is_close(values.mean(), released)  # which the mean over the two responses brings back


def selected(algorithm, payoff):
  """Tokens and payoff that the algorithm selects from responses 0, 1, 2, ..., all against all."""
  payoff = jnp.array(payoff)[None]
  tokens = jnp.arange(payoff.shape[1])[None, :, None]
  responses = Responses(tokens, jnp.ones_like(tokens, bool))
  comparison = Comparison(compared(WIN).prompts, responses, responses, payoff)
  chosen = algorithm.select(comparison, jax.random.key(0))
  return chosen.left.tokens[0, :, 0].tolist(), chosen


# Win rates, each with itself: .5 + (0, .15, -.15).
THREE = [[0.0, -0.3, 0.3], [0.3, 0.0, 0.15], [-0.3, -0.15, 0.0]]


@pytest.mark.parametrize('log_z', [0.5, 0.54, 0.0])
def test_sppo_subtracts_its_constant(log_z):
  algorithm = catalogue.sppo(4.0, 3, 1, log_z)
  chosen, comparison = selected(algorithm, THREE)
  assert chosen == [1, 2]
  values = points(algorithm, comparison.payoff[0], snapshot=(-2.25, -2.25))
  is_close(values, [(0.5 - 4 * (0.65 - log_z)) ** 2, (-0.5 - 4 * (0.35 - log_z)) ** 2])


def test_sppo_estimates_log_z_on_the_samples():
  algorithm = catalogue.sppo_estimated(4.0, 3, 1)
  chosen, comparison = selected(algorithm, THREE)
  assert chosen == [1, 2]
  log_z = log((1 + exp(0.6) + exp(-0.6)) / 3)  # of exp(4 u)
  values = points(algorithm, comparison.payoff[0], snapshot=(-2.25, -2.25))
  is_close(values, [(0.5 - 0.6 + log_z) ** 2, (-0.5 + 0.6 + log_z) ** 2])


def test_sppo_pair_with_votes_is_the_hard_form():
  algorithm = catalogue.sppo_pair(10.0, 3, 1)
  certain = np.sign(THREE) / 2
  chosen, comparison = selected(algorithm, certain)
  assert chosen == [1, 2]
  values = points(algorithm, comparison.payoff[0], snapshot=(-2.25, -2.25))
  beta = 1 / 10
  is_close(values.sum(), (0.5 - 1 / (2 * beta)) ** 2 + (-0.5 + 1 / (2 * beta)) ** 2)


def test_sppo_pair_targets_are_complementary():
  algorithm = catalogue.sppo_pair(4.0, 3, 1)
  _, comparison = selected(algorithm, THREE)
  values = points(algorithm, comparison.payoff[0], snapshot=(-2.25, -2.25))
  is_close(values, [(0.5 - 4 * 0.15) ** 2, (-0.5 + 4 * 0.15) ** 2])


def test_gpo_regresses_on_log_odds():
  algorithm = catalogue.gpo(4.0, 3, 1)
  chosen, comparison = selected(algorithm, THREE)
  assert chosen == [1, 2]
  a, b = log(0.8 / 0.2), log(0.65 / 0.35)
  values = points(algorithm, comparison.payoff[0], snapshot=(-2.25, -2.25))
  is_close(values, [(0.5 - 4 * (a + b) / 3) ** 2, (-0.5 + 4 * (a + b) / 3) ** 2])


@pytest.mark.parametrize('reference', [(-3.0, -2.0), (-30.0, 17.25)])
def test_rspo_adds_two_penalties_to_sppo(reference):
  rspo = catalogue.rspo(10.0, 3, 1, forward=0.1, reverse=0.2)
  values = points(rspo, WIN_RATES, snapshot=(-2.25, -2.25), reference=reference)
  won, lost = -1.75 - reference[0], -2.75 - reference[1]
  desired = [
    (0.5 - 3) ** 2 + 0.1 * exp(-won) + 0.2 * won**2,
    (-0.5 + 1.5) ** 2 + 0.1 * exp(min(-lost, 10)) + 0.2 * lost**2,  # -lost = 20 in the second case
  ]
  is_close(values, desired)


def mean_payoff_of(eta):
  """(rho_t(y) - rho_t(y') - eta (u(y) - u(y')))^2 at a difference of .3, and a constant."""
  return (1 - eta * 0.3) ** 2 + (eta / 2) ** 2 * (1 - (2 * 0.3) ** 2)


def test_rebel_is_a_square_plus_a_constant():
  is_close(value(catalogue.rebel(0.5, 1), 0.3), mean_payoff_of(0.5))
  left, right = gradient(catalogue.rebel(0.5, 1), 0.3)
  is_close(left, np.full(3, 2 * (1 - 0.15)))
  is_close(right, np.full(3, -2 * (1 - 0.15)))


@pytest.mark.parametrize('difference', [-1.0, 0.8, 4.0])
def test_mean_payoff_differences_may_exceed_one_half(difference):
  left, _ = gradient(catalogue.rebel(0.5, 1), difference)
  is_close(left, np.full(3, 2 * (1 - 0.5 * difference)))


def test_egpo_target_is_the_difference_over_tau():
  left, _ = gradient(catalogue.egpo(0.2, 2.0), 0.3)
  is_close(left, np.full(3, 2 * (2 - 0.3 / 0.2)))


def test_dno_labels_are_sigmoids_of_differences():
  p = sigmoid(0.3)
  is_close(value(catalogue.dno(2.0, 1), 0.3), p * logistic(2) + (1 - p) * logistic(-2))
  left, _ = gradient(catalogue.dno(2.0, 1), 0.3)
  is_close(left, np.full(3, 2 * (sigmoid(2) - p)))  # zero where 2 times the lead is .3


# --- Policy gradients ---


def test_policy_gradient_adds_kl_penalties_to_go():
  # Log-ratios .5, .5, .25 to the magnet, so 1.25, .75, .25 to go; 0, .5, 0 to the snapshot.
  algorithm = catalogue.mpo(tau=0.1, eta=4.0, every=1, reset=2)
  left, right = gradient(algorithm, 0.2, magnet='reference')
  costs = [0.1 * 1.25 + 0.5 / 4, 0.1 * 0.75 + 0.5 / 4, 0.1 * 0.25]
  is_close(left, np.array(costs) - 0.2)
  is_close(right, np.zeros(3))
  is_close(
    value(algorithm, 0.2, magnet='reference'),
    -1.0 * costs[0] - 0.5 * costs[1] - 0.25 * costs[2] + 1.75 * 0.2,
  )


@pytest.mark.parametrize(
  ('algorithm', 'renamed'),
  [
    (catalogue.nash_md_pg(0.125, 0.1), {}),
    (catalogue.best_response(0.1), {}),
    (catalogue.nash_ema_pg(0.5, 0.1), {}),
    (catalogue.rlhf_pg(0.1), {}),
    (catalogue.spo(0.1, 2, 1), {}),
  ],
  ids=['nash_md_pg', 'best_response', 'nash_ema_pg', 'rlhf_pg', 'spo'],
)
def test_policy_gradient_penalises_kl_to_the_reference(algorithm, renamed):
  left, right = gradient(algorithm, -0.3, **renamed)
  is_close(left, np.array([0.125, 0.075, 0.025]) + 0.3)
  is_close(right, np.zeros(3))


def test_nash_prox_also_penalises_kl_to_the_centre():
  algorithm = catalogue.nash_prox(0.1, 4.0, 0.5)
  left, _ = gradient(algorithm, -0.3, centre='snapshot')
  is_close(left, np.array([0.125 + 0.125, 0.075 + 0.125, 0.025]) + 0.3)


def test_sft_loss_is_the_negative_log_likelihood():
  value = catalogue.sft().loss(scores(), compared(WIN))
  is_close(value, [[1.75]])


# --- Three ways to write a squared loss of pairs ---


def three_ways(log_pi, chance, payoff, opponent, step):
  """The mean over pairs, weighed by `chance`, of (A), (B) and (C), g = log pi(y) - log pi(y').

  (A) (g - s (P(y > mu) - P(y' > mu)))^2, (B) (g_wl - s / 2)^2, (C) (g - s (P(y > y') - 1/2))^2, up
  to constants in g; what is in the loss that is none is the choice of the payoff.
  """
  size = len(log_pi)
  loss = pairwise_loss(jnp.square, margin=step / 2)

  def mean(payoff):
    side = Scores(*[jnp.array(log_pi)[None, :, None]] * 2)
    value = loss({'policy': side}, compared(WIN)._replace(payoff=jnp.array(payoff)[None]))[0]
    return value

  mean_payoff = payoff @ opponent
  ordered = (0.5 + payoff) * mean(np.full((size, size), 0.5))
  ordered += (0.5 - payoff) * mean(np.full((size, size), -0.5))
  g = log_pi[:, None] - log_pi
  literally = {
    'A': (g - step * (mean_payoff[:, None] - mean_payoff)) ** 2,
    'B': (0.5 + payoff) * (g - step / 2) ** 2 + (0.5 - payoff) * (g + step / 2) ** 2,
    'C': (g - step * payoff) ** 2,
  }
  by_library = {'A': mean(mean_payoff[:, None] - mean_payoff), 'B': ordered, 'C': mean(payoff)}
  return [{way: np.sum(chance * grid) for way, grid in w.items()} for w in (literally, by_library)]


def ways_over_policies(chance_of, opponent):
  """[policies, ways] of the textbook's and of the library's values, as the policy varies."""
  random = np.random.default_rng(0)
  upper = np.triu(random.uniform(-0.5, 0.5, (5, 5)), 1)
  payoff = upper - upper.T
  chance = np.outer(chance_of, chance_of)
  policies = np.log(random.dirichlet(np.ones(5), size=4))
  rows = [three_ways(log_pi, chance, payoff, opponent, 1.5) for log_pi in policies]
  return [np.array([list(row[which].values()) for row in rows]) for which in (0, 1)]


def range_over_policies(values):
  return np.ptp(values, axis=0)


MU = np.array([0.3, 0.1, 0.25, 0.2, 0.15])
OTHER = np.array([0.05, 0.5, 0.1, 0.05, 0.3])


def test_squared_losses_agree_against_the_sampler():
  textbook, library = ways_over_policies(MU, MU)
  assert np.all(range_over_policies(library - textbook) < 1e-4)
  assert np.all(range_over_policies(textbook - textbook[:, :1]) < 1e-12)
  assert np.all(range_over_policies(library - library[:, :1]) < 1e-4)
  assert np.all(range_over_policies(library) > 1)


def test_off_policy_only_opponent_win_rates_are_unbiased():
  textbook, library = ways_over_policies(OTHER, MU)
  assert np.all(range_over_policies(library - textbook) < 1e-4)
  of_a, of_b, of_c = (library - library[:, :1]).T
  assert np.ptp(of_a) == 0
  assert np.ptp(of_b) > 0.05
  assert np.ptp(of_c) > 0.05
  assert np.ptp(of_b - of_c) < 1e-4


def test_pair_by_mean_payoff_uses_sampled_win_rates():
  # u(y_1) - u(y_2) over two opponents: (.3 - .1) / 2 - (.2 + .4) / 2.
  comparison = compared(WIN)._replace(
    left=Responses(jnp.array([[[1], [2]]]), jnp.ones((1, 2, 1), bool)),
    payoff=jnp.array([[[0.3, -0.1], [0.2, 0.4]]]),
  )
  pair = pair_by_mean_payoff(comparison, jax.random.key(0))
  assert (pair.left.tokens.item(), pair.right.tokens.item()) == (1, 2)
  is_close(pair.payoff, [[[-0.2]]])
