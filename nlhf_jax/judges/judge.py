"""Judges: functions that measure how much one response is preferred to another.

A judge maps a comparison to its payoff [B, K, J]: P(y > y'|x) - 1/2, or a difference of rewards.
The payoff is antisymmetric, payoff(y, y') = -payoff(y', y). Algorithms rely on it, and nothing
checks it at run time; "the worse of two judges for the left response" is not antisymmetric, and
therefore not a judge (see `antisymmetric`). A preference that depends on the order of two responses
is evaluated in both orders; this module is the only place where sides are swapped, so a bias
towards the first position cannot reach an algorithm. NaN means that the judge has no verdict on a
pair, and nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax import distributed
from nlhf_jax.data import dialogue_texts, tokenizers
from nlhf_jax.judges.networks import PreferenceNetwork, RewardNetwork
from nlhf_jax.structs import Comparison, Params

Judge = Callable[[Comparison], Float[Array, 'B K J']]
# (prompts, left, right) -> P(left > right), [n], the left response shown first; NaN: no verdict.
TextPreference = Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray]
# P(left > right) from P(left > right), the left response shown first, and from P(right > left), the
# right response shown first.
CombineOrders = Callable[[np.ndarray, np.ndarray], np.ndarray]


class BothOrders(NamedTuple):
  """P(left > right) of n pairs, [n]; NaN where there is no verdict.

  `left_first` is measured with the left response shown first, `right_first` with the right one
  shown first, and `probability` combines both.
  """

  left_first: np.ndarray
  right_first: np.ndarray
  probability: np.ndarray


# --- Both orders ---


def swap_sides(comparison: Comparison) -> Comparison:
  """The comparison of the right responses with the left ones."""
  return comparison._replace(left=comparison.right, right=comparison.left)


def half_difference(
  forward: Array | np.ndarray, backward: Array | np.ndarray
) -> Array | np.ndarray:
  """(forward - backward) / 2: the default way to combine two orders into a payoff."""
  return (forward - backward) / 2


def antisymmetric(
  one_order: Judge, combine: Callable[[Array, Array], Array] = half_difference
) -> Judge:
  """The judge combine(f(y, y'), f(y', y)), with f evaluated in one order at a time.

  The default projects f onto antisymmetric functions: it cancels a bias towards a position, and
  everything else that is not antisymmetric. Of min(a, b) for two judges a and b it leaves their
  mean (a + b) / 2; a cautious combination, such as the median of a, b and 0, needs a `combine` of
  its own.

  If a batch of responses is compared with itself, one evaluation contains both orders.

  Args:
    one_order: f, [B, K, J], which may depend on the order of the sides.
    combine: antisymmetric in its two arguments.
  """

  def payoff(comparison):
    forward = one_order(comparison)
    itself = comparison.right is comparison.left
    backward = forward if itself else one_order(swap_sides(comparison))
    return combine(forward, backward.swapaxes(1, 2))

  return payoff


def mean_of_orders(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
  """P(left > right) as the mean over both orders; it and P(right > left) sum to exactly 1."""
  return 0.5 + (forward - backward) / 2


def judge_both_orders(
  preference: TextPreference,
  combine: CombineOrders,
  prompts: Sequence[str],
  left: Sequence[str],
  right: Sequence[str],
) -> BothOrders:
  """Evaluates a preference between texts in both orders."""
  forward, backward = preference(prompts, left, right), preference(prompts, right, left)
  return BothOrders(forward, 1 - backward, combine(forward, backward))


# --- Judges from networks and from functions of texts ---


def judge_from_network(network: PreferenceNetwork, params: Params) -> Judge:
  """P(y > y'|x) - 1/2 by a network whose logit depends on the order."""
  return antisymmetric(lambda comparison: _sigmoid_lead(network.logit(params, comparison)))


def judge_from_embeddings(network: PreferenceNetwork, params: Params) -> Judge:
  """P(y > y'|x) - 1/2 by a network whose logit is antisymmetric: one order is enough."""
  return lambda comparison: _tanh_lead(network.logit(params, comparison))


def judge_from_rewards(network: RewardNetwork, params: Params) -> Judge:
  """r(x, y) - r(x, y') by a reward network."""

  def payoff(comparison):
    left, right = network.score(params, comparison)
    return left[:, :, None, 0] - right[:, None, :, 0]

  return payoff


def bradley_terry_judge(rewards: Judge) -> Judge:
  """P(y > y'|x) - 1/2 = 1/(1 + exp(r' - r)) - 1/2 from a judge that returns reward differences."""
  return lambda comparison: _tanh_lead(rewards(comparison))


# P - 1/2 from log-odds, in one program. The second is odd to the last bit.
_sigmoid_lead = jax.jit(lambda logit: jax.nn.sigmoid(logit) - 0.5)
_tanh_lead = jax.jit(lambda logit: jnp.tanh(logit / 2) / 2)


def comparison_texts(
  comparison: Comparison, tokenizer: Any
) -> tuple[list[str], list[list[str]], list[list[str]]]:
  """The texts of a comparison: B prompts, and for each its K left and J right responses.

  A conversation is one text, in which `User:` and `Assistant:` begin all turns but the first.
  """
  prompts, left, right = comparison[:3]

  def decode(responses):
    responses = distributed.fetch(responses._replace(log_probs=None, entropy=None))
    texts = dialogue_texts.response_texts(tokenizer, responses)
    return np.reshape(np.array(texts, dtype=object), responses.tokens.shape[:2]).tolist()

  prompt_texts = tokenizers.prompt_texts(
    tokenizer, *distributed.fetch((prompts.tokens, prompts.mask))
  )
  left_texts = decode(left)
  return prompt_texts, left_texts, left_texts if right is left else decode(right)


def judge_from_texts(
  preference: TextPreference,
  tokenizer: Any,
  combine: Callable[[Array, Array], Array] = half_difference,
  tie: float = 0.5,
) -> Judge:
  """A judge that decodes responses and compares their texts; equal texts are a tie.

  Args:
    preference: P(left > right), or another score of pairs of texts; NaN in either order makes the
      payoff of the pair NaN. It is not called for a pair of equal texts.
    tokenizer: decodes the responses.
    combine: as of `antisymmetric`, for `preference - tie`.
    tie: the value of `preference` that favours neither side.
  """

  def one_order(comparison):
    prompts, left, right = comparison_texts(comparison, tokenizer)
    pairs = [
      (row, k, j)
      for row, (lefts, rights) in enumerate(zip(left, right, strict=True))
      for k, one in enumerate(lefts)
      for j, other in enumerate(rights)
      if one != other
    ]
    shape = len(prompts), len(left[0]), len(right[0])
    if not pairs:
      return np.zeros(shape)
    triples = [(prompts[row], left[row][k], right[row][j]) for row, k, j in pairs]
    values = np.asarray(preference(*map(list, zip(*triples, strict=True)))) - tie
    payoff = np.zeros(shape, values.dtype)
    payoff[tuple(np.transpose(pairs))] = values
    return payoff

  return antisymmetric(one_order, combine)


# --- Feedback: what a learner receives from a judge, (payoff, key) -> payoff ---


def probability(payoff: Float[Array, 'B K J'], key: Array) -> Float[Array, 'B K J']:
  """The payoff itself: the model-based feedback of arXiv 2312.00886, section 7."""
  del key
  return payoff


def vote(payoff: Float[Array, 'B K J'], key: Array) -> Float[Array, 'B K J']:
  """One sampled vote on each pair, +1/2 or -1/2, whose mean is the payoff: model-free feedback.

  Pairs without a verdict, NaN, have no vote either, and an infinite payoff remains one.
  """
  sampled = (jax.random.uniform(key, payoff.shape) < payoff + 0.5) - 0.5
  return jnp.where(jnp.isfinite(payoff), sampled, payoff)


def with_feedback(
  judge: Judge, feedback: Callable[[Array, Array], Array]
) -> Callable[[Comparison, Array], Array]:
  """The function (comparison, key) -> payoff of a judge whose payoff passes through `feedback`.

  If a batch of responses is compared with itself, both orders of a pair share one sample.

  Args:
    judge: returns the payoff of a comparison.
    feedback: `probability` or `vote`.
  """

  def compare(comparison, key):
    payoff = feedback(jnp.asarray(judge(comparison)), key)
    if comparison.right is comparison.left:
      upper = jnp.triu(payoff, 1)
      payoff = upper - upper.swapaxes(1, 2)
    return payoff

  return compare
