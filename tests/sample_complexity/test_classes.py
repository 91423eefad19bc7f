"""Uncertainty of each class: closed forms against definitions and brute force."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import optimize

from nlhf_jax.sample_complexity import votes
from nlhf_jax.sample_complexity.classes import (
  coverage,
  information_ratio,
  most_informative_opponent,
)
from nlhf_jax.sample_complexity.linear import linear
from nlhf_jax.sample_complexity.links import log_odds, probability
from nlhf_jax.sample_complexity.listed import finite
from nlhf_jax.sample_complexity.setting import duel_weights, equilibrium, sum_over_pairs
from nlhf_jax.sample_complexity.unstructured import safe_ratio, tabular
from tests.sample_complexity.problems import (
  K,
  N,
  X,
  classes,
  contexts,
  corner,
  features,
  listed,
  log_policies,
  preferences,
  rival,
  some_counts,
  truth,
)

pytestmark = pytest.mark.usefixtures('float64')

NAMES = ('tabular', 'linear', 'every pair', 'logistic', 'finite')
LINK = {name: log_odds(30.0) if name == 'logistic' else probability() for name in NAMES}


def boxed_width(counts, weights, constant):
  """sup over |delta| <= 1 of sum w delta / sqrt(constant + sum n delta^2).

  The information ratio as the paper has it, with a constant instead of a ridge; with D pairs, at
  most the width with a ridge of constant / D. The best delta is s w / n cut to [-1, 1], where
  sum (s |w| - n)_+ = constant.
  """
  size = abs(weights)

  def excess(s):
    return sum_over_pairs(jnp.maximum(0, s * size - counts)).sum()

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    below = excess(middle) <= constant
    return jnp.where(below, middle, low), jnp.where(below, high, middle)

  total = sum_over_pairs(size).sum()
  # At this s the excess is at least the constant.
  high = (constant + sum_over_pairs(counts).sum()) / jnp.where(total > 0, total, 1)
  _, s = lax.fori_loop(0, 100, halve, (jnp.zeros_like(high), high))
  delta = jnp.where(size == 0, 0, jnp.minimum(1, safe_ratio(s * size, counts)))
  norm = constant + sum_over_pairs(counts * delta**2).sum()
  return sum_over_pairs(size * delta).sum() / jnp.sqrt(norm)


def looked_at(name):
  """All functions of a class on one data set, in one program."""
  members, link, setting = classes()[name], LINK[name], contexts()
  opponents = log_policies(6, 300)

  @jax.jit
  def look(wins, log_p):
    counts, estimate = votes.comparison_counts(wins), members.estimate(wins)

    def ratio(log_q):
      return information_ratio(members, setting, link, estimate, counts, log_p, log_q)

    def worst(log_q):
      weights = duel_weights(setting, log_p, log_q)
      return members.worst(estimate, counts, weights, 0.05 + members.radius(estimate, counts, 0.5))

    corners = jnp.stack([corner(*actions) for actions in product(range(K), repeat=X)])
    chosen = most_informative_opponent(members, setting, link, estimate, counts, log_p)
    return {
      'estimate': estimate,
      'error': members.error(estimate, counts, rival(name)),
      'ratios': jax.vmap(ratio)(opponents),
      'itself': ratio(log_p),
      'corners': jax.vmap(ratio)(corners),
      'chosen': ratio(chosen),
      'bonus': members.bonus(estimate, counts),
      'worst': jax.vmap(worst)(opponents[:3]),
      'potential': members.potential(counts),
    }

  wins = jnp.round(some_counts() * truth(name))
  wins = jnp.triu(wins, 1) + jnp.tril(some_counts() - wins.swapaxes(1, 2), -1)
  return jax.tree.map(np.asarray, look(wins, log_policies(5))), wins


@pytest.fixture(scope='module')
def looks():
  with jax.enable_x64(True):
    return {name: looked_at(name) for name in NAMES}


@pytest.mark.parametrize('name', NAMES)
def test_information_ratio_bounds_the_error(looks, name):
  """|E_{p,q} of the error| <= ratio sqrt(error) for 300 opponents; a policy knows itself."""
  look, _ = looks[name]
  link, setting = LINK[name], contexts()
  delta = link.payoff(rival(name)) - link.payoff(look['estimate'])
  weights = jax.vmap(lambda log_q: duel_weights(setting, log_policies(5), log_q))(
    log_policies(6, 300)
  )
  seen = abs(sum_over_pairs(weights * delta).sum(axis=1))
  assert (seen <= look['ratios'] * np.sqrt(look['error']) * (1 + 1e-9)).all()
  assert (seen > 0.01 * look['ratios'] * np.sqrt(look['error'])).any()
  assert look['itself'] < 1e-14


@pytest.mark.parametrize('name', NAMES)
def test_most_informative_opponent_is_one_action(looks, name):
  """No policy has a larger ratio than the best action, which is the one chosen."""
  look, _ = looks[name]
  best = look['corners'].max()
  assert (look['ratios'] <= best * (1 + 1e-12)).all()
  np.testing.assert_allclose(look['chosen'], best, rtol=1e-12)


def test_one_feature_per_pair_gives_the_tabular_class(looks):
  (one, _), (other, _) = looks['tabular'], looks['every pair']
  for what in ('estimate', 'error', 'ratios', 'chosen', 'bonus', 'potential'):
    np.testing.assert_allclose(one[what], other[what], rtol=1e-10, atol=1e-14, err_msg=what)


def test_tabular_class_has_its_closed_forms():
  """Gamma^2 = sum w^2 / (ridge + n) is reached by delta = w / (ridge + n), and by no other."""
  members, setting, counts = tabular(0.7), contexts(), some_counts()
  weights = duel_weights(setting, log_policies(5), log_policies(6))
  estimate = preferences(3)
  gamma = members.width(estimate, counts, weights)
  np.testing.assert_allclose(
    gamma**2, sum_over_pairs(weights**2 / (0.7 + counts)).sum(), rtol=1e-13
  )

  def ratio(delta):
    return sum_over_pairs(weights * delta).sum() / np.sqrt(
      members.error(estimate, counts, estimate + delta)
    )

  np.testing.assert_allclose(ratio(weights / (0.7 + counts)), gamma, rtol=1e-13)
  others = np.random.default_rng(0).normal(size=(50, X, K, K))
  assert all(abs(ratio(d - d.swapaxes(1, 2))) <= gamma for d in others)
  wins = jnp.array([[[0, 3.0, 0], [1, 0, 0], [0, 0, 0]]])
  np.testing.assert_allclose(tabular(1.0).estimate(wins)[0, 0], [0.5, 3.5 / 5, 0.5])
  np.testing.assert_allclose(tabular(0.0).estimate(wins)[0, 0], [0.5, 3 / 4, 0.5])


def test_width_bounds_the_papers_ratio():
  """Against a search over s on a fine grid, and below the ridge of constant / D."""
  setting, counts = contexts(), some_counts(most=6)
  pairs = X * K * (K - 1) / 2
  for seed in (5, 6, 7):
    weights = duel_weights(setting, log_policies(seed), log_policies(seed + 10))
    for constant in (0.1, 1.0, 30.0):
      found = boxed_width(counts, weights, constant)
      size, n = abs(weights), np.where(counts > 0, counts, 1e-300)
      delta = np.minimum(1, np.geomspace(1e-3, 1e5, 4000)[:, None, None, None] * size / n)
      sums = sum_over_pairs(size * delta).sum(axis=1)
      grid = sums / np.sqrt(constant + sum_over_pairs(counts * delta**2).sum(axis=1))
      np.testing.assert_allclose(found, grid.max(), rtol=1e-4)
      assert found >= grid.max() * (1 - 1e-12)
      assert found <= tabular(constant / pairs).width(counts, counts, weights)


@pytest.mark.parametrize('name', ['tabular', 'linear', 'finite'])
def test_the_bonus_is_the_ratio_of_one_pair(looks, name):
  look, wins = looks[name]
  members, counts = classes()[name], votes.comparison_counts(wins)
  assert not np.diagonal(look['bonus'], axis1=1, axis2=2).any()
  for x, a, b in ((0, 0, 1), (0, 1, 2), (1, 3, 0)):
    unit = jnp.zeros((X, K, K)).at[x, a, b].set(1).at[x, b, a].set(-1)
    ratio = members.width(look['estimate'], counts, unit)
    np.testing.assert_allclose(look['bonus'][x, a, b], ratio, rtol=1e-12)


def test_finite_class_equals_enumeration(looks):
  """The most likely of six members; ratio, error and worst member by enumeration."""
  look, wins = looks['finite']
  all_members, counts = np.asarray(listed()), np.asarray(votes.comparison_counts(wins))
  likely = [(np.asarray(wins) * np.log(p)).sum() for p in all_members]
  estimate = all_members[np.argmax(likely)]
  np.testing.assert_array_equal(look['estimate'], estimate)
  errors = [0.7 + np.triu(counts * (p - estimate) ** 2).sum() for p in all_members]
  np.testing.assert_allclose(look['error'], errors[4])
  setting, opponents = contexts(), log_policies(6, 300)
  radius = float(0.05 + classes()['finite'].radius(estimate, counts, 0.5))
  for i in range(3):
    weights = np.asarray(duel_weights(setting, log_policies(5), opponents[i]))
    sums = [np.triu(weights * (p - estimate)).sum() for p in all_members]
    np.testing.assert_allclose(look['ratios'][i], max(np.abs(sums) / np.sqrt(errors)))
    inside = [j for j in range(N) if errors[j] <= radius]
    least = min(inside, key=sums.__getitem__)
    np.testing.assert_array_equal(look['worst'][i], all_members[least])


@pytest.mark.parametrize('name', ['tabular', 'linear'])
def test_worst_member_equals_a_numerical_search(looks, name):
  """scipy's SLSQP finds no lower sum w P within the budget (and [0, 1], for tabular)."""
  look, wins = looks[name]
  members, counts, setting = classes()[name], votes.comparison_counts(wins), contexts()
  estimate, above = look['estimate'], np.triu_indices(K, 1)
  budget = float(0.05 + members.radius(estimate, counts, 0.5))
  weights = np.asarray(duel_weights(setting, log_policies(5), log_policies(6, 300)[0]))[
    :, *above
  ].ravel()
  rows = np.asarray(features())[:, *above].reshape(-1, features().shape[-1])
  rows = np.eye(len(weights)) if name == 'tabular' else rows
  base = estimate[:, *above].ravel()
  n = np.asarray(counts)[:, *above].ravel()
  matrix = rows.T @ (n[:, None] * rows) + 0.7 * np.eye(rows.shape[1])
  inside = {'type': 'ineq', 'fun': lambda t: budget - t @ matrix @ t}
  bounds = list(zip(-base, 1 - base, strict=True)) if name == 'tabular' else None
  gradient = rows.T @ weights
  best = optimize.minimize(
    lambda t: gradient @ t,
    np.zeros(rows.shape[1]),
    jac=lambda t: gradient,
    bounds=bounds,
    constraints=[inside],
    method='SLSQP',
    options={'ftol': 1e-13, 'maxiter': 500},
  )
  found = look['worst'][0]
  reached = weights @ (found[:, *above].ravel() - base)
  assert abs(reached - best.fun) < 1e-6 * abs(best.fun)
  assert members.error(estimate, counts, found) <= budget * (1 + 1e-9)
  if name == 'tabular':
    assert ((found >= 0) & (found <= 1)).all()
    assert ((found == 0) | (found == 1)).any()  # the box matters here


@pytest.mark.slow
def test_coverage_is_the_worst_ratio_of_errors():
  """max_b sum_a p_a^2 / mu_ab for one prompt; for the others the sup over members and corners."""
  setting, link, log_p, preference = contexts(), probability(), log_policies(5), preferences(3)
  design = votes.design_from_policies(setting, log_policies(8), log_policies(9))
  found = coverage(tabular(0.0), setting, link, preference, design, log_p)
  p = np.exp(log_p)
  by_hand = 0
  for x in range(X):
    sums = [sum(p[x, a] ** 2 / design[x, a, b] for a in range(K) if a != b) for b in range(K)]
    by_hand += setting.prompts[x] ** 2 * max(sums)
  np.testing.assert_allclose(found, by_hand, rtol=1e-12)
  star = votes.design_around_action(setting, 0, 0.0)
  assert coverage(tabular(0.0), setting, link, preference, star, log_p) == np.inf
  np.testing.assert_allclose(
    coverage(tabular(0.0), setting, link, preference, star, corner(0, 0)), K - 1, rtol=1e-12
  )

  def seen(delta):
    """The ratio of one member, maximised over corners."""
    above = [
      sum_over_pairs(duel_weights(setting, log_p, corner(*actions)) * delta).sum() ** 2
      for actions in product(range(K), repeat=X)
    ]
    return max(above) / sum_over_pairs(design * delta**2).sum()

  members = finite(listed(), 0.0)
  found = coverage(members, setting, link, listed()[2], design, log_p)
  ratios = [seen(listed()[j] - listed()[2]) for j in range(N) if j != 2]
  np.testing.assert_allclose(found, max(ratios), rtol=1e-12)
  found = coverage(linear(features(), 0.0), setting, link, preference, design, log_p)
  random = [seen(features() @ theta) for theta in np.random.default_rng(0).normal(size=(40, 3))]
  assert max(random) <= found * (1 + 1e-12)
  assert max(random) > 0.5 * found


@pytest.mark.parametrize('name', ['linear', 'logistic'])
def test_regressions_equal_scipy(looks, name):
  """Ridge least squares and penalised logistic likelihood, minimised numerically."""
  look, wins = looks[name]
  above = np.triu_indices(K, 1)
  rows = np.asarray(features())[:, *above].reshape(-1, features().shape[-1])

  def pairs(values):
    return np.asarray(values)[:, *above].ravel()

  won, lost = pairs(wins), pairs(wins.swapaxes(1, 2))

  def cost(theta):
    z, penalty = rows @ theta, 0.7 * theta @ theta
    if name == 'linear':
      return won @ (0.5 - z) ** 2 + lost @ (0.5 + z) ** 2 + penalty
    return won @ np.logaddexp(0, -z) + lost @ np.logaddexp(0, z) + penalty / 2

  theta = optimize.minimize(cost, np.zeros(3), options={'gtol': 1e-9}).x
  z = rows @ theta
  expected = 0.5 + z if name == 'linear' else 1 / (1 + np.exp(-z))
  np.testing.assert_allclose(pairs(look['estimate']), expected, atol=1e-6)


@pytest.mark.slow
def test_confidence_sets_contain_the_truth():
  """In 1,000 draws at delta = 0.1: at least 900, less three standard errors (28).

  Bounds of finite samples hold it more often. The normal one of `logistic` does not by much.
  """
  delta, counts = 0.1, 10 * some_counts()
  held = {}
  for name in NAMES:
    members = classes()[name]

    @jax.jit
    @jax.vmap
    def holds(key, members=members, name=name):
      wins = votes.sample_wins(key, truth(name), counts)
      estimate = members.estimate(wins)
      error = members.error(estimate, counts, truth(name))
      return error <= members.radius(estimate, counts, delta)

    held[name] = int(holds(jax.random.split(jax.random.key(0), 1000)).sum())
    assert held[name] >= 900 - 28, held
  assert held['logistic'] <= 990, held


def test_the_sets_of_all_classes_shrink_with_data():
  """Ten times the votes on every pair: the ratio falls by more than 2.5, towards sqrt 10."""
  setting, link = contexts(), probability()
  log_p, log_q = log_policies(5), log_policies(6)
  counts = some_counts() + 1
  for members in classes().values():
    estimate = members.estimate(counts * 0.5)
    few, many = (
      information_ratio(members, setting, link, estimate, n * counts, log_p, log_q)
      for n in (10.0, 100.0)
    )
    assert few / 3.2 < many < few / 2.5


@pytest.mark.slow
def test_equilibrium_needs_the_least_coverage():
  """If only pairs with the winner are compared, only its policy is covered well."""
  setting, link = contexts(0.05), probability()
  preference = jnp.full((X, K, K), 0.5).at[:, 0].set(0.9).at[:, :, 0].set(0.1).at[:, 0, 0].set(0.5)
  design = votes.design_around_action(setting, 0, 1e-3)
  nash = equilibrium(setting, link.payoff(preference))
  covered, other = (
    coverage(tabular(0.0), setting, link, preference, design, log_p)
    for log_p in (nash, setting.log_reference)
  )
  assert covered < other / 10
