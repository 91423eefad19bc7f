"""Classes of preferences: their common interface, and functions of any class.

A class estimates preferences from votes, and bounds how far other members that are consistent with
the votes may differ from the estimate. The classes are in `unstructured.py`, `linear.py` and
`listed.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.sample_complexity.links import Link
from nlhf_jax.sample_complexity.setting import Setting, duel_weights, duel_weights_by_action

Preference = Float[Array, 'X K K']  # P(a > b), complementary over a pair
Counts = Float[Array, 'X K K']  # comparisons of a pair, or their expectation; symmetric
Weights = Float[Array, 'X K K']  # antisymmetric, such as `setting.duel_weights`


class PreferenceClass(NamedTuple):
  """A class of preferences, as functions of an estimate and of its counts of comparisons.

  Sums run over prompts and pairs a < b; delta = member - estimate. `error` measures how badly a
  member fits the data, and |sum w delta| <= width sqrt(error) for every member. The bound is exact,
  except for `linear.logistic`, where it is exact for log-odds and of first order for probabilities.
  """

  # wins -> the estimate: maximum likelihood or (ridge) least squares.
  estimate: Callable[[Float[Array, 'X K K']], Preference]
  # (estimate, counts, member) -> in-sample error of the member, including the ridge.
  error: Callable[[Preference, Counts, Preference], Float[Array, '']]
  # (estimate, counts, weights) -> sup of |sum w delta| / sqrt(error): the information ratio.
  width: Callable[[Preference, Counts, Weights], Float[Array, '']]
  # (estimate, counts) -> the width of every single pair: the bonus.
  bonus: Callable[[Preference, Counts], Float[Array, 'X K K']]
  # (estimate, counts, candidates) -> the candidate of each prompt; their sum has the largest width.
  widest: Callable[[Preference, Counts, Float[Array, 'X J K K']], Int[Array, 'X']]
  # (estimate, counts, weights, budget) -> the member of least sum w P with error <= budget.
  worst: Callable[[Preference, Counts, Weights, Float[Array, '']], Preference]
  # (estimate, counts, delta) -> the budget that contains the truth with probability 1 - delta.
  radius: Callable[[Preference, Counts, float], Float[Array, '']]
  # counts -> bound of sum_t min(1, width_t^2), where a width is of a duel with itself and follows
  # the expected counts of all duels before, which end in these.
  potential: Callable[[Counts], Float[Array, '']]


def information_ratio(
  members: PreferenceClass,
  setting: Setting,
  link: Link,
  estimate: Preference,
  counts: Counts,
  log_p: Float[Array, 'X K'],
  log_q: Float[Array, 'X K'],
) -> Float[Array, '']:
  """Gamma(p, q): how far members consistent with the data may disagree about p against q.

  In units of the payoff; of first order in delta if the link is not linear.
  """
  weights = duel_weights(setting, log_p, log_q) * link.slope(estimate)
  return members.width(estimate, counts, weights)


def most_informative_opponent(
  members: PreferenceClass,
  setting: Setting,
  link: Link,
  estimate: Preference,
  counts: Counts,
  log_p: Float[Array, 'X K'],
) -> Float[Array, 'X K']:
  """argmax over q of Gamma(p, q), which is one action per prompt, since Gamma is convex in q.

  Returns log-probabilities, -inf for all other actions.
  """
  candidates = duel_weights_by_action(setting, log_p) * link.slope(estimate)[:, None]
  chosen = members.widest(estimate, counts, candidates)
  return jnp.where(jnp.arange(log_p.shape[-1]) == chosen[:, None], 0.0, -jnp.inf)


def coverage(
  free: PreferenceClass,
  setting: Setting,
  link: Link,
  preference: Preference,
  design: Float[Array, 'X K K'],
  log_p: Float[Array, 'X K'],
) -> Float[Array, '']:
  """C(p, design) = max over q and members of (E_{p,q} delta)^2 / E_design delta^2.

  How well the data cover the comparisons of a policy with any opponent. For `tabular` it is
  infinite if one of these pairs is never compared.

  Args:
    free: the class with a ridge of 0.
    setting: prompts, reference and tau.
    link: win probability -> payoff.
    preference: the preference from which members differ by delta.
    design: the fraction of comparisons of every pair in the data.
    log_p: the policy, such as the equilibrium.
  """
  log_q = most_informative_opponent(free, setting, link, preference, design, log_p)
  return information_ratio(free, setting, link, preference, design, log_p, log_q) ** 2
