"""Playing: from a batch of data to the comparison that an update learns from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax.algorithms.algorithm import DATA, LEFT, Algorithm, needs_judge
from nlhf_jax.sampling.rollout import Rollout
from nlhf_jax.structs import Comparison, Mixture, Params, Responses

RolloutStep = Callable[[Mapping[str, Params], Any, Array], Comparison]

# (comparison, key) -> payoff: a judge, and how its preference is reported.
Feedback = Callable[[Comparison, Array], Float[Array, 'B K J']]

MakeRollout = Callable[[Sequence[Mixture]], Rollout]


def make_rollout_step(
  algorithm: Algorithm, make_rollout: MakeRollout, feedback: Feedback | None
) -> RolloutStep:
  """`make_sample`, and the feedback that it lacks.

  Args:
    algorithm: as of `make_sample`, as is the next.
    make_rollout: mixtures -> rollout.
    feedback: (comparison, key) -> payoff, asked unless a side is data.
  """
  sample = make_sample(algorithm, make_rollout)
  if not needs_judge(algorithm):
    return sample

  def play(params, batch, key):
    comparison = sample(params, batch, key)
    return comparison._replace(payoff=feedback(comparison, jax.random.fold_in(key, 1)))

  return play


def make_sample(algorithm: Algorithm, make_rollout: MakeRollout) -> RolloutStep:
  """A function (slot -> parameters, batch, key) -> comparison, without a payoff that is asked for.

  Args:
    algorithm: the row; its sides say what is sampled.
    make_rollout: mixtures -> rollout.

  Returns:
    Takes prompts, where both sides are sampled; demonstrations, which win against what is sampled;
    or, where nothing is sampled, comparisons or demonstrations as they are.
  """
  left, right = algorithm.left, algorithm.right
  if right is None or right == DATA:
    return lambda params, batch, key: batch
  ours = [] if left == DATA else left
  rollout = make_rollout([*ours, *([] if right == LEFT else right)])

  def joined(sides: Sequence[Responses]) -> Responses:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *sides)

  def sample(params, batch, key):
    prompts = batch.prompts if left == DATA else batch
    sampled = rollout(params, prompts, jax.random.fold_in(key, 0))
    if left == DATA:
      others = joined(sampled)
      wins = jnp.full((*batch.left.tokens.shape[:2], others.tokens.shape[1]), 0.5)
      return Comparison(prompts, batch.left, others, wins)
    first = joined(sampled[: len(left)])
    other = first if right == LEFT else joined(sampled[len(left) :])
    return Comparison(prompts, first, other)

  return sample
