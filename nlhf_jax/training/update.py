"""The update of a policy: rollout, gradient, references; and the initial state."""

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
from nlhf_jax.algorithms.selection import drop_unjudged
from nlhf_jax.models import sharding
from nlhf_jax.structs import Comparison, Params, TrainState
from nlhf_jax.training import divergence, optimizers
from nlhf_jax.training.rollout_step import RolloutStep

Score = Callable[[Params, Comparison], object]
Measure = Callable[[Comparison, Mapping[str, object]], Mapping[str, jax.Array]]
Update = Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def initial_state(
  algorithm: Algorithm,
  params: Params,
  optimizer: optax.GradientTransformation,
  base: Params | None = None,
) -> TrainState:
  """The state at step 0, in which every slot equals `params`.

  Slots that move get copies of their own, since updates donate their buffers.

  Args:
    algorithm: names the slots and their update rules.
    params: the policy's initial parameters, without `base`.
    optimizer: of the policy.
    base: parameters that all slots share, and that no update changes.
  """
  moving = moving_slots(algorithm)
  fixed = {slot: params for slot in algorithm.references if slot not in moving}
  slots = {slot: copy_params(params) for slot in moving}
  if base:
    fixed['base'] = base
  # Two arrays, since an update donates both.
  step, nonfinite = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
  return TrainState(step, slots, optimizer.init(slots['policy']), fixed, nonfinite=nonfinite)


# One program, not one for each shape.
copy_params = jax.jit(partial(jax.tree.map, jnp.copy))


def moving_slots(algorithm: Algorithm) -> list[str]:
  """The policy, and the references that are not frozen."""
  return ['policy', *(slot for slot, rule in algorithm.references.items() if rule.kind != 'frozen')]


def advance(
  algorithm: Algorithm, state: TrainState, policy: Params, optimizer_state: Any
) -> TrainState:
  """The next state, given the policy and optimiser state that a gradient step proposes."""
  updates = state.step + 1
  proposed = {**state.slots, 'policy': policy}
  params = {
    slot: rule.update(slot, proposed, updates)
    for slot, rule in algorithm.references.items()
    if slot in state.params
  }
  taken = algorithm.step(updates)
  old = state.params['policy'], state.optimizer
  params['policy'], optimizer_state = choose(taken, (policy, optimizer_state), old)
  return TrainState(updates, params, optimizer_state, state.fixed, nonfinite=state.nonfinite)


def advance_unless(bits: Array, state: TrainState, proposed: TrainState) -> TrainState:
  """The proposed state, or the one before, if `bits` or earlier updates say that it failed.

  The numbers of the proposed state itself are checked last, when they have replaced those before:
  a choice that waited for them would need memory for both.
  """
  failed = (state.nonfinite != 0) | (bits != 0)
  optimizer = choose(failed, state.optimizer, proposed.optimizer)
  if len(state.params) == 1:
    params = choose(failed, state.params, proposed.params)
  else:
    # Fused with a choice by `where`, averages of the policy would be rounded otherwise.
    params = lax.cond(failed, lambda: state.params, lambda: proposed.params)
  after = proposed._replace(params=params, optimizer=optimizer)
  nonfinite = jnp.where(state.nonfinite != 0, state.nonfinite, bits | divergence.check_state(after))
  step = jnp.where(nonfinite != 0, state.step, proposed.step)
  return after._replace(step=step, nonfinite=nonfinite)


def choose(condition: Array | bool, if_true: Any, if_false: Any) -> Any:
  """One of two trees."""
  return jax.tree.map(partial(jnp.where, condition), if_true, if_false)


def accumulate_gradient(
  differentiate: Callable[[Comparison, jax.Array], tuple[tuple[jax.Array, Any], Params]],
  comparison: Comparison,
  weight: Float[Array, 'B'],
  count: int,
) -> tuple[tuple[jax.Array, Any], Params]:
  """Computes the gradient of a batch in `count` equal parts, one after the other.

  Args:
    differentiate: (comparison, weight) -> ((mean loss, scores of every example), gradient).
    comparison: B examples, a multiple of `count`.
    weight: of each example.
    count: number of parts.

  Returns:
    ((mean loss, scores), gradient) of the whole batch; the gradient is accumulated in float32.
  """
  # Under jit, equal sides are two different arrays, so their identity is restored in each part.
  shared = comparison.right is comparison.left
  if shared:
    comparison = comparison._replace(right=None)

  def split(leaf):
    # Every count-th example, so that each part is spread over all devices.
    return leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1)

  def merge(leaf):
    return leaf.swapaxes(0, 1).reshape(-1, *leaf.shape[2:])

  def one_part(part):
    part, weight = part
    part = part._replace(right=part.left) if shared else part
    (loss, scores), gradient = differentiate(part, weight)
    scaled = lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) / count
    return jax.tree.map(scaled, (loss, gradient)), scores

  def add(total, part):
    addend, scores = one_part(part)
    # Each device carries its own part of the gradient only.
    return sharding.shard_parameters(jax.tree.map(jnp.add, total, addend)), scores

  parts = jax.tree.map(split, (comparison, weight))
  shapes, _ = jax.eval_shape(one_part, jax.tree.map(lambda leaf: leaf[0], parts))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  (loss, gradient), scores = lax.scan(add, sharding.shard_parameters(zeros), parts)
  return (loss, jax.tree.map(merge, scores)), gradient


def make_objective(
  algorithm: Algorithm, score: Score
) -> Callable[[Params, TrainState, Comparison, Array], tuple[Array, dict[str, Any]]]:
  """(policy, state, comparison, weight of each example) -> (mean loss, slot -> scores)."""

  def objective(policy, state, selected, weight):
    slots = {**state.slots, 'policy': policy}
    names = ('policy', *algorithm.references)
    scores = {slot: score(trees.slot_params(slots, slot), selected) for slot in names}
    loss = algorithm.loss(scores, selected)
    return jnp.mean(loss * jnp.expand_dims(weight, range(1, loss.ndim))), scores

  return objective


def make_update(
  algorithm: Algorithm,
  score: Score,
  optimizer: optax.GradientTransformation,
  measure: Measure,
  accumulate: int = 1,
  rollout_step: RolloutStep | None = None,
  skip: bool = False,
) -> Update:
  """An update: one gradient step of the policy, then every reference moves by its rule.

  Prompts whose payoff a judge leaves at NaN have no part in the mean loss. If anything else is not
  finite, neither this update nor a later one changes the state, whose `nonfinite` has its bit. The
  gradient and all that follows are one compiled program; `rollout_step` runs before it.

  Args:
    algorithm: its loss receives the scores of every slot.
    score: (parameters, comparison) -> scores. Scores that no loss reads are not computed.
    optimizer: minimises the mean loss.
    measure: (comparison, slot -> scores of the selected part) -> metrics.
    accumulate: number of equal parts that the gradient is computed in; needs a per-example loss.
    rollout_step: (slots, batch, key) -> comparison; without it, batches are comparisons.
    skip: leave such an update out, and count it in the metric `skipped_updates`.

  Returns:
    (state, batch, key) -> (state, metrics). The moving part of the state passed in is donated.
  """
  differentiate = jax.value_and_grad(make_objective(algorithm, score), has_aux=True)

  @partial(jax.jit, donate_argnums=0)
  def apply(moving, fixed, comparison, key):
    state = moving._replace(fixed=fixed)
    usable, weight = drop_unjudged(comparison)
    selected, policy = algorithm.select(usable, key), state.params['policy']
    if accumulate == 1:
      (loss, scores), gradient = differentiate(policy, state, selected, weight)
    else:
      one_part = lambda part, weight: differentiate(policy, state, part, weight)
      (loss, scores), gradient = accumulate_gradient(one_part, selected, weight, accumulate)
    change, optimizer_state = optimizer.update(gradient, state.optimizer, policy)
    metrics = {'loss': loss, 'gradient_norm': optax.tree.norm(optimizers.widen(gradient))}
    metrics |= measure(comparison, scores)
    bits = divergence.check_step(algorithm, comparison, metrics)
    policy = optax.apply_updates(policy, change)
    if skip:
      old = state.params['policy'], state.optimizer
      policy, optimizer_state = choose(bits != 0, old, (policy, optimizer_state))
      metrics['skipped_updates'] = (bits != 0).astype(jnp.float32)
      bits = jnp.zeros_like(bits)
    state = advance_unless(bits, state, advance(algorithm, state, policy, optimizer_state))
    return sharding.shard_parameters(state._replace(fixed={})), metrics

  def update(state, batch, key):
    if rollout_step:
      # The rollout folds 0 and 1 into the key.
      batch, key = rollout_step(state.slots, batch, key), jax.random.fold_in(key, 2)
    moving, metrics = apply(state._replace(fixed={}), dict(state.fixed), batch, key)
    return moving._replace(fixed=state.fixed), metrics

  return update
