"""Three squared losses of pairs agree in expectation against the sampler, and differ elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.algorithms.losses import pairwise_loss
from nlhf_jax.algorithms.selection import pair_by_mean_payoff
from nlhf_jax.structs import Responses, Scores
from tests.algorithms.pairs import WIN, compared, is_close

# --- Three ways to write a squared loss of pairs ---


def three_ways(log_pi, chance, payoff, opponent, step):
  """The mean over pairs, weighed by `chance`, of (A), (B) and (C), g = log pi(y) - log pi(y').

  (A) (g - s (P(y > mu) - P(y' > mu)))^2, (B) (g_wl - s / 2)^2, (C) (g - s (P(y > y') - 1/2))^2, up
  to constants in g; what is in the loss that is none is the choice of the payoff.
  """
  size = len(log_pi)
  loss = pairwise_loss(jnp.square, margin=step / 2)

  def mean(payoff):
    side = Scores(*[jnp.array(log_pi)[None, :, None]] * 2)
    value = loss({'policy': side}, compared(WIN)._replace(payoff=jnp.array(payoff)[None]))[0]
    return value

  mean_payoff = payoff @ opponent
  ordered = (0.5 + payoff) * mean(np.full((size, size), 0.5))
  ordered += (0.5 - payoff) * mean(np.full((size, size), -0.5))
  g = log_pi[:, None] - log_pi
  literally = {
    'A': (g - step * (mean_payoff[:, None] - mean_payoff)) ** 2,
    'B': (0.5 + payoff) * (g - step / 2) ** 2 + (0.5 - payoff) * (g + step / 2) ** 2,
    'C': (g - step * payoff) ** 2,
  }
  by_library = {'A': mean(mean_payoff[:, None] - mean_payoff), 'B': ordered, 'C': mean(payoff)}
  return [{way: np.sum(chance * grid) for way, grid in w.items()} for w in (literally, by_library)]


def ways_over_policies(chance_of, opponent):
  """[policies, ways] of the textbook's and of the library's values, as the policy varies."""
  random = np.random.default_rng(0)
  upper = np.triu(random.uniform(-0.5, 0.5, (5, 5)), 1)
  payoff = upper - upper.T
  chance = np.outer(chance_of, chance_of)
  policies = np.log(random.dirichlet(np.ones(5), size=4))
  rows = [three_ways(log_pi, chance, payoff, opponent, 1.5) for log_pi in policies]
  return [np.array([list(row[which].values()) for row in rows]) for which in (0, 1)]


def range_over_policies(values):
  return np.ptp(values, axis=0)


MU = np.array([0.3, 0.1, 0.25, 0.2, 0.15])
OTHER = np.array([0.05, 0.5, 0.1, 0.05, 0.3])


def test_squared_losses_agree_against_the_sampler():
  textbook, library = ways_over_policies(MU, MU)
  assert np.all(range_over_policies(library - textbook) < 1e-4)
  assert np.all(range_over_policies(textbook - textbook[:, :1]) < 1e-12)
  assert np.all(range_over_policies(library - library[:, :1]) < 1e-4)
  assert np.all(range_over_policies(library) > 1)


def test_off_policy_only_opponent_win_rates_are_unbiased():
  textbook, library = ways_over_policies(OTHER, MU)
  assert np.all(range_over_policies(library - textbook) < 1e-4)
  of_a, of_b, of_c = (library - library[:, :1]).T
  assert np.ptp(of_a) == 0
  assert np.ptp(of_b) > 0.05
  assert np.ptp(of_c) > 0.05
  assert np.ptp(of_b - of_c) < 1e-4


def test_pair_by_mean_payoff_uses_sampled_win_rates():
  # u(y_1) - u(y_2) over two opponents: (.3 - .1) / 2 - (.2 + .4) / 2.
  comparison = compared(WIN)._replace(
    left=Responses(jnp.array([[[1], [2]]]), jnp.ones((1, 2, 1), bool)),
    payoff=jnp.array([[[0.3, -0.1], [0.2, 0.4]]]),
  )
  pair = pair_by_mean_payoff(comparison, jax.random.key(0))
  assert (pair.left.tokens.item(), pair.right.tokens.item()) == (1, 2)
  is_close(pair.payoff, [[[-0.2]]])
