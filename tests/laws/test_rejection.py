"""RSO: accepted responses are distributed as mu exp(r / beta), and fixed points of its losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from scipy.special import logit, softmax

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.selection import unchanged
from nlhf_jax.structs import Comparison, Responses
from nlhf_jax.training.update import initial_state, make_update
from tests.laws import exact, theory, tiny

pytestmark = pytest.mark.usefixtures('float64')

BETA, GAMMA, CANDIDATES, PROMPTS = 0.7, 0.7, 24, 6000
ROW = catalogue.rso(BETA, GAMMA, CANDIDATES, keep=2)
MU = np.array([0.3, 0.4, 0.3])


@functools.cache
def kept():
  """The selection of the algorithm from samples of MU in the cyclic game."""
  draws = np.random.default_rng(0).choice(3, (PROMPTS, 1 + CANDIDATES, 1), p=MU)
  samples = Responses(jnp.asarray(draws), jnp.ones(draws.shape, bool))
  payoff = jnp.asarray(exact.CYCLE - 0.5)[draws, draws.swapaxes(1, 2)]
  key = jax.random.key(0)
  select = tiny.jit(lambda payoff: ROW.select(Comparison(None, samples, samples, payoff), key))
  return jax.tree.map(np.array, select(payoff))


def pairs(beta):
  """Chances of pairs from mu exp(r / beta) / Z, r the log-odds against a baseline that mu drew."""
  tilted = softmax(np.log(MU)[:, None] + logit(exact.CYCLE) / beta, axis=0)
  return np.einsum('b,ib,jb->ij', MU, tilted, tilted)


def test_kept_responses_are_tilted_by_the_reward():
  places = kept().left.tokens[..., 0]
  counts = np.zeros((3, 3))
  np.add.at(counts, (places[:, 0], places[:, 1]), 1)
  expected = pairs(BETA)
  error = np.sqrt(expected * (1 - expected) / PROMPTS)
  assert (abs(counts / PROMPTS - expected) < 4.5 * error).all()
  assert (abs(np.outer(MU, MU) - expected) > 9 * error).sum() > 4  # distinguishable from no tilt
  payoff = exact.CYCLE[places[:, :, None], places[:, None, :]] - 0.5
  np.testing.assert_array_equal(kept().payoff, payoff)


def descend(algorithm, comparison, rate, steps, start):
  update = make_update(algorithm, exact.make_score(), exact.natural(rate), lambda *_: {})
  state = initial_state(algorithm, jnp.log(start), exact.natural(rate))

  @tiny.jit
  def run(state, comparison):
    step = lambda state, _: (update(state, comparison, jax.random.key(0))[0], None)
    return lax.scan(step, state, length=steps)[0]

  return np.array(jax.nn.softmax(run(state, comparison).params['policy']))


def test_rso_converges_like_dpo_on_tilted_pairs():
  selected = jax.tree.map(jnp.asarray, kept())
  pi = descend(ROW._replace(select=unchanged), selected, 2.0, 300, MU)
  dpo = theory.of_data(theory.sigmoids(GAMMA))
  np.testing.assert_allclose(pi, dpo(exact.CYCLE, MU, pairs(BETA)), atol=0.02)
  assert abs(pi - dpo(exact.CYCLE, MU, np.outer(MU, MU))).max() > 0.1


def test_rso_under_rewards_ignores_the_selection():
  find_fixed_point = exact.make_find_fixed_point(
    catalogue.rso(0.5, 0.7, 2, 2), exact.natural(0.5), 2000
  )
  rewards = np.array([0, np.log(9), np.log(2)])
  pi = np.exp(find_fixed_point(exact.BRADLEY_TERRY)['policy'])
  np.testing.assert_allclose(pi, softmax(np.log(exact.MU) + rewards / 0.7), rtol=0, atol=1e-9)


@pytest.mark.parametrize('preference', [0.6, 0.9])
def test_rso_hinge_converges_to_its_margin(preference):
  game = np.array([[0.5, preference], [1 - preference, 0.5]])
  mu, gamma, rate = np.array([0.3, 0.7]), 0.5, 0.02
  run = exact.make_run(catalogue.rso_hinge(0.5, gamma, 2, 2), optax.sgd(rate), 20000)
  path, _ = run(game, mu)
  lead = path[-100:] - np.log(mu)
  # It goes to and fro about the kink.
  np.testing.assert_allclose(lead[:, 0] - lead[:, 1], 1 / gamma, rtol=0, atol=2 * rate)
