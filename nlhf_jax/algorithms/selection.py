"""What of a comparison the loss sees: (comparison, key) -> comparison.

The worth of a response is its payoff averaged over the right side, u(y) = P(y > opponent) - 1/2.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.algorithms.naming import named
from nlhf_jax.errors import UserError
from nlhf_jax.structs import Comparison, Responses

Select = Callable[[Comparison, Array], Comparison]


def unchanged(comparison: Comparison, key: Array) -> Comparison:
  """All of it."""
  del key
  return comparison


@named
def chain(*selections: Select) -> Select:
  """One after the other."""

  def select(comparison, key):
    for number, selection in enumerate(selections):
      comparison = selection(comparison, jax.random.fold_in(key, number))
    return comparison

  return select


def mean_payoff(comparison: Comparison) -> Float[Array, 'B K']:
  """u(y) = mean over the right responses of the payoff."""
  return jnp.mean(comparison.payoff, axis=2)


def drop_unjudged(comparison: Comparison) -> tuple[Comparison, Float[Array, 'B']]:
  """The comparison without what no judge could say, and the weight of each prompt in the mean.

  A prompt with a payoff that is NaN weighs 0, since its worths are not known either, and its
  payoffs become 0; the others weigh the same, 1 on average over all. If none is left, all weigh 0.
  """
  if comparison.payoff is None:
    return comparison, jnp.ones(len(comparison.left.tokens))
  known = ~jnp.any(jnp.isnan(comparison.payoff), axis=(1, 2))
  payoff = jnp.where(known[:, None, None], comparison.payoff, 0.0)
  weight = known / jnp.maximum(jnp.mean(known, dtype=payoff.dtype), 1 / len(known))
  return comparison._replace(payoff=payoff), weight


def take_responses(responses: Responses, places: Int[Array, 'B N']) -> Responses:
  """The responses at the given places along K."""
  return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, places[:, :, None], axis=1), responses)


def _ranked(comparison: Comparison) -> Int[Array, 'B K']:
  """Places of the left responses, the worthiest first; equals in their order."""
  return jnp.argsort(-mean_payoff(comparison), axis=1)


def best_and_worst(comparison: Comparison, key: Array) -> Comparison:
  """The left responses of most and of least worth, each with its payoffs against all the right."""
  del key
  places = _ranked(comparison)[:, jnp.array([0, -1])]
  payoff = jnp.take_along_axis(comparison.payoff, places[:, :, None], axis=1)
  return comparison._replace(left=take_responses(comparison.left, places), payoff=payoff)


def best_against_worst(comparison: Comparison, key: Array) -> Comparison:
  """The best of K on the left, the worst on the right, with the payoff between the two.

  The responses must be compared with themselves, all against all.
  """
  del key
  ranked = _ranked(comparison)
  best, worst = ranked[:, :1], ranked[:, -1:]
  rows = jnp.take_along_axis(comparison.payoff, best[:, :, None], axis=1)
  payoff = jnp.take_along_axis(rows, worst[:, :, None], axis=2)
  left = comparison.left
  return Comparison(
    comparison.prompts, take_responses(left, best), take_responses(left, worst), payoff
  )


def pair_by_mean_payoff(comparison: Comparison, key: Array) -> Comparison:
  """Of two left responses one against the other, with the payoff u(y_1) - u(y_2)."""
  del key
  one, other = (jax.tree.map(lambda leaf, k=k: leaf[:, k : k + 1], comparison.left) for k in (0, 1))
  gains = mean_payoff(comparison)
  return Comparison(comparison.prompts, one, other, (gains[:, :1] - gains[:, 1:])[:, :, None])


def pair_with_best(comparison: Comparison, key: Array) -> Comparison:
  """The first left response against its enhancer: the best of those from the third on.

  These hold a tournament of their own, by which the best is known. The payoff is u(y) - u(y'), both
  against the second response, which has no part in it, so that no luck was selected. The responses
  must be compared with themselves, all against all.
  """
  del key
  best = 2 + jnp.argmax(jnp.mean(comparison.payoff[:, 2:, 2:], axis=2), axis=1, keepdims=True)
  first, gains = jnp.zeros_like(best), comparison.payoff[:, :, 1]
  lead = gains[:, :1] - jnp.take_along_axis(gains, best, axis=1)
  left = comparison.left
  return Comparison(
    comparison.prompts, take_responses(left, first), take_responses(left, best), lead[:, :, None]
  )


def split_pairs(comparison: Comparison, key: Array) -> Comparison:
  """A pair as two left responses, each with its own payoff: [B, 2, 1]."""
  del key
  left = jax.tree.map(
    lambda *sides: jnp.concatenate(sides, axis=1), comparison.left, comparison.right
  )
  payoff = jnp.concatenate([comparison.payoff, -comparison.payoff], axis=1)
  return Comparison(comparison.prompts, left, None, payoff)


def add_mismatches(comparison: Comparison, key: Array) -> Comparison:
  """Adds, as as many left responses more, those of the next prompt of the batch, with payoff 0.

  They are unrelated to the prompt: what KTO estimates its KL on.

  Raises:
    UserError: if the batch is a single prompt.
  """
  del key
  if len(comparison.payoff) < 2:
    raise UserError('KTO needs responses to other prompts; a batch must have at least 2 prompts.')
  left = jax.tree.map(
    lambda leaf: jnp.concatenate([leaf, jnp.roll(leaf, -1, axis=0)], axis=1), comparison.left
  )
  payoff = jnp.concatenate([comparison.payoff, jnp.zeros_like(comparison.payoff)], axis=1)
  return comparison._replace(left=left, payoff=payoff)


def payoff_to_log_odds(comparison: Comparison, key: Array) -> Comparison:
  """The payoff as a score, log P(y > y') / P(y' > y), at most 9.2 (P = .9999)."""
  del key
  chance = jnp.clip(comparison.payoff + 0.5, 1e-4, 1 - 1e-4)
  return comparison._replace(payoff=jnp.log(chance) - jnp.log1p(-chance))


@named
def subtract_constant(by: float) -> Select:
  """The payoff less a constant."""
  return lambda comparison, key: comparison._replace(payoff=comparison.payoff - by)


@named
def subtract_log_partition(eta: float) -> Select:
  """The payoff less log Z / eta, Z = E_{y ~ pi_t} exp(eta u(y)) estimated on the left responses."""

  def select(comparison, key):
    del key
    gains = eta * mean_payoff(comparison)
    log_z = jax.nn.logsumexp(gains, axis=1) - jnp.log(gains.shape[1])
    return comparison._replace(payoff=comparison.payoff - (log_z / eta)[:, None, None])

  return select


@named
def rejection_sampling(beta: float, keep: int) -> Select:
  """Of K responses, compared all against all, `keep` that are distributed as pi exp(r / beta) / Z.

  The first is the baseline that rewards are measured against, r(y) = log-odds of P(y > baseline),
  and is not a candidate itself. Those kept are compared all against all (arXiv 2309.06657).
  """

  def select(comparison, key):
    reward = payoff_to_log_odds(comparison, key).payoff[:, 1:, 0]
    keys = jax.random.split(key, len(reward))
    places = 1 + jax.vmap(lambda key, row: rejection_sample(key, row, beta, keep))(keys, reward)
    rows = jnp.take_along_axis(comparison.payoff, places[:, :, None], axis=1)
    payoff = jnp.take_along_axis(rows, places[:, None, :], axis=2)
    kept = take_responses(comparison.left, places)
    return Comparison(comparison.prompts, kept, kept, payoff)

  return select


def rejection_sample(
  key: Array, reward: Float[Array, 'N'], beta: float, keep: int
) -> Int[Array, 'M']:
  """Statistical rejection sampling (arXiv 2309.06657, algorithm 1): `keep` places, as accepted.

  Visits the candidates in their order and accepts each with probability exp((r - r_max) / beta),
  r_max over those not accepted so far when the visit began; and again, until enough are. Candidates
  are known by their places, so that equal texts stay different candidates, and every visit accepts
  at least its best one, so that it ends.

  Args:
    key: for the draws.
    reward: of each candidate.
    beta: temperature; the lower, the closer to the `keep` best.
    keep: how many.

  Raises:
    UserError: if there are not so many candidates.
  """
  count = len(reward)
  if not 0 < keep <= count:
    raise UserError(f'cannot keep {keep} of {count} candidates; keep at least 1, and at most all.')

  def unfinished(loop):
    _, accepted, _ = loop
    return jnp.sum(accepted >= 0) < keep

  def visit(loop):
    number, order, taken = loop
    top = jnp.max(jnp.where(taken, -jnp.inf, reward))
    draws = jax.random.uniform(jax.random.fold_in(key, number), (count,))
    # So that rewards that are no numbers, or all -inf, are accepted and the visits end.
    accept = ~taken & ~(draws >= jnp.exp((reward - top) / beta))
    place = jnp.sum(order >= 0) + jnp.cumsum(accept) - 1
    accept &= place < keep
    order = order.at[jnp.where(accept, place, keep)].set(jnp.arange(count), mode='drop')
    return number + 1, order, taken | accept

  start = (jnp.int32(0), jnp.full(keep, -1), jnp.zeros(count, bool))
  return lax.while_loop(unfinished, visit, start)[1]
