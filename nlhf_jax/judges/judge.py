"""Judges: what says how much one response is preferred to another.

A judge is a function from a comparison to its payoff [B, K, J]: P(y > y'|x) - 1/2, or a difference
of rewards. Whatever is inside, it is antisymmetric: both orders are asked, here and nowhere else,
so that a liking for the first place cannot leak into an algorithm.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax import distributed
from nlhf_jax.data import tokenizers
from nlhf_jax.judges.networks import PreferenceNetwork, RewardNetwork
from nlhf_jax.structs import Comparison, Params

Judge = Callable[[Comparison], Float[Array, 'B K J']]
# Of texts: (prompts, left, right) -> P(left > right), [n], with the left one shown first; NaN for
# what it cannot say.
TextPreference = Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray]


class BothOrders(NamedTuple):
  """What a judge says of n pairs: P(left > right), [n], NaN where it says nothing.

  `shown` with the left response first, `swapped` with the right one first, and `chance` what it
  makes of both.
  """

  shown: np.ndarray
  swapped: np.ndarray
  chance: np.ndarray


# P(left > right) by a judge that said `ahead`, P(left > right) with the left one shown first, and
# `behind`, P(right > left) with the right one shown first.
CombineOrders = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean_of_orders(ahead: np.ndarray, behind: np.ndarray) -> np.ndarray:
  """The mean of the probabilities; with its mirror image it is exactly 1."""
  return 0.5 + (ahead - behind) / 2


def antisymmetric(one_order: Judge) -> Judge:
  """(f(y, y') - f(y', y)) / 2. Responses compared with themselves are asked about once an order."""

  def payoff(comparison):
    if comparison.right is comparison.left:
      said = one_order(comparison)
      return (said - said.swapaxes(1, 2)) / 2
    swapped = comparison._replace(left=comparison.right, right=comparison.left)
    return (one_order(comparison) - one_order(swapped).swapaxes(1, 2)) / 2

  return payoff


def judge_from_network(network: PreferenceNetwork, params: Params) -> Judge:
  """P(y > y'|x) - 1/2 by a preference network."""
  return antisymmetric(lambda comparison: jax.nn.sigmoid(network.logit(params, comparison)) - 0.5)


def judge_from_embeddings(network: PreferenceNetwork, params: Params) -> Judge:
  """The same by a network whose logits are antisymmetric already: one order says it all."""
  return lambda comparison: jnp.tanh(network.logit(params, comparison) / 2) / 2


def judge_from_rewards(network: RewardNetwork, params: Params) -> Judge:
  """r(x, y) - r(x, y') by a reward network."""

  def payoff(comparison):
    left, right = network.score(params, comparison)
    return left[:, :, None, 0] - right[:, None, :, 0]

  return payoff


def bradley_terry_judge(rewards: Judge) -> Judge:
  """P(y > y'|x) - 1/2 = 1/(1 + exp(r' - r)) - 1/2 of a judge that gives differences of rewards."""
  return lambda comparison: jnp.tanh(rewards(comparison) / 2) / 2


def comparison_texts(
  comparison: Comparison, tokenizer: Any
) -> tuple[list[str], list[list[str]], list[list[str]]]:
  """The texts of a comparison: B prompts, and K left and J right responses to each."""
  prompts, left, right = comparison[:3]

  def sides(responses):
    tokens, mask = distributed.fetch((responses.tokens, responses.mask))
    texts = tokenizers.texts(tokenizer, tokens, mask)
    return np.reshape(np.array(texts, dtype=object), tokens.shape[:2]).tolist()

  asked = tokenizers.prompt_texts(tokenizer, *distributed.fetch((prompts.tokens, prompts.mask)))
  ours = sides(left)
  return asked, ours, ours if right is left else sides(right)


def judge_both_orders(
  preference: TextPreference,
  both: CombineOrders,
  prompts: Sequence[str],
  left: Sequence[str],
  right: Sequence[str],
) -> BothOrders:
  """The word of a judge that reads text."""
  ahead, behind = preference(prompts, left, right), preference(prompts, right, left)
  return BothOrders(ahead, 1 - behind, both(ahead, behind))


def judge_from_texts(preference: TextPreference, tokenizer: Any) -> Judge:
  """A judge that reads text; NaN in either order makes the payoff of the pair NaN."""

  def one_order(comparison):
    prompts, left, right = comparison_texts(comparison, tokenizer)
    triples = [
      (prompt, one, other)
      for prompt, lefts, rights in zip(prompts, left, right, strict=True)
      for one in lefts
      for other in rights
    ]
    chance = preference(*map(list, zip(*triples, strict=True)))
    return np.reshape(chance, (len(prompts), len(left[0]), len(right[0]))) - 0.5

  return antisymmetric(one_order)


# How a judge's preference reaches the learner: (payoff, key) -> payoff.


def probability(payoff: Float[Array, 'B K J'], key: Array) -> Float[Array, 'B K J']:
  """As it is: the model-based feedback of arXiv 2312.00886, section 7."""
  del key
  return payoff


def vote(payoff: Float[Array, 'B K J'], key: Array) -> Float[Array, 'B K J']:
  """One sampled vote on every pair, +1/2 or -1/2, with the same mean: model-free feedback.

  Where there is no preference, NaN, there is no vote.
  """
  vote = (jax.random.uniform(key, payoff.shape) < payoff + 0.5) - 0.5
  return jnp.where(jnp.isnan(payoff), payoff, vote)


def with_feedback(
  judge: Judge, report: Callable[[Array, Array], Array]
) -> Callable[[Comparison, Array], Array]:
  """A judge whose every answer is reported by `probability` or `verdict`: (comparison, key).

  Where responses are compared with themselves, a pair has one verdict, and none on itself.
  """

  def ask(comparison, key):
    payoff = report(jnp.asarray(judge(comparison)), key)
    if comparison.right is comparison.left:
      upper = jnp.triu(payoff, 1)
      payoff = upper - upper.swapaxes(1, 2)
    return payoff

  return ask
