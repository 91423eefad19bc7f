"""Commit and answer: closed forms, gradients, time scales and refinement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nlhf_jax.games import asymmetric, choice, exact, stackelberg
from nlhf_jax.games.game import Game, kl
from nlhf_jax.games.stackelberg import Commitment, StackelbergGame

pytestmark = pytest.mark.usefixtures('float64')

CYCLE = np.array([[0, -0.2, 0.3], [0.2, 0, -0.4], [-0.3, 0.4, 0]])
REFERENCE = np.array([0.2, 0.5, 0.3])
LOGITS = ([0.3, -0.2, 0.5], [[0.1, -0.3, 0.2], [0, 0.4, -0.1], [-0.2, 0.2, 0.3]])


def make(leader_tau=0.1, follower_tau=0.1, payoff=CYCLE):
  log = jnp.log(jnp.asarray(REFERENCE))
  taus = map(jnp.asarray, (leader_tau, follower_tau))
  return StackelbergGame(jnp.asarray(payoff), log, jnp.broadcast_to(log, (3, 3)), *taus)


def close(found, printed):
  np.testing.assert_allclose(found, printed, atol=0.51e-8, rtol=0)


def some_logits():
  return Commitment(*map(jnp.asarray, LOGITS))


def some_pair():
  return Commitment(*map(jax.nn.log_softmax, some_logits()))


ROWS = {
  (0.1, 0.1): (
    (0.34087957, 0.19706260, 0.46205783),
    (-0.18966122, -0.26866198),
    (0.51248746, 0.17452224, 0.31299031),
    0.00658508,
  ),
  (0.1, 0.02): (
    (0.49078810, 0.18391468, 0.32529721),
    (-0.27590693, -0.26931083),
    (0.52906531, 0.17899651, 0.29193818),
    0.00032938,
  ),
  (0.02, 0.1): (
    (0.52478701, 0.00086744, 0.47434555),
    (-0.15563353, -0.23065432),
    (0.98338050, 0.00011529, 0.01650421),
    0.01123815,
  ),
  (0.02, 0.02): (
    (0.97517505, 0.00018447, 0.02464048),
    (-0.21782341, -0.20249740),
    (0.98988473, 0.00011233, 0.01000294),
    0.00011493,
  ),
}


@pytest.mark.parametrize('taus', ROWS)
def test_saddle_point_has_the_printed_digits(taus):
  game, (leader, values, wrong, loss) = make(*taus), ROWS[taus]
  pair = stackelberg.commitment(game)
  close(np.exp(pair.leader), leader)
  payoff = np.exp(pair.leader) @ stackelberg.payoff_reward(game, pair.follower)
  close((stackelberg.commitment_value(game), payoff), values)
  fed = stackelberg.best_leader(game, stackelberg.payoff_reward(game, pair.follower))
  close(np.exp(fed), wrong)
  close(game.leader_tau * kl(fed, pair.leader), loss)


def test_which_side_wins_changes_nothing():
  """P(y > y') and 1 - P(y' > y) are one game, of both players and of the losses of SRPO."""
  game = make(0.1, 0.03)
  win = CYCLE + 0.5
  swapped = make(0.1, 0.03, (1 - win.T) - 0.5)
  for found, other in zip(
    stackelberg.commitment(game), stackelberg.commitment(swapped), strict=True
  ):
    np.testing.assert_allclose(found, other, atol=1e-14)
  found, other = (stackelberg.srpo_residuals(it, some_pair()) for it in (game, swapped))
  for one, same in zip(found, other, strict=True):
    np.testing.assert_allclose(one, same, atol=1e-15)


def test_follower_has_the_printed_digits():
  game = make()
  close(stackelberg.follower_values(game), (-0.13634003, -0.28276989, -0.14647046))
  rows = (
    (0.05115791, 0.94502159, 0.00382050),
    (0.00160098, 0.02957440, 0.96882461),
    (0.92853933, 0.00211680, 0.06934388),
  )
  follower = stackelberg.best_follower(game)
  close(np.exp(follower), rows)
  close(stackelberg.payoff_reward(game, follower), (-0.18785817, -0.38720965, -0.27771508))
  copying = jnp.log(0.5 * jnp.eye(3) + 0.5 * REFERENCE)
  other = game._replace(log_follower_reference=copying)
  close(stackelberg.follower_values(other), (-0.08980176, -0.21920173, -0.09795031))
  close(stackelberg.commitment_value(other), -0.13864136)


def test_objective_is_the_value_less_what_both_lose():
  game, pair, best = make(0.1, 0.03), some_pair(), stackelberg.commitment(make(0.1, 0.03))
  lost = game.follower_tau * jnp.exp(pair.leader) @ jax.vmap(kl)(pair.follower, best.follower)
  value = stackelberg.commitment_value(game)
  right = value - game.leader_tau * kl(pair.leader, best.leader) + lost
  np.testing.assert_allclose(stackelberg.commitment_objective(game, pair), right, atol=1e-15)
  close(stackelberg.commitment_objective(make(), some_pair()), 0.03570021)
  answered = some_pair()._replace(follower=stackelberg.best_follower(make()))
  close(stackelberg.commitment_objective(make(), answered), -0.18986009)


def test_leader_bracket_is_constant_at_the_best_follower():
  game, follower = make(), stackelberg.best_follower(make())
  bracket = CYCLE + game.follower_tau * (follower - game.log_follower_reference)
  values = stackelberg.follower_values(game)[:, None]
  np.testing.assert_allclose(bracket, np.broadcast_to(values, (3, 3)), atol=1e-15)


def test_gradients_have_the_printed_digits():
  game, start = make(), some_logits()

  def moved(logits, reward=stackelberg.regularised_reward):
    after = stackelberg.two_time_scale_step(game, logits, 1.0, 1.0, reward)
    return jax.tree.map(lambda new, old: new - old, after, logits)

  ascent = moved(start)
  close(ascent.leader, (-0.00234374, 0.00081259, 0.00153115))
  follower = (
    (0.00346551, 0.03064512, -0.03411063),
    (-0.01792121, -0.00303195, 0.02095316),
    (0.03722115, -0.04536846, 0.00814731),
  )
  close(ascent.follower, follower)
  released = moved(start, stackelberg.payoff_reward).leader
  close(released, (-0.00494524, 0.00189074, 0.00305450))
  answered = start._replace(follower=stackelberg.best_follower(game))
  close(moved(answered).leader, (-0.00122673, -0.00177371, 0.00300044))


def steps_to_solve(taus, kappa, limit=40_000, reward=stackelberg.regularised_reward):
  game = make(*taus)
  best = stackelberg.commitment(game).leader

  @jax.jit
  def run(kappa):
    def unsolved(carry):
      logits, steps = carry
      return (steps < limit) & (kl(best, jax.nn.log_softmax(logits.leader)) >= 1e-4)

    def one(carry):
      logits, steps = carry
      return stackelberg.two_time_scale_step(game, logits, 1.0, kappa, reward), steps + 1

    start = Commitment(game.log_leader_reference, game.log_follower_reference)
    logits, steps = lax.while_loop(unsolved, one, (start, jnp.int32(0)))
    return steps, kl(best, jax.nn.log_softmax(logits.leader))

  return run(kappa)


@pytest.mark.parametrize(('kappa', 'steps'), [(1.0, 262), (5.0, 136), (25.0, 135)])
def test_faster_follower_saves_steps(kappa, steps):
  assert abs(int(steps_to_solve((0.1, 0.1), kappa)[0]) - steps) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(('kappa', 'steps'), [(1.0, 29_220), (5.0, 25_087), (25.0, 24_538)])
def test_small_price_of_the_leader_takes_long(kappa, steps):
  assert abs(int(steps_to_solve((0.02, 0.1), kappa)[0]) - steps) <= 1


def test_released_reward_never_reaches_the_saddle_point():
  steps, distance = steps_to_solve((0.1, 0.1), 5.0, 4000, stackelberg.payoff_reward)
  assert steps == 4000
  np.testing.assert_allclose(distance, 0.0649, atol=2e-4)


def test_refinement_wins_once_and_then_rotates():
  game = make()
  printed = (0.26866198, -0.26308814, -0.03948326, 0.22241672, -0.19022542, -0.06210607)
  close(stackelberg.refinement_payoffs(game, stackelberg.commitment(game), 6), printed)


@pytest.mark.parametrize('taus', [(0.1, 0.05), (0.05, 0.1)])
def test_additive_payoff_gives_the_rlhf_optimum(taus):
  reward = np.array([0.2, -0.1, 0.05])
  game = make(*taus, reward[:, None] - reward)
  pair = stackelberg.commitment(game)
  rlhf = jax.nn.log_softmax(game.log_leader_reference + reward / game.leader_tau)
  np.testing.assert_allclose(pair.leader, rlhf, atol=1e-13)
  rounds = np.asarray(stackelberg.refinement_payoffs(game, pair, 3))
  np.testing.assert_allclose(rounds[1:], rounds[0], atol=1e-15)
  assert (rounds[0] > 0) == (taus[1] < taus[0])


def test_blind_follower_makes_the_nash_equilibrium():
  log, tau = jnp.log(jnp.asarray(REFERENCE)), jnp.asarray(0.1)
  blind = asymmetric.equilibrium(asymmetric.AsymmetricGame(jnp.asarray(CYCLE), log, log, tau))
  nash = exact.equilibrium(Game(jnp.asarray(CYCLE), log, tau), tolerance=1e-18).policy
  close(nash, (0.36413209, 0.28436088, 0.35150703))
  np.testing.assert_allclose(np.exp(blind.pair.left), nash, atol=1e-6)


def test_small_prices_choose_the_smallest_worst_defeat():
  game = make(1e-3, 1e-3)
  leader = np.exp(stackelberg.commitment(game).leader)
  assert leader.argmax() == choice.worst_defeats(CYCLE).argmin() == 0
  assert leader[0] > 0.999
  values = stackelberg.follower_values(game)
  np.testing.assert_allclose(values, -choice.worst_defeats(CYCLE), atol=2e-3)


@pytest.mark.parametrize('tau', [0.02, 0.1, 1.0])
def test_seeing_the_response_only_helps_the_follower(tau):
  assert stackelberg.commitment_value(make(tau, tau)) <= 0


def test_srpo_residuals_vanish_at_the_saddle_point_alone():
  game = make()
  for residual in stackelberg.srpo_residuals(game, stackelberg.commitment(game)):
    np.testing.assert_allclose(residual, 0, atol=1e-14)
  for residual in stackelberg.srpo_residuals(game, some_pair()):
    assert abs(residual).max() > 0.01
