"""Laws of conversations, with the losses of training: every conversation is listed.

The games D (a silent user) and S (a user who replies at random) are those of
`tests/games/test_dialogues.py`. A conversation is a row of tokens: the first action, the reply in
S, the second action. Scores are zero at the reply.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import check_conversations
from nlhf_jax.algorithms.losses import log_ratio, policy_gradient
from nlhf_jax.errors import UserError
from nlhf_jax.games import dialogues
from nlhf_jax.structs import Comparison, Responses, Scores
from tests.games import test_dialogues as tabular
from tests.laws import tiny

pytestmark = pytest.mark.usefixtures('float64')

TAU = 0.1
USER = np.stack([1 - tabular.SAYS_ONE, tabular.SAYS_ONE], axis=-1)  # p(u|a)
# At every conversation (a, u, b) of S, or (a, b) of D.
A, U, B = (x.ravel() for x in np.indices((3, 2, 3)))
A_D, B_D = (x.ravel() for x in np.indices((3, 3)))


def table(name, log_pi):
  """Log-probabilities of the tokens of every conversation, zero at the user's: [Z, T]."""
  first, second = log_pi
  if name == 'D':
    return jnp.stack([first[0, A_D], second[A_D, B_D]], axis=-1)
  return jnp.stack([first[0, A], jnp.zeros(18), second[2 * A + U, B]], axis=-1)


def turns(name):
  return np.tile([1, 2] if name == 'D' else [1, 0, 2], (1, 9 if name == 'D' else 18, 1))


def comparison(name, payoff):
  """All conversations against all."""
  turn = turns(name)
  side = Responses(np.zeros_like(turn), np.ones(turn.shape, bool), turn=turn)
  return Comparison(None, side, side, jnp.asarray(payoff)[None])


def slope(loss, name, logits, slots, left, right, payoff, score=table):
  """The gradient of the expected loss; samples are fixed, and come from `left` and `right` [Z]."""
  pairs = comparison(name, payoff)

  def expected(logits):
    own = tuple(map(jax.nn.log_softmax, logits))
    rows = {slot: table(name, log_pi)[None] for slot, log_pi in slots.items()}
    rows['policy'] = score(name, own)[None]
    values = loss({slot: Scores(row, row) for slot, row in rows.items()}, pairs)[0]
    return jnp.sum(left[:, None] * right * values)

  return tiny.jit(jax.grad(expected))(logits)


def at_some_logits(name, loss, opponent=None, score=table):
  """The ascent of the policy at the logits that have printed gradients."""
  game, logits = tabular.make(name, TAU), tabular.some_logits(name)
  log_pi = tabular.normalised(logits)
  own = dialogues.occupancy(game, log_pi)
  other = own if opponent is None else dialogues.occupancy(game, opponent)
  slots = {'reference': game.log_reference}
  found = slope(loss, name, logits, slots, own, other, game.payoff, score)
  return jax.tree.map(jnp.negative, found)


@pytest.mark.parametrize('name', ['D', 'S'])
def test_policy_gradient_has_the_printed_digits(name):
  first, second, mixed, own_turn, _ = tabular.GRADIENTS[name]
  loss, game = policy_gradient(reference=TAU), tabular.make(name, TAU)
  found = at_some_logits(name, loss)
  tabular.close(found[0][0], first)
  tabular.close(found[1], second)
  log_pi = tabular.normalised(tabular.some_logits(name))
  mixture = dialogues.geometric_mixture(log_pi, game.log_reference, 0.125)
  tabular.close(at_some_logits(name, loss, mixture)[0][0], mixed)

  def own_turn_alone(scores, pairs):
    """Each turn is charged its own KL, and not that of later turns: wrong."""
    log_pi = scores['policy'].left
    costs = lax.stop_gradient(log_ratio(scores, 'left', {'reference': 1.0}))
    return TAU * jnp.sum(log_pi * costs, -1, keepdims=True) + policy_gradient()(scores, pairs)

  tabular.close(at_some_logits(name, own_turn_alone)[0][0], own_turn)


def test_users_words_have_no_gradient():
  """A model of the user's words, with logits at 0, learns nothing; unmasked it would."""
  game, loss = tabular.make('S', TAU), policy_gradient(reference=TAU)
  log_pi = tabular.normalised(tabular.some_logits('S'))
  own, pairs = dialogues.occupancy(game, log_pi), comparison('S', game.payoff)
  mu = table('S', game.log_reference)
  untrained = mu.at[:, 1].set(jnp.log(0.5))

  def expected(words, masked):
    row = table('S', log_pi).at[:, 1].set(jax.nn.log_softmax(words)[A, U])
    scores = [jnp.where(pairs.left.own[0], x, 0) if masked else x for x in (row, untrained)]
    both = {
      slot: Scores(x[None], x[None])
      for slot, x in zip(('policy', 'reference'), scores, strict=True)
    }
    return jnp.sum(own[:, None] * own * loss(both, pairs)[0])

  gradient = jax.grad(expected)
  np.testing.assert_array_equal(gradient(jnp.zeros((3, 2)), True), 0)
  unmasked = -gradient(jnp.zeros((3, 2)), False)
  tabular.close(unmasked[2], (0.0033247, -0.0033247), 7)


@pytest.mark.parametrize('name', ['D', 'S'])
def test_baselines_of_the_prefix_change_no_gradient(name):
  random, plain = np.random.default_rng(0), policy_gradient(reference=TAU)
  before_second = random.normal(size=6)[2 * A + U] if name == 'S' else random.normal(size=3)[A_D]
  columns = [np.full(len(before_second), 0.7), before_second]
  if name == 'S':
    columns.insert(1, np.zeros(18))
  baseline = np.stack(columns, axis=-1)

  def loss(scores, pairs):
    log_pi = scores['policy'].left
    return plain(scores, pairs) + jnp.sum(log_pi * baseline, axis=-1, keepdims=True)

  for one, other in zip(at_some_logits(name, loss), at_some_logits(name, plain), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-15)


def test_additive_payoff_makes_the_opponent_irrelevant():
  reward = np.random.default_rng(0).normal(size=18) / 8
  game, logits = tabular.make('S', TAU, reward[:, None] - reward), tabular.some_logits('S')
  own = dialogues.occupancy(game, tabular.normalised(logits))
  loss, slots = policy_gradient(reference=TAU), {'reference': game.log_reference}
  found = [
    slope(loss, 'S', logits, slots, own, other, game.payoff)
    for other in (own, dialogues.occupancy(game, game.log_reference))
  ]
  for one, other in zip(*found, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-15)


def plan_matrix(shared):
  """Mean payoffs of the 27 plans (a, b after 0, b after 1); one uniform for both users or two."""
  payoff = np.asarray(tabular.make('S', TAU).payoff).reshape(3, 2, 3, 3, 2, 3)
  plans, matrix = list(np.ndindex(3, 3, 3)), np.zeros((27, 27))
  for one, (a, *b) in enumerate(plans):
    for two, (c, *d) in enumerate(plans):
      p, q = tabular.SAYS_ONE[[a, c]]
      together = min(p, q) if shared else p * q
      chance = np.array([[1 - p - q + together, q - together], [p - together, together]])
      matrix[one, two] = sum(
        chance[u, v] * payoff[a, u, b[u], c, v, d[v]] for u, v in np.ndindex(2, 2)
      )
  return matrix


def test_shared_chance_is_another_game():
  apart, shared = plan_matrix(False), plan_matrix(True)
  for matrix in (apart, shared):
    np.testing.assert_allclose(matrix, -matrix.T, atol=1e-15)
  np.testing.assert_allclose(abs(apart - shared).max(), 0.1688, atol=5e-5)


# --- Rest ---


@functools.cache
def rest(name, beta=0.0):
  """The game, the best response to its own mixture per turn, and the mixture.

  With beta = 0 both are the equilibrium.
  """
  game = tabular.make(name, TAU)

  @tiny.jit
  def run(start):
    def one(_, log_pi):
      mixture = dialogues.geometric_mixture(log_pi, game.log_reference, beta)
      return dialogues.mirror_step(game, log_pi, mixture, 1.0)

    log_pi = lax.fori_loop(0, 600, one, start)
    return log_pi, dialogues.geometric_mixture(log_pi, game.log_reference, beta)

  return game, *run(game.log_reference)


def slots_at_rest(game, log_pi):
  moving = ('snapshot', 'centre', 'average', 'ahead', 'history_1', 'history_2')
  fixed = dict.fromkeys(('reference', 'magnet'), game.log_reference)
  return fixed | dict.fromkeys(moving, log_pi)


# Algorithms whose rest is the equilibrium at TAU, and those that play without a price.
PRICED = {
  'self_play': catalogue.self_play(TAU),
  'nash_ema_pg': catalogue.nash_ema_pg(0.1, TAU),
  'clipped_self_play': catalogue.clipped_self_play(TAU, 0.2, 1),
  'mpo': catalogue.mpo(TAU, 2.0, 1, 10**9),
  'nash_prox': catalogue.nash_prox(TAU, 2.0, 0.1),
  'online_ipo': catalogue.online_ipo(TAU),
  'egpo': catalogue.egpo(TAU, temperature=1.0),
  'inpo': catalogue.inpo(TAU, 1.0, 1),
  'comal': catalogue.comal(TAU, 1.0, 1, 10**9),
}
FREE = {
  'self_play': catalogue.self_play(0.0),
  'rebel': catalogue.rebel(1.0, 1),
  'onpo': catalogue.onpo(1.0, 1),
  'omwu': catalogue.omwu(1.0, 1),
}


def payoff_at_rest(name):
  """A game that the equilibrium of `name` solves without a price: A - TAU (rho - rho')."""
  game, log_pi, _ = rest(name)
  assert dialogues.dialogue_exploitability(game, log_pi) < 1e-18
  spent = TAU * jnp.sum(table(name, log_pi) - table(name, game.log_reference), axis=-1)
  return game.payoff - (spent[:, None] - spent)


def slope_at_rest(name, algorithm, payoff):
  game, log_pi, _ = rest(name)
  slots, occupied = slots_at_rest(game, log_pi), dialogues.occupancy(game, log_pi)
  if len(algorithm.left) == 2:
    # Of two left conversations each is measured against others; in the mean, against the policy.
    gains = payoff @ occupied
    payoff = gains[:, None] - gains
  return slope(algorithm.loss, name, log_pi, slots, occupied, occupied, payoff)


@pytest.mark.parametrize('name', ['D', 'S'])
@pytest.mark.parametrize('kind', ['priced', 'free'])
def test_algorithms_rest_at_the_equilibrium(name, kind):
  algorithms = PRICED if kind == 'priced' else FREE
  payoff = rest(name)[0].payoff if kind == 'priced' else payoff_at_rest(name)
  for label, algorithm in algorithms.items():
    check_conversations(algorithm)
    for leaf in slope_at_rest(name, algorithm, payoff):
      np.testing.assert_allclose(leaf, 0, atol=2e-12, err_msg=label)


@functools.cache
def fit_to_fixed_pairs(name, tau):
  """IPO on all pairs of conversations of the reference: the game, the best response and the fit.

  By Gauss and Newton: the loss is the variance of rho - u / tau over the data.
  """
  game = tabular.make(name, tau)
  occupied = dialogues.occupancy(game, game.log_reference)
  best = dialogues.dialogue_best_response(game, game.log_reference)
  start, unflatten = ravel_pytree(best)
  target = game.payoff @ occupied / tau + table(name, game.log_reference).sum(-1)

  def residual(x):
    left = table(name, tabular.normalised(unflatten(x))).sum(-1) - target
    return jnp.sqrt(occupied) * (left - occupied @ left)

  def step(_, x):
    return x - jnp.linalg.lstsq(jax.jacobian(residual)(x), residual(x))[0]

  found = unflatten(tiny.jit(lambda x: lax.fori_loop(0, 40, step, x))(start))
  loss, slots = catalogue.ipo(tau).loss, {'reference': game.log_reference}
  left = slope(loss, name, found, slots, occupied, occupied, game.payoff)
  return game, best, tabular.normalised(found), max(abs(leaf).max() for leaf in left)


def test_fits_to_fixed_data_are_right_for_certain_users_only():
  _, best, found, _ = fit_to_fixed_pairs('D', TAU)
  for one, other in zip(found, best, strict=True):
    np.testing.assert_allclose(jnp.exp(one), jnp.exp(other), atol=1e-14)
  lost = {}
  for tau in (TAU, 0.02):
    game, best, found, slope_left = fit_to_fixed_pairs('S', tau)
    assert slope_left < 1e-12
    gains = dialogues.conversation_gains(game, game.log_reference)
    values = [dialogues.turn_values(game, log_pi, gains).v[0][0] for log_pi in (best, found)]
    lost[tau] = values[0] - values[1]
    if tau == TAU:
      tabular.close(jnp.exp(found[0][0]), (0.40204705, 0.30100531, 0.29694765))
      tabular.close(jnp.exp(best[0][0]), (0.41099943, 0.29924195, 0.28975862))
      tabular.close(jnp.exp(found[1][5]), (0.0441, 0.1103, 0.8456), 4)
      tabular.close(jnp.exp(best[1][5]), (0.1674, 0.4185, 0.4140), 4)
  tabular.close(lost[TAU], 0.00219937)
  tabular.close(lost[0.02], 0.00089751)


def test_samples_of_a_mixture_bias_a_fit_for_random_users_only():
  steepest = {}
  for name in ('D', 'S'):
    game, log_pi, mixture = rest(name, beta=0.125)
    sampled = dialogues.occupancy(game, mixture)
    loss, slots = catalogue.ipo_md(0.125, TAU).loss, {'reference': game.log_reference}
    found = slope(loss, name, log_pi, slots, sampled, sampled, game.payoff)
    steepest[name] = max(float(abs(leaf).max()) for leaf in found)
  assert steepest['D'] < 1e-12
  assert steepest['S'] > 1e-4


REFUSED = {
  'ipo': (catalogue.ipo(TAU), 'samples that are not of the policy'),
  'spin': (catalogue.spin(1.0, 1), 'samples that are not of the policy'),
  'sft': (catalogue.sft(), 'samples that are not of the policy'),
  'ipo_md': (catalogue.ipo_md(0.125, TAU), 'samples that are not of the policy'),
  'egpo': (catalogue.egpo(TAU, 2.0), 'samples that are not of the policy'),
  'xpo': (catalogue.xpo(0.1, 1.0), 'samples that are not of the policy'),
  'online_dpo': (catalogue.online_dpo(1.0), 'not linear in the payoff'),
  'chi_self_play': (catalogue.chi_self_play(TAU), 'not linear in the payoff'),
  'dno': (catalogue.dno(1.0, 1), 'not linear in the payoff'),
  'standardised': (catalogue.standardised_self_play(TAU, 3), 'not linear in the payoff'),
  'sppo': (catalogue.sppo(1.0, 2, 1, 0.5), 'chooses among conversations'),
  'gpo': (catalogue.gpo(1.0, 2, 1), 'chooses among conversations'),
  'oelhf': (catalogue.oelhf(TAU, 2), 'chooses among conversations'),
  'rso_hinge': (catalogue.rso_hinge(1.0, 1.0, 4, 2), 'chooses among conversations'),
  'nash_rejection': (catalogue.nash_rejection(TAU, 2, 2), 'chooses among conversations'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_biased_algorithms_are_refused_with_the_reason(name):
  algorithm, reason = REFUSED[name]
  with pytest.raises(UserError, match=reason):
    check_conversations(algorithm)


def test_weights_by_payoff_choose_the_user_s_replies():
  """mu exp(u / tau) / Z over conversations is no policy's distribution where replies are random."""
  game = tabular.make('S', TAU)
  gains = dialogues.conversation_gains(game, game.log_reference)
  weighed = np.asarray(dialogues.occupancy(game, game.log_reference) * jnp.exp(gains / TAU))
  replies = weighed.reshape(3, 2, 3).sum(axis=2)
  assert abs(replies / replies.sum(axis=1, keepdims=True) - USER).max() > 0.01


def test_a_nonlinear_loss_does_not_rest_at_the_equilibrium():
  payoff = payoff_at_rest('S')
  found = slope_at_rest('S', catalogue.dno(1.0, 1), 20 * payoff)
  assert max(float(abs(leaf).max()) for leaf in found) > 1e-5
  for leaf in slope_at_rest('D', catalogue.dno(1.0, 1), 20 * payoff_at_rest('D')):
    np.testing.assert_allclose(leaf, 0, atol=1e-14)
