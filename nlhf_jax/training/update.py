"""Initial state and the jitted update: (state, comparison, key) -> (state, metrics)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from nlhf_jax import trees
from nlhf_jax.algorithms.algorithm import Algorithm
from nlhf_jax.algorithms.references import frozen
from nlhf_jax.algorithms.selection import judged
from nlhf_jax.models import sharding
from nlhf_jax.structs import Comparison, Params, TrainState
from nlhf_jax.training import optimizers

Score = Callable[[Params, Comparison], object]
Measure = Callable[[Comparison, Mapping[str, object]], Mapping[str, jax.Array]]
Update = Callable[[TrainState, Comparison, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def initial_state(
  algorithm: Algorithm,
  params: Params,
  optimizer: optax.GradientTransformation,
  base: Params | None = None,
) -> TrainState:
  """Step 0: every slot starts as `params`.

  Those that move have a copy each, since updates donate their buffers.

  Args:
    algorithm: the row.
    params: what the policy starts from.
    optimizer: of the policy.
    base: what all slots have beside that, and none changes.
  """
  fixed = {slot: params for slot, rule in algorithm.references.items() if rule is frozen}
  moving = [slot for slot in ('policy', *algorithm.references) if slot not in fixed]
  slots = {slot: jax.tree.map(jnp.copy, params) for slot in moving}
  if base:
    fixed['base'] = base
  return TrainState(jnp.zeros((), jnp.int32), slots, optimizer.init(slots['policy']), fixed)


def advance(algorithm: Algorithm, state: TrainState, policy: Params, memory: Any) -> TrainState:
  """The next state, where a gradient proposes `policy` and leaves the optimiser with `memory`."""
  updates = state.step + 1
  proposed = {**state.slots, 'policy': policy}
  params = {
    slot: rule(slot, proposed, updates)
    for slot, rule in algorithm.references.items()
    if slot in state.params
  }
  taken = algorithm.step(updates)
  params['policy'], memory = jax.tree.map(
    lambda new, old: jnp.where(taken, new, old),
    (policy, memory),
    (state.params['policy'], state.optimizer),
  )
  return TrainState(updates, params, memory, state.fixed)


def in_parts(
  differentiate: Callable[[Comparison, jax.Array], tuple[tuple[jax.Array, Any], Params]],
  comparison: Comparison,
  weight: Float[Array, 'B'],
  count: int,
) -> tuple[tuple[jax.Array, Any], Params]:
  """What `differentiate` gives for the whole, one part of the examples after the other.

  Args:
    differentiate: (comparison, weight) -> ((mean loss, scores of every example), gradient).
    comparison: of B examples, a multiple of `count`.
    weight: of each of them.
    count: of parts.

  Returns:
    ((mean loss, scores), gradient), the gradient summed up in float32.
  """
  # Responses that are compared with themselves are read once: each part has to know that as well.
  themselves = comparison.right is comparison.left
  if themselves:
    comparison = comparison._replace(right=None)

  def split(leaf):
    # Every count-th example, so that no part lies on a few of the devices only.
    return leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1)

  def joined(leaf):
    return leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])

  def of_part(part):
    part, weight = part
    part = part._replace(right=part.left) if themselves else part
    (loss, scores), gradient = differentiate(part, weight)
    wide = lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) / count
    return jax.tree.map(wide, (loss, gradient)), scores

  def add(total, part):
    share, scores = of_part(part)
    return jax.tree.map(jnp.add, total, share), scores

  parts = jax.tree.map(split, (comparison, weight))
  share, _ = jax.eval_shape(of_part, jax.tree.map(lambda leaf: leaf[0], parts))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), share)
  (loss, gradient), scores = lax.scan(add, zeros, parts)
  return (loss, jax.tree.map(joined, scores)), gradient


def make_update(
  algorithm: Algorithm,
  score: Score,
  optimizer: optax.GradientTransformation,
  measure: Measure,
  accumulate: int = 1,
) -> Update:
  """A jitted update of the policy by one gradient, then of every reference by its rule.

  Prompts with a payoff that is NaN have no part in it: it is that of the others alone.

  Args:
    algorithm: the row; its loss sees what `score` says for every slot.
    score: (parameters, comparison) -> scores. A slot whose scores no one reads costs nothing.
    optimizer: minimises the mean loss.
    measure: (comparison, slot -> scores of what was selected) -> scalars to log.
    accumulate: in how many equal parts, one after the other, the gradient of what was selected is
      computed. The loss of an example must not depend on the others.

  Returns:
    (state, comparison, key) -> (state, metrics); what moves of the state passed in is donated.
  """

  def differentiate(state, selected, weight):
    """((mean loss, slot -> scores), gradient)."""
    others = {
      slot: score(trees.slot_params(state.slots, slot), selected) for slot in algorithm.references
    }

    def objective(policy):
      slots = {**state.slots, 'policy': policy}
      scores = {'policy': score(trees.slot_params(slots, 'policy'), selected), **others}
      loss = algorithm.loss(scores, selected)
      return jnp.mean(loss * jnp.expand_dims(weight, range(1, loss.ndim))), scores

    return jax.value_and_grad(objective, has_aux=True)(state.params['policy'])

  @partial(jax.jit, donate_argnums=0)
  def moved(moving, fixed, comparison, key):
    state = moving._replace(fixed=fixed)
    known, weight = judged(comparison)
    selected = algorithm.select(known, key)
    if accumulate == 1:
      (loss, scores), gradient = differentiate(state, selected, weight)
    else:
      of_part = partial(differentiate, state)
      (loss, scores), gradient = in_parts(of_part, selected, weight, accumulate)
    policy = state.params['policy']
    change, memory = optimizer.update(gradient, state.optimizer, policy)
    metrics = {'loss': loss, 'gradient_norm': optax.tree.norm(optimizers.wide(gradient))}
    metrics |= measure(comparison, scores)
    state = advance(algorithm, state, optax.apply_updates(policy, change), memory)
    return sharding.shard_parameters(state._replace(fixed={})), metrics

  def update(state, comparison, key):
    moving, metrics = moved(state._replace(fixed={}), dict(state.fixed), comparison, key)
    return moving._replace(fixed=state.fixed), metrics

  return update
