"""Protocol E5, rewards as games, and rates of the classes with few numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.sample_complexity import protocols, votes, worlds
from nlhf_jax.sample_complexity.links import log_odds, probability
from nlhf_jax.sample_complexity.rates import confidence_interval, log_log_slopes
from nlhf_jax.sample_complexity.setting import equilibrium, single_prompt

pytestmark = pytest.mark.usefixtures('float64')

SEEDS = 100


def keys():
  return jax.random.split(jax.random.key(0), SEEDS)


def ends(gaps):
  """Both ends of the 95 % interval."""
  mean, half = confidence_interval(gaps)
  return np.asarray(mean - half), np.asarray(mean + half)


@pytest.mark.slow
def test_pessimism_helps_with_low_coverage_and_tau():
  """Protocol E5: a star of eight, beta = 1, at 100, 1,000 and 10,000 votes: mean gaps.

  | pairs with the star | tau  | plug-in                  | bonus                    |
  |---------------------|------|--------------------------|--------------------------|
  | nearly all          | 0.02 | 7.0e-2 / 1.0e-2 / 2.5e-4 | 3.3e-3 / 9.5e-4 / 8.9e-4 |
  | nearly all          | 0.3  | 6.1e-3 / 5.4e-3 / 6.1e-3 | 1.2e-1 / 1.9e-1 / 1.2e-1 |
  | as all others       | 0.3  | 7.2e-3 / 1.1e-3 / 1.1e-4 | 1.1e-2 / 1.3e-3 / 1.2e-4 |

  Pessimism helps where little is covered, tau is small and votes are few, and costs elsewhere: with
  all pairs covered by less than 60 %.
  """
  world, samples = worlds.star(8), np.array([1e2, 1e3, 1e4])

  @jax.jit
  def program(tau, others, keys):
    setting = single_prompt(worlds.geometric_reference(8, 0.0), tau)
    learn = partial(protocols.learn_offline, world, probability(), setting, others)
    return jax.vmap(lambda key: learn(beta=1.0, updates=30, samples=samples, key=key))(keys)

  (cheap, _), (dear, _) = (program(tau, 1e-3, keys()) for tau in (0.02, 0.3))
  assert (ends(cheap.bonus)[1] < ends(cheap.plug_in)[0])[:2].all()
  assert ends(cheap.bonus)[0][2] > ends(cheap.plug_in)[1][2]
  assert (ends(dear.bonus)[0] > 5 * ends(dear.plug_in)[1]).all()
  covered, left = program(0.3, 1.0, keys())
  ratio = covered.bonus.mean(axis=0) / covered.plug_in.mean(axis=0)
  assert ((ratio > 1) & (ratio < 1.6)).all()
  assert max(left.plug_in.max(), left.bonus.max()) < 1e-9 < left.version_space.max()
  # The version space is less pessimistic than the bonus, which is summed over all pairs.
  assert (dear.version_space.mean(axis=0) < dear.bonus.mean(axis=0)).all()


@pytest.mark.slow
def test_bradley_terry_equilibrium_has_the_best_reward():
  """In log-odds: exactly so for a fitted reward, and at rate 1 / n for the true one."""
  world, link = worlds.bradley_terry(5), log_odds()
  setting = single_prompt(worlds.geometric_reference(5, 0.5), 0.3)
  truth = world.draw(jax.random.key(1))
  counts = jnp.round(400 * votes.uniform_design(setting))
  fitted = world.members.estimate(votes.sample_wins(jax.random.key(2), truth, counts))
  reward = link.payoff(fitted)[:, :, -1]
  best = jax.nn.log_softmax(setting.log_reference + reward / setting.tau)
  np.testing.assert_allclose(equilibrium(setting, link.payoff(fitted)), best, atol=1e-10)
  samples = np.array([1e4, 1e5, 1e6])
  learn = partial(protocols.learn_rewards, world, setting, samples)
  found = jax.jit(jax.vmap(learn))(keys())
  for gaps in found:
    assert (abs(log_log_slopes(samples, gaps.mean(axis=0)) + 1) < 0.15).all()
  # Four parameters need fewer votes than ten.
  assert (ends(found.fitted)[1] < ends(found.tabular)[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize('make', [partial(worlds.bilinear, rank=3), worlds.listed])
def test_small_classes_need_fewer_votes(make):
  """The plug-in identity holds for every class; three numbers, or one of fifty, need fewer votes
  than 28: 95 % intervals of gaps are below those of the class of all preferences."""
  world, every = make(8), worlds.anything(8)
  setting, samples = single_prompt(worlds.geometric_reference(8, 0.5), 0.1), np.array([1e3, 1e5])
  truth = world.draw(jax.random.key(3))

  @jax.jit
  def program(keys):
    return [
      jax.vmap(partial(protocols.plug_in, w, probability(), setting, truth, samples))(keys)
      for w in (world, every)
    ]

  (gaps, identity), (others, _) = program(keys())
  assert abs(gaps - identity).max() < 1e-15
  assert (ends(gaps)[1] < ends(others)[0]).all()
  assert gaps[:, 1].mean() <= gaps[:, 0].mean() / 30 + 1e-20
