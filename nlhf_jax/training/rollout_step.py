"""The rollout step: from a batch of data to the comparison that an update learns from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax.algorithms.algorithm import (
  DATA,
  LEFT,
  Algorithm,
  needs_judge,
  sampled_mixtures,
  samples_responses,
)
from nlhf_jax.sampling.rollout import Rollout
from nlhf_jax.structs import Comparison, Mixture, Params, Responses

# (slot -> parameters, batch, key) -> comparison
RolloutStep = Callable[[Mapping[str, Params], Any, Array], Comparison]

# (comparison, key) -> payoff: a judge's preference, as probabilities or as sampled votes.
Feedback = Callable[[Comparison, Array], Float[Array, 'B K J']]

MakeRollout = Callable[[Sequence[Mixture]], Rollout]


def make_rollout_step(
  algorithm: Algorithm, make_rollout: MakeRollout, feedback: Feedback | None
) -> RolloutStep:
  """A function (slots, batch, key) -> comparison, with its payoff.

  Args:
    algorithm: its sides determine what is sampled.
    make_rollout: mixtures -> rollout.
    feedback: gives the payoff where both sides are sampled; not called otherwise.
  """
  sample = make_sample(algorithm, make_rollout)
  if not needs_judge(algorithm):
    return sample

  def rollout_step(params, batch, key):
    comparison = sample(params, batch, key)
    return comparison._replace(payoff=feedback(comparison, jax.random.fold_in(key, 1)))

  return rollout_step


def make_sample(algorithm: Algorithm, make_rollout: MakeRollout) -> RolloutStep:
  """A function (slots, batch, key) -> comparison, without the payoff that a judge would give.

  Its batches are prompts, where both sides are sampled; demonstrations, which win against sampled
  responses; or, where nothing is sampled, comparisons or demonstrations, returned as they are.

  Args:
    algorithm: its sides determine what is sampled.
    make_rollout: mixtures -> rollout.
  """
  left, right = algorithm.left, algorithm.right
  if not samples_responses(algorithm):
    return lambda params, batch, key: batch
  rollout = make_rollout(sampled_mixtures(algorithm))

  def join(sides: Sequence[Responses]) -> Responses:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *sides)

  def sample(params, batch, key):
    prompts = batch.prompts if left == DATA else batch
    sampled = rollout(params, prompts, jax.random.fold_in(key, 0))
    if left == DATA:
      others = join(sampled)
      wins = jnp.full((*batch.left.tokens.shape[:2], others.tokens.shape[1]), 0.5)
      return Comparison(prompts, batch.left, others, wins)
    first = join(sampled[: len(left)])
    other = first if right == LEFT else join(sampled[len(left) :])
    return Comparison(prompts, first, other)

  return sample
