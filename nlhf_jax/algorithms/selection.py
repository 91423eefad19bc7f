"""Selections: (comparison, key) -> the part of the comparison that the loss sees.

The mean payoff of a response is averaged over the right side: u(y) = P(y > opponent) - 1/2.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.algorithms.described import described
from nlhf_jax.errors import UserError
from nlhf_jax.games import payoff_maps
from nlhf_jax.structs import Comparison, Responses

Select = Callable[[Comparison, Array], Comparison]


def unchanged(comparison: Comparison, key: Array) -> Comparison:
  """The whole comparison."""
  del key
  return comparison


@described
def chain(*selections: Select) -> Select:
  """Applies selections one after the other."""

  def select(comparison, key):
    for number, selection in enumerate(selections):
      comparison = selection(comparison, jax.random.fold_in(key, number))
    return comparison

  return select


def mean_payoff(comparison: Comparison) -> Float[Array, 'B K']:
  """u(y) = mean over the right responses of the payoff."""
  return jnp.mean(comparison.payoff, axis=2)


def drop_unjudged(comparison: Comparison) -> tuple[Comparison, Float[Array, 'B']]:
  """Replaces missing payoffs by 0; also returns the weight of each prompt in the mean loss.

  A prompt with a payoff that is NaN gets weight 0, since its mean payoffs are unknown as well. The
  others get equal weights, which average to 1 over the batch. If no prompt is left, all weights
  are 0.
  """
  if comparison.payoff is None:
    return comparison, jnp.ones(len(comparison.left.tokens))
  known = ~jnp.any(jnp.isnan(comparison.payoff), axis=(1, 2))
  payoff = jnp.where(known[:, None, None], comparison.payoff, 0.0)
  weight = known / jnp.maximum(jnp.mean(known, dtype=payoff.dtype), 1 / len(known))
  return comparison._replace(payoff=payoff), weight


def take_responses(responses: Responses, indices: Int[Array, 'B N']) -> Responses:
  """The responses at the given indices along K."""
  return jax.tree.map(
    lambda leaf: jnp.take_along_axis(leaf, indices[:, :, None], axis=1), responses
  )


def _ranked(comparison: Comparison) -> Int[Array, 'B K']:
  """Indices of the left responses by falling mean payoff; ties keep their order."""
  return jnp.argsort(-mean_payoff(comparison), axis=1)


def best_and_worst(comparison: Comparison, key: Array) -> Comparison:
  """The left responses of highest and of lowest mean payoff, with all their payoffs."""
  del key
  indices = _ranked(comparison)[:, jnp.array([0, -1])]
  payoff = jnp.take_along_axis(comparison.payoff, indices[:, :, None], axis=1)
  return comparison._replace(left=take_responses(comparison.left, indices), payoff=payoff)


def best_against_worst(comparison: Comparison, key: Array) -> Comparison:
  """The best of K on the left against the worst on the right, with the payoff between the two.

  The right side must be the left side, all compared with all.
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
  """The first of two left responses against the second, with the payoff u(y_1) - u(y_2)."""
  del key
  one, other = (jax.tree.map(lambda leaf, k=k: leaf[:, k : k + 1], comparison.left) for k in (0, 1))
  gains = mean_payoff(comparison)
  return Comparison(comparison.prompts, one, other, (gains[:, :1] - gains[:, 1:])[:, :, None])


def pair_by_predicted_payoff(comparison: Comparison, key: Array) -> Comparison:
  """The first of two left responses against the second, with the payoff u(y_1) - u(y_2).

  u(y) = 2 a(y, y') - a(y, y'') with the payoffs against the two right responses, of the newest and
  of the second newest policy: the payoff that optimism predicts for the next round. It lies in
  [-3/2, 3/2].
  """
  predicted = 2 * comparison.payoff[:, :, :1] - comparison.payoff[:, :, 1:]
  return pair_by_mean_payoff(comparison._replace(payoff=predicted), key)


@described
def weigh_by_strength(tau: float) -> Select:
  """Weighs right responses by softmax_j(mean payoff of j / tau) in place of equally.

  With right responses from mu, the weighted ones are distributed as mu exp(P(y' > pi) / tau) / Z,
  the best response to the left side, with a bias of order 1 / J.
  """

  def select(comparison, key):
    del key
    count = comparison.payoff.shape[2]
    strength = -jnp.mean(comparison.payoff, axis=1, keepdims=True)
    weight = count * jax.nn.softmax(strength / tau, axis=2)
    return comparison._replace(payoff=weight * comparison.payoff)

  return select


def leave_out_self(comparison: Comparison, key: Array) -> Comparison:
  """Scales payoffs of K responses, compared all with all, so that means are over K - 1 opponents.

  A response has the payoff 0 against itself, so that its mean over all K is too small by
  (K - 1) / K, while a KL penalty is not.
  """
  del key
  count = comparison.payoff.shape[2]
  return comparison._replace(payoff=comparison.payoff * (count / (count - 1)))


@described
def standardise(epsilon: float) -> Select:
  """Replaces payoffs by (u - mean of u) / (s + epsilon), u the mean payoff of each of K responses.

  s is their standard deviation, with K - 1 in its denominator. One column of payoffs is left.
  """

  def select(comparison, key):
    del key
    gains = mean_payoff(comparison)
    centred = gains - jnp.mean(gains, axis=1, keepdims=True)
    spread = jnp.std(gains, axis=1, ddof=1, keepdims=True)
    return comparison._replace(payoff=(centred / (spread + epsilon))[:, :, None])

  return select


def choose_one(comparison: Comparison, key: Array) -> Comparison:
  """Replaces differences of rewards by the chance that each of K responses is chosen, less 1 / K.

  The choice among all is softmax_i(r_i), Plackett and Luce's; equal responses share their chance.
  """
  del key
  chance = 1 / jnp.sum(jnp.exp(-comparison.payoff), axis=2, keepdims=True)
  return comparison._replace(payoff=chance - 1 / comparison.payoff.shape[1])


@described
def map_payoff(name: str) -> Select:
  """Replaces P = payoff + 1/2 by (psi(P) - psi(1 - P)) / 2, with psi from `PAYOFF_MAPS`."""
  return lambda comparison, key: comparison._replace(
    payoff=payoff_maps.map_odd_part(name, comparison.payoff)
  )


# Comparison -> how alike the responses of each pair are, in [0, 1] and symmetric.
Similarity = Callable[[Comparison], Float[Array, 'B K J']]


def token_overlap(comparison: Comparison) -> Float[Array, 'B K J']:
  """The cosine between the counts of the tokens of two responses; 0 for an empty response."""

  def products(one, other):
    equal = one.tokens[:, :, None, :, None] == other.tokens[:, None, :, None, :]
    kept = one.mask[:, :, None, :, None] & other.mask[:, None, :, None, :]
    return jnp.sum(equal & kept, axis=(3, 4), dtype=jnp.float32)

  left, right = comparison.left, comparison.right
  squared = [jnp.diagonal(products(side, side), axis1=1, axis2=2) for side in (left, right)]
  norms = jnp.sqrt(squared[0][:, :, None] * squared[1][:, None, :])
  return products(left, right) / jnp.maximum(norms, 1)


@described
def gate_payoff(similarity: Similarity) -> Select:
  """Multiplies payoffs by 1 - similarity, the semantic gate of S-SPPO (arXiv 2606.01561)."""
  return lambda comparison, key: comparison._replace(
    payoff=payoff_maps.gate(comparison.payoff, similarity(comparison))
  )


def pair_with_best(comparison: Comparison, key: Array) -> Comparison:
  """The first left response y against the best y' of those from the third on.

  The best is the one with the highest mean payoff among these. The payoff is u(y) - u(y'), both
  measured against the second response: it takes no part in the choice, so that the choice does not
  bias it. The right side must be the left side, all compared with all.
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
  """Turns a pair into two left responses, each with its own payoff: [B, 2, 1].

  Responses without a right side are left as they are.
  """
  del key
  if comparison.right is None:
    return comparison
  left = jax.tree.map(
    lambda *sides: jnp.concatenate(sides, axis=1), comparison.left, comparison.right
  )
  payoff = jnp.concatenate([comparison.payoff, -comparison.payoff], axis=1)
  return Comparison(comparison.prompts, left, None, payoff)


def add_mismatches(comparison: Comparison, key: Array) -> Comparison:
  """Appends the left responses of the next prompt of the batch to each prompt's, with payoff 0.

  They are unrelated to the prompt; KTO estimates its KL on them.

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
  """Replaces payoffs by log-odds, log P(y > y') / P(y' > y), cut to 9.2 (P = .9999)."""
  del key
  return comparison._replace(payoff=payoff_maps.log_odds(comparison.payoff + 0.5))


@described
def subtract_constant(constant: float) -> Select:
  """Subtracts a constant from all payoffs."""
  return lambda comparison, key: comparison._replace(payoff=comparison.payoff - constant)


@described
def subtract_log_partition(eta: float) -> Select:
  """Subtracts log Z / eta from all payoffs.

  Z = E_{y ~ pi_t} exp(eta u(y)) is estimated on the left responses.
  """

  def select(comparison, key):
    del key
    gains = eta * mean_payoff(comparison)
    log_z = jax.nn.logsumexp(gains, axis=1) - jnp.log(gains.shape[1])
    return comparison._replace(payoff=comparison.payoff - (log_z / eta)[:, None, None])

  return select


@described
def rejection_sampling(beta: float, keep: int) -> Select:
  """Keeps `keep` of K responses, distributed as pi exp(r / beta) / Z (arXiv 2309.06657).

  The first response is the baseline of the reward, r(y) = log-odds of P(y > baseline), and no
  candidate itself. Those kept are compared all with all. The right side must be the left side.
  """

  def select(comparison, key):
    rewards = payoff_to_log_odds(comparison, key).payoff[:, 1:, 0]
    keys = jax.random.split(key, len(rewards))
    indices = 1 + jax.vmap(lambda key, row: rejection_sample(key, row, beta, keep))(keys, rewards)
    rows = jnp.take_along_axis(comparison.payoff, indices[:, :, None], axis=1)
    payoff = jnp.take_along_axis(rows, indices[:, None, :], axis=2)
    kept = take_responses(comparison.left, indices)
    return Comparison(comparison.prompts, kept, kept, payoff)

  return select


def rejection_sample(
  key: Array, reward: Float[Array, 'N'], beta: float, keep: int
) -> Int[Array, 'M']:
  """Indices of `keep` candidates, by statistical rejection sampling (arXiv 2309.06657, alg. 1).

  Passes over the candidates in order and accepts each with probability exp((r - r_max) / beta),
  r_max being the largest reward of those not yet accepted when the pass began, until enough are
  accepted. Candidates are told apart by index, not by text. Every pass accepts at least the best
  candidate that is left, so that the loop ends.

  Args:
    key: random key.
    reward: of each candidate.
    beta: temperature; the lower, the closer the result is to the `keep` best.
    keep: number of candidates to return.

  Raises:
    UserError: if there are fewer candidates than `keep`.
  """
  count = len(reward)
  if not 0 < keep <= count:
    raise UserError(f'cannot keep {keep} of {count} candidates; keep at least 1, and at most all.')

  def unfinished(loop):
    _, accepted, _ = loop
    return jnp.sum(accepted >= 0) < keep

  def one_pass(loop):
    number, order, taken = loop
    top = jnp.max(jnp.where(taken, -jnp.inf, reward))
    uniform = jax.random.uniform(jax.random.fold_in(key, number), (count,))
    # Negated, so that NaN rewards, or rewards that are all -inf, are accepted and the loop ends.
    accept = ~taken & ~(uniform >= jnp.exp((reward - top) / beta))
    place = jnp.sum(order >= 0) + jnp.cumsum(accept) - 1
    accept &= place < keep
    order = order.at[jnp.where(accept, place, keep)].set(jnp.arange(count), mode='drop')
    return number + 1, order, taken | accept

  start = (jnp.int32(0), jnp.full(keep, -1), jnp.zeros(count, bool))
  return lax.while_loop(unfinished, one_pass, start)[1]
