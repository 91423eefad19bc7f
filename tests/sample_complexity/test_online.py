"""Enhancers, and the chain of inequalities of online learning, round by round."""

from functools import cache
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.games import matrices
from nlhf_jax.sample_complexity import online, worlds
from nlhf_jax.sample_complexity.links import probability
from nlhf_jax.sample_complexity.protocols import STRATEGIES, learn_online
from nlhf_jax.sample_complexity.setting import single_prompt
from nlhf_jax.sample_complexity.unstructured import tabular

pytestmark = pytest.mark.usefixtures('float64')

LINK = probability()
ROUNDS, SEEDS = 80, 100


def played(world, actions):
  """A function that runs all seeds with a strategy and a tau, compiled and run once."""

  @jax.jit
  def run(tau, strategy):
    setting = single_prompt(worlds.geometric_reference(actions, 2.0), tau)

    def one(key):
      course = learn_online(
        *(world, LINK, setting, strategy), beta=1.0, responses=4, batch=50, rounds=ROUNDS, key=key
      )
      return course, world.members.potential(course.expected_counts)

    return jax.vmap(one)(jax.random.split(jax.random.key(0), SEEDS))

  return cache(lambda tau, name: jax.device_get(run(tau, STRATEGIES.index(name))))


@pytest.fixture(scope='module')
def anything():
  with jax.enable_x64(True):
    return played(worlds.anything(8), 8)


def check_chain(course, potential, exploring):
  """Without any tolerance but rounding: every round, every seed."""
  roots = np.sqrt(course.error)
  assert (course.gap <= roots * course.reply_width * (1 + 1e-9) + 1e-15).all()
  sums = np.minimum(1, course.expected_width**2).sum(axis=1)
  assert (sums <= potential).all()
  assert (sums > 0).any() or not exploring
  if exploring:
    assert (course.reply_width <= course.width * (1 + 1e-9)).all()
    rms = np.sqrt((course.error).mean(axis=1) * (course.width**2).mean(axis=1))
    assert (course.gap.min(axis=1) <= rms).all()


@pytest.mark.parametrize('tau', [0.3, 0.03])
def test_error_bounds_and_eluder_sum_hold(anything, tau):
  """G <= sqrt(error) Gamma(pi, reply) <= sqrt(error) Gamma(pi, enhancer), and the sum of
  min(1, Gamma^2) <= 2 sum log(1 + n / ridge) by expected counts, in 100 seeds of 80 rounds."""
  for name in STRATEGIES:
    course, potential = anything(tau, name)
    check_chain(course, potential, exploring=name == 'information')
    if name == 'self-play':
      assert course.width.max() < 1e-12  # a policy against itself is not informative


@pytest.mark.slow
@pytest.mark.parametrize('make', [worlds.bilinear, worlds.listed])
def test_error_bounds_hold_for_the_other_classes(make):
  run = played(make(5), 5)
  for name in ('information', 'reference'):
    check_chain(*run(0.1, name), exploring=name == 'information')


def test_exploration_helps_at_low_tau(anything):
  """Protocol E4, over 100 seeds and after 40 rounds and 80: mean gaps, whose 95 % intervals part.

  | tau  | informative     | optimistic      | self-play       | reference       | best of 4       |
  |------|-----------------|-----------------|-----------------|-----------------|-----------------|
  | 0.3  | 2.2e-4 / 1.1e-4 | 2.0e-4 / 1.1e-4 | 2.8e-4 / 1.6e-4 | 2.9e-4 / 1.7e-4 | 2.9e-4 / 1.8e-4 |
  | 0.03 | 5.3e-3 / 2.7e-3 | 2.4e-3 / 1.3e-3 | 2.1e-2 / 1.6e-2 | 1.6e-2 / 1.2e-2 | 2.2e-2 / 1.8e-2 |

  At 0.03 both enhancers are ahead of all others, and the optimistic one of the informative; at 0.3
  the optimistic one is, and the informative is worst at first.
  """

  def ends(tau, name):
    gaps = anything(tau, name)[0].gap
    mean, half = gaps.mean(axis=0), 1.96 * gaps.std(axis=0, ddof=1) / np.sqrt(SEEDS)
    return (mean - half)[[39, 79]], (mean + half)[[39, 79]]

  others = ('self-play', 'reference', 'best of n')
  for name in others:
    assert (ends(0.03, 'information')[1] < ends(0.03, name)[0]).all(), name
    assert (ends(0.3, 'optimistic')[1] < ends(0.3, name)[0])[1], name
  assert (ends(0.03, 'optimistic')[1] < ends(0.03, 'information')[0]).all()
  early = {name: anything(0.3, name)[0].gap[:, 3].mean() for name in STRATEGIES}
  assert max(early, key=early.get) == 'information'


def test_best_of_n_has_the_right_distribution():
  """Against all 3^4 outcomes."""
  estimate = 0.5 + jnp.asarray(matrices.random(3, 5, (1,)))
  log_pi = jnp.log(jnp.array([[0.5, 0.2, 0.3]]))
  found = np.exp(online.best_of_enhancer(LINK, 4)(estimate, jnp.zeros((1, 3, 3)), log_pi))[0]
  pi, score = np.exp(log_pi[0]), np.asarray((estimate[0] - 0.5) @ jnp.exp(log_pi[0]))
  law = np.zeros(3)
  for draws in product(range(3), repeat=4):
    law[max(draws, key=lambda a: score[a])] += np.prod(pi[list(draws)])
  np.testing.assert_allclose(found, law, rtol=1e-12)
  # Without votes all actions tie, and the best of n has the policy's distribution.
  even = online.best_of_enhancer(LINK, 4)(jnp.full((1, 3, 3), 0.5), jnp.zeros((1, 3, 3)), log_pi)
  np.testing.assert_allclose(even, log_pi, atol=1e-14)


def test_optimistic_enhancer_is_an_optimistic_best_response():
  """No policy of a grid has less E[P - beta Gamma] + tau KL."""
  members, setting = tabular(1.0), single_prompt(jnp.log(jnp.array([0.5, 0.3, 0.2])), 0.1)
  estimate = 0.5 + jnp.asarray(matrices.random(3, 5, (1,)))
  counts = jnp.array([[[0, 9.0, 1], [9, 0, 4], [1, 4, 0]]])
  log_pi = jnp.log(jnp.array([[0.5, 0.2, 0.3]]))
  log_q = online.optimistic_enhancer(members, setting, LINK, 0.8)(estimate, counts, log_pi)[0]
  payoff = np.asarray(estimate - 0.8 * members.bonus(estimate, counts))[0]

  def cost(q):
    far = (q * (np.log(np.maximum(q, 1e-300)) - np.asarray(setting.log_reference[0]))).sum()
    return np.exp(log_pi[0]) @ payoff @ q + 0.1 * far

  grid = [cost(np.array([i, j, 20 - i - j]) / 20) for i in range(21) for j in range(21 - i)]
  assert cost(np.exp(log_q)) <= min(grid)
