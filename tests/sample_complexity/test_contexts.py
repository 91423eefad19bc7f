"""Several prompts, and payoffs in log-odds: prompts are learned independently."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.sample_complexity import offline, online, votes
from nlhf_jax.sample_complexity.linear import logistic
from nlhf_jax.sample_complexity.links import log_odds, probability
from nlhf_jax.sample_complexity.setting import Setting, gap, single_prompt
from nlhf_jax.sample_complexity.unstructured import tabular
from tests.sample_complexity.problems import (
  K,
  X,
  contexts,
  features,
  log_policies,
  preferences,
  some_counts,
  truth,
)
from tests.sample_complexity.test_online import check_chain

pytestmark = [pytest.mark.usefixtures('float64'), pytest.mark.slow]

MEMBERS = tabular(0.7)
LINKS = {'probability': probability(), 'log_odds': log_odds(3.0)}
TAUS = {'probability': 0.1, 'log_odds': 0.5}
# Probabilities minus bonuses stay within (0, 1) here, also for a pair without votes.
BETA = 0.2


def asked():
  """Votes on both prompts, and the estimate from them."""
  wins = votes.sample_wins(jax.random.key(0), preferences(3), some_counts())
  return votes.comparison_counts(wins), MEMBERS.estimate(wins)


def alone(setting, place, *arrays):
  """One of the prompts as the only one, and its part of the arrays."""
  part = slice(place, place + 1)
  return single_prompt(setting.log_reference[place], setting.tau), *(
    array[part] for array in arrays
  )


@pytest.mark.parametrize('name', LINKS)
def test_plug_in_and_bonus_treat_prompts_independently(name):
  setting, link, (counts, estimate) = contexts(TAUS[name]), LINKS[name], asked()
  payoff = link.payoff(preferences(3))

  @jax.jit
  def learn(setting, counts, estimate, payoff):
    plain = offline.plug_in(setting, link, estimate)
    charged = offline.learn_with_bonus(MEMBERS, setting, link, estimate, counts, BETA)
    return [(learnt, gap(setting, payoff, learnt.log_pi)) for learnt in (plain, charged)]

  together = learn(setting, counts, estimate, payoff)
  apart = [learn(*alone(setting, place, counts, estimate, payoff)) for place in range(X)]
  for number, (learnt, missing) in enumerate(together):
    singles, gaps = zip(*(of_prompt[number] for of_prompt in apart), strict=True)
    log_pi = np.concatenate([single.log_pi for single in singles])
    np.testing.assert_allclose(learnt.log_pi, log_pi, rtol=0, atol=1e-8)
    np.testing.assert_allclose(missing, setting.prompts @ np.array(gaps), rtol=1e-6)
    values = np.array([single.value for single in singles])
    np.testing.assert_allclose(learnt.value, setting.prompts @ values, rtol=0, atol=1e-12)
    assert abs(learnt.left) < 1e-12
  assert abs(together[0][0].log_pi - together[1][0].log_pi).max() > 0.1  # the bonus has an effect


@pytest.mark.parametrize('name', LINKS)
def test_version_space_shares_its_budget_between_prompts(name):
  """Equal prompts share a budget evenly; a prompt of probability zero gets none of it."""
  link, (counts, estimate) = LINKS[name], asked()
  single = contexts(TAUS[name])

  @jax.jit
  def learn(setting, counts, estimate, budget):
    return offline.learn_in_version_space(
      MEMBERS, setting, link, estimate, counts, budget, updates=50
    )

  def both(prompts, references, *arrays):
    return Setting(jnp.array(prompts), references, single.tau), *arrays

  one, few, seen = alone(single, 0, counts, estimate)
  expected = learn(one, few, seen, 1.5)
  twice = lambda array: jnp.concatenate([array, array])
  alike = both([0.5, 0.5], twice(one.log_reference), twice(few), twice(seen))
  found = learn(*alike, 3.0)
  never = learn(*both([1.0, 0.0], single.log_reference, counts, estimate), 1.5)
  for log_pi in (found.log_pi[:1], found.log_pi[1:], never.log_pi[:1]):
    np.testing.assert_allclose(log_pi, expected.log_pi, rtol=0, atol=1e-5)
  for learnt in (found, never):
    np.testing.assert_allclose(learnt.value, expected.value, rtol=0, atol=1e-6)


@pytest.mark.parametrize('name', LINKS)
def test_enhancers_treat_prompts_independently(name):
  setting, link, (counts, estimate) = contexts(TAUS[name]), LINKS[name], asked()
  log_pi = log_policies(5)

  def chosen(setting, counts, estimate, log_pi):
    return [
      enhancer(estimate, counts, log_pi)
      for enhancer in (
        online.information_enhancer(MEMBERS, setting, link, 10),
        online.optimistic_enhancer(MEMBERS, setting, link, BETA),
        online.best_of_enhancer(link, 4),
      )
    ]

  together = chosen(setting, counts, estimate, log_pi)
  apart = [chosen(*alone(setting, place, counts, estimate, log_pi)) for place in range(X)]
  for whole, *parts in zip(together, *apart, strict=True):
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', LINKS)
def test_error_bounds_hold_for_two_prompts(name):
  """Round by round in 20 seeds, in probabilities, and in log-odds for the class made of them."""
  link = LINKS[name] if name == 'probability' else log_odds(30.0)
  members = MEMBERS if name == 'probability' else logistic(features(), 0.7)
  preference = preferences(3) if name == 'probability' else truth('logistic')
  setting, rounds, batch = contexts(TAUS[name]), 30, 40
  enhancer = online.information_enhancer(members, setting, link, batch)

  @jax.jit
  @jax.vmap
  def learn(key):
    course = online.run_rounds(members, setting, link, preference, enhancer, batch, rounds, key)
    return course, members.potential(course.expected_counts)

  course, potential = jax.device_get(learn(jax.random.split(jax.random.key(0), 20)))
  check_chain(course, potential, exploring=True)
  assert course.left.max() < 1e-12
  assert course.gap[:, -1].mean() < course.gap[:, 1:5].mean()  # large gaps at the start
  assert (course.wins.sum(axis=(1, 2, 3)) <= rounds * batch).all()
  assert (course.wins.sum(axis=(2, 3)) > 0).all()  # both prompts have votes
  one = gap(setting, link.payoff(preference), jnp.asarray(course.log_pi[0, -1]))
  np.testing.assert_allclose(course.gap[0, -1], one, rtol=1e-9)
  assert course.log_pi.shape == (20, rounds, X, K)
