"""Responses that the limit of tokens cut, and judges under which they lose."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nlhf_jax.judges.judge import Judge
from nlhf_jax.structs import Responses

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

  return lambda comparison: _overrule(judge(comparison), comparison.left, comparison.right, stop)


def unfinished_costs(judge: Judge, stop: int) -> Judge:
  """A judge by whose rewards a response that was cut has `PENALTY` less.

  Args:
    judge: returns r - r', [B, K, J].
    stop: the token that ends a response.
  """
  return lambda comparison: _charge(judge(comparison), comparison.left, comparison.right, stop)


# Each is one program; one by one, every operation would be compiled for every shape.


@partial(jax.jit, static_argnames='stop')
def _overrule(payoff, left, right, stop):
  lead = _ended_lead(left, right, stop)
  return jnp.where(lead == 0, payoff, lead / 2)


@partial(jax.jit, static_argnames='stop')
def _charge(payoff, left, right, stop):
  return payoff + PENALTY * _ended_lead(left, right, stop)


def _ended_lead(left: Responses, right: Responses, stop: int) -> Float[Array, 'B K J']:
  """1 if only the left response ended, -1 if only the right one did, else 0."""
  return 1.0 * has_ended(left, stop)[:, :, None] - has_ended(right, stop)[:, None, :]
