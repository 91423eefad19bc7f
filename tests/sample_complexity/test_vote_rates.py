"""The plug-in equilibrium: its gap as an identity, and to leading order in the number of votes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.games import matrices
from nlhf_jax.sample_complexity import rates, votes
from nlhf_jax.sample_complexity.links import log_odds, probability
from nlhf_jax.sample_complexity.setting import Setting, equilibrium, gap, sum_over_pairs
from nlhf_jax.sample_complexity.unstructured import tabular

pytestmark = pytest.mark.usefixtures('float64')

K, SEEDS = 6, 1000
SAMPLES = np.array([1e3, 1e4, 1e5, 1e7, 1e8])


def single(tau):
  """A game whose unregularised equilibrium plays five of six actions."""
  reference = jnp.log(np.random.default_rng(0).dirichlet(np.full(K, 5.0), 1))
  preference = 0.5 + jnp.asarray(matrices.random(K, 3, (1,)))
  return Setting(jnp.ones(1), reference, jnp.asarray(tau)), preference


def plug_in(link, members, setting, preference, counts, key):
  """Gap, identity and bound of the equilibrium of the estimate."""
  estimated = link.payoff(members.estimate(votes.sample_wins(key, preference, counts)))
  payoff, log_pi = link.payoff(preference), equilibrium(setting, estimated)
  return (
    gap(setting, payoff, log_pi),
    rates.plug_in_gap(setting, payoff, estimated, log_pi),
    plug_in_bound(setting, payoff, estimated, log_pi),
  )


@jax.jit
def learnt(setting, preference, key):
  """Over seeds and sample sizes, [S, R], pairs meeting alike; and the constant of each size."""
  link, design = probability(), votes.uniform_design(setting)

  def one(key, samples):
    return plug_in(link, tabular(0.0), setting, preference, jnp.round(samples * design), key)

  def constant(samples):
    return rates.expected_gap(setting, link, preference, jnp.round(samples * design), nash)

  nash = equilibrium(setting, link.payoff(preference))
  found = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(jax.random.split(key, SEEDS), SAMPLES)
  return found, jax.vmap(constant)(SAMPLES)


def plug_in_bound(setting, payoff, estimated, log_pi):
  """min(|Z|^2 / (2 tau), max Z) in the largest entry: one over n, and before that its root."""
  z = jnp.einsum('xab,xb->xa', payoff - estimated, jnp.exp(log_pi))
  bounds = jnp.minimum(abs(z).max(axis=1) ** 2 / (2 * setting.tau), z.max(axis=1))
  return setting.prompts @ bounds


@pytest.mark.parametrize('tau', [0.5, 0.1, 0.02, 2e-4])
def test_the_plug_in_identity_holds_to_machine_precision(tau):
  """On gaps from 0.1 down to 1e-10: to 1e-15 absolutely, and to 1e-9 of the gap itself."""
  (gaps, identity, bound), _ = learnt(*single(tau), jax.random.key(1))
  assert abs(identity - gaps).max() < 1e-15
  np.testing.assert_allclose(identity, gaps, rtol=1e-9)
  assert ((gaps > 0) & (gaps <= bound * (1 + 1e-9))).all()


@pytest.mark.parametrize(('tau', 'least'), [(0.5, 1e3), (0.1, 1e3), (0.02, 1e4)])
def test_the_leading_constant_and_the_slope(tau, least):
  """From `least` votes on, n E[G] is within 3 standard errors of the constant, the slope of -1."""
  setting, preference = single(tau)
  (gaps, _, _), predicted = learnt(setting, preference, jax.random.key(2))
  small = least <= SAMPLES
  mean, half = (np.asarray(values)[small] for values in rates.confidence_interval(gaps))
  error = half / 1.96 / mean
  assert (error < 0.04).all()  # otherwise the test has no power
  assert (abs(mean / np.asarray(predicted)[small] - 1) <= 3 * error).all()
  spread = np.hypot(error[1:], error[:-1]) / np.diff(np.log(SAMPLES[small]))
  assert (abs(rates.log_log_slopes(SAMPLES[small], mean) + 1) < 3 * spread).all()
  # The constant in words: eta / 2 D sum_a pi_a sum_b pi_b^2 P_ab (1 - P_ab), over n.
  pi, p = np.exp(equilibrium(setting, probability().payoff(preference)))[0], preference[0]
  inner = [sum(pi[b] ** 2 * p[a, b] * p[b, a] for b in range(K) if b != a) for a in range(K)]
  constant = K * (K - 1) / 2 / (2 * tau) * (pi @ np.array(inner))
  np.testing.assert_allclose(predicted[-1] * SAMPLES[-1], constant, rtol=1e-6)


def test_slope_is_one_half_for_few_votes():
  """At tau = 2e-4 and up to 1e5 votes gaps are max Z: slopes within 0.05 of -1/2."""
  (gaps, _, _), predicted = learnt(*single(2e-4), jax.random.key(3))
  mean, _ = rates.confidence_interval(gaps)
  assert (abs(rates.log_log_slopes(SAMPLES, mean) + 0.5)[:2] < 0.05).all()
  assert (mean < predicted / 3)[:3].all()


@pytest.mark.slow
def test_leading_constant_for_log_odds_and_prompts():
  random = np.random.default_rng(5)
  prompts, reference = jnp.array([0.2, 0.5, 0.3]), jnp.log(random.dirichlet(np.ones(4), 3))
  setting = Setting(prompts, reference, jnp.asarray(0.3))
  preference = 0.5 + jnp.asarray(matrices.prompts(4, 3, seed=6))
  link, members = log_odds(), tabular(0.0)
  nash = equilibrium(setting, link.payoff(preference))
  design = votes.uniform_design(setting)
  counts = jnp.round(1e7 * design)
  one = jax.jit(jax.vmap(lambda key: plug_in(link, members, setting, preference, counts, key)))
  gaps, identity, _ = one(jax.random.split(jax.random.key(7), SEEDS))
  np.testing.assert_allclose(identity, gaps, rtol=1e-9)
  mean, half = rates.confidence_interval(gaps)
  predicted = rates.expected_gap(setting, link, preference, counts, nash)
  assert abs(mean - predicted) <= 3 * half / 1.96
  assert sum_over_pairs(design).sum() == pytest.approx(1)
