"""Protocol E5, rewards as games, and rates of the classes with few numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.learning import protocols, votes, worlds
from nlhf_jax.learning.links import log_odds, probability
from nlhf_jax.learning.rates import interval, slopes
from nlhf_jax.learning.setting import equilibrium, one_prompt

pytestmark = pytest.mark.usefixtures('float64')

SEEDS = 100


def keys():
  return jax.random.split(jax.random.key(0), SEEDS)


def ends(gaps):
  """Both ends of the 95 % interval."""
  mean, half = interval(gaps)
  return np.asarray(mean - half), np.asarray(mean + half)


def test_pessimism_pays_where_little_is_covered_and_tau_is_small():
  """Protocol E5: a star of eight, beta = 1, at 100, 1,000 and 10,000 votes.

  Pairs without the star almost uncovered: at tau = 0.02 the bonus is ahead of plug-in at 100 and
  1,000 votes, at 0.3 far behind it. With all pairs covered it is behind by less than half.
  """
  world, samples = worlds.star(8), np.array([1e2, 1e3, 1e4])

  @jax.jit
  def program(tau, others, keys):
    setting = one_prompt(worlds.skewed(8, 0.0), tau)
    learn = partial(protocols.learn_offline, world, probability(), setting, others)
    return jax.vmap(partial(learn, 1.0, 30, samples))(keys)

  cheap, dear = (program(tau, 1e-3, keys()) for tau in (0.02, 0.3))
  assert (ends(cheap.bonus)[1] < ends(cheap.plug_in)[0])[:2].all()
  assert (ends(dear.bonus)[0] > 5 * ends(dear.plug_in)[1]).all()
  covered = program(0.3, 1.0, keys())
  ratio = covered.bonus.mean(axis=0) / covered.plug_in.mean(axis=0)
  assert ((ratio > 1) & (ratio < 1.6)).all()
  # The version space charges less than the bonus, which adds up over all pairs.
  assert (dear.version_space.mean(axis=0) < dear.bonus.mean(axis=0)).all()


def test_under_bradley_terry_the_equilibrium_is_the_best_reward():
  """In log-odds: exactly so for a fitted reward, and at rate 1 / n for the true one."""
  world, link = worlds.bradley_terry(5), log_odds()
  setting = one_prompt(worlds.skewed(5, 0.5), 0.3)
  truth = world.draw(jax.random.key(1))
  counts = jnp.round(400 * votes.evenly(setting))
  fitted = world.members.estimate(votes.vote(jax.random.key(2), truth, counts))
  reward = link.payoff(fitted)[:, :, -1]
  best = jax.nn.log_softmax(setting.log_reference + reward / setting.tau)
  np.testing.assert_allclose(equilibrium(setting, link.payoff(fitted)), best, atol=1e-10)
  samples = np.array([1e4, 1e5, 1e6])
  learn = partial(protocols.learn_rewards, world, setting, samples)
  found = jax.jit(jax.vmap(learn))(keys())
  for gaps in found:
    assert (abs(slopes(samples, gaps.mean(axis=0)) + 1) < 0.15).all()
  # Four numbers are learnt sooner than ten.
  assert (ends(found.fitted)[1] < ends(found.tabular)[0]).all()


@pytest.mark.parametrize('make', [partial(worlds.bilinear, rank=3), worlds.listed])
def test_small_classes_learn_sooner(make):
  """The plug-in identity holds for every class; three numbers, or one of fifty, need fewer votes
  than 28: 95 % intervals of gaps are below those of the class of all preferences."""
  world, every = make(8), worlds.anything(8)
  setting, samples = one_prompt(worlds.skewed(8, 0.5), 0.1), np.array([1e3, 1e5])
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
