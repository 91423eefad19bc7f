"""Judges: what says how much one response is preferred to another.

A judge is a function from a comparison to its payoff P(y > y'|x) - 1/2, [B, K, J]. Whatever is
inside, it is antisymmetric: both orders are asked, here and nowhere else, so that a liking for the
first place cannot leak into an algorithm.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax.data import tokenizers
from nlhf_jax.preferences.networks import PreferenceNetwork
from nlhf_jax.structs import Comparison, Params

Judge = Callable[[Comparison], Float[Array, 'B K J']]


def antisymmetric(one_order: Judge) -> Judge:
  """(f(y, y') - f(y', y)) / 2."""

  def payoff(comparison):
    swapped = comparison._replace(left=comparison.right, right=comparison.left)
    return (one_order(comparison) - one_order(swapped).swapaxes(1, 2)) / 2

  return payoff


def make_payoff(network: PreferenceNetwork) -> Callable[[Params, Comparison], Array]:
  """A jitted (parameters, comparison) -> payoff; a judge, once its parameters are given."""

  def payoff(params, comparison):
    def one_order(comparison):
      return jax.nn.sigmoid(network.logit(params, comparison)) - 0.5

    return antisymmetric(one_order)(comparison)

  return jax.jit(payoff)


def of_texts(
  preference: Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray], tokenizer
) -> Judge:
  """A judge that reads text: `preference(prompts, left, right)` gives P(left > right), [n]."""

  def one_order(comparison):
    prompts, left, right = comparison.prompts, comparison.left, comparison.right
    shape = (*left.tokens.shape[:2], right.tokens.shape[1])

    def read(tokens, mask, axes):
      grid = np.array(tokenizers.texts(tokenizer, tokens, mask), dtype=object)
      grid = np.expand_dims(grid.reshape(tokens.shape[:-1]), axes)
      return np.broadcast_to(grid, shape).ravel().tolist()

    chance = preference(
      read(prompts.tokens, prompts.mask, (1, 2)),
      read(left.tokens, left.mask, 2),
      read(right.tokens, right.mask, 1),
    )
    return np.reshape(chance, shape) - 0.5

  return antisymmetric(one_order)
