"""What preferences may be: the record that every class fills, and what all share.

A class knows how to estimate preferences from votes, and how far others of its members may differ
from the estimate although they explain the votes as well. Left out: the classes themselves
(`tabular.py`, `linear.py`, `finite.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nlhf_jax.sample_complexity.links import Link
from nlhf_jax.sample_complexity.setting import Setting, duel_weights, duel_weights_by_action

Preference = Float[Array, 'X K K']  # P(a > b), complementary over a pair
Counts = Float[Array, 'X K K']  # comparisons of a pair, or their expectation; symmetric
Weights = Float[Array, 'X K K']  # antisymmetric, such as `duel`


class PreferenceClass(NamedTuple):
  """A class of preferences, as functions of an estimate and of the counts behind it.

  Sums run over prompts and pairs a < b; delta is what a member has over the estimate. `error` is
  the norm in which data hold a member to the estimate, and |sum w delta| <= width sqrt(error) for
  every member: exactly, save for `linear.logistic`, where it is so of log-odds, and of
  probabilities to first order.
  """

  # wins -> the estimate: maximum likelihood or (ridge) least squares.
  estimate: Callable[[Float[Array, 'X K K']], Preference]
  # (estimate, counts, member) -> in-sample error of the member, with what the ridge adds.
  error: Callable[[Preference, Counts, Preference], Float[Array, '']]
  # (estimate, counts, weights) -> sup of |sum w delta| / sqrt(error): the information ratio.
  width: Callable[[Preference, Counts, Weights], Float[Array, '']]
  # (estimate, counts) -> the same at every single pair: the bonus.
  bonus: Callable[[Preference, Counts], Float[Array, 'X K K']]
  # (estimate, counts, candidates) -> one candidate a prompt, such that their sum is the widest.
  widest: Callable[[Preference, Counts, Float[Array, 'X J K K']], Int[Array, 'X']]
  # (estimate, counts, weights, budget) -> the member of least sum w P whose error is in the budget.
  worst: Callable[[Preference, Counts, Weights, Float[Array, '']], Preference]
  # (estimate, counts, delta) -> the budget that holds the truth in 1 - delta of all draws of votes.
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
  """Gamma(p, q): how far members may disagree on p against q, by what the data allow.

  In units of the payoff; to first order in delta where the link is not linear.
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
  """argmax over q of Gamma(p, q): one action a prompt, as a convex function is largest there.

  Log-probabilities, -inf but for that action.
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

  What a policy needs of the data, against every opponent; of the class `tabular`, infinite where a
  pair that it needs is never compared.

  Args:
    free: the class with a ridge of 0.
    setting: where prompts come from.
    link: what a probability is worth.
    preference: from which members differ by delta.
    design: the share of every pair in the data, which makes the expectation.
    log_p: the policy that is to be judged, the equilibrium for one.
  """
  log_q = most_informative_opponent(free, setting, link, preference, design, log_p)
  return information_ratio(free, setting, link, preference, design, log_p, log_q) ** 2
