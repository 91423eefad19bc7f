"""Losses of one pair, KTO and policy gradients, against numbers computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.losses import cross_entropy, pairwise_loss
from nlhf_jax.structs import Comparison, Prompts, Responses, Scores
from tests.algorithms.pairs import (
  LOSS,
  WIN,
  compared,
  gradient,
  is_close,
  logistic,
  scores,
  sigmoid,
  value,
)

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
