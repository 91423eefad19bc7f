"""Responses that the limit of tokens cut, and judges under which they lose."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nlhf_jax.judges.judge import Judge
from nlhf_jax.structs import Comparison, Responses

PENALTY = 5.0  # in log-odds: equally good, the response that ended wins with probability .993


def has_ended(responses: Responses, stop: int) -> Bool[Array, 'B K']:
  """Whether each response ends with the stop token, rather than at the limit of its length.

  A conversation has ended if each of the policy's turns has.
  """
  stops = (responses.tokens == stop) & responses.own
  if responses.turn is None:
    return jnp.any(stops, axis=-1)
  return jnp.sum(stops, axis=-1) == jnp.max(responses.turn, axis=-1)


def unfinished_loses(judge: Judge, stop: int) -> Judge:
  """A judge under which a response that was cut loses to one that ended: P is 0 or 1.

  Two that ended, and two that were cut, are judged as they are, so that the payoff stays
  antisymmetric. Without it, a judge that likes long responses teaches a policy never to end.

  Args:
    judge: returns P - 1/2, [B, K, J].
    stop: the token that ends a response.
  """

  def payoff(comparison):
    lead = _ended_lead(comparison, stop)
    return jnp.where(lead == 0, judge(comparison), lead / 2)

  return payoff


def unfinished_costs(judge: Judge, stop: int) -> Judge:
  """A judge by whose rewards a response that was cut has `PENALTY` less.

  Args:
    judge: returns r - r', [B, K, J].
    stop: the token that ends a response.
  """
  return lambda comparison: judge(comparison) + PENALTY * _ended_lead(comparison, stop)


def _ended_lead(comparison: Comparison, stop: int) -> Float[Array, 'B K J']:
  """1 if only the left response ended, -1 if only the right one did, else 0."""
  left, right = (has_ended(side, stop) for side in (comparison.left, comparison.right))
  return 1.0 * left[:, :, None] - right[:, None, :]
