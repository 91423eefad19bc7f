"""Initial state and the jitted update: (state, comparison, key) -> (state, metrics)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlhf_jax import trees
from nlhf_jax.algorithms.algorithm import Algorithm
from nlhf_jax.algorithms.references import frozen
from nlhf_jax.structs import Comparison, Params, TrainState

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


def make_update(
  algorithm: Algorithm, score: Score, optimizer: optax.GradientTransformation, measure: Measure
) -> Update:
  """A jitted update of the policy by one gradient, then of every reference by its rule.

  Args:
    algorithm: the row; its loss sees what `score` says for every slot.
    score: (parameters, comparison) -> scores. A slot whose scores no one reads costs nothing.
    optimizer: minimises the mean loss.
    measure: (comparison, slot -> scores of what was selected) -> scalars to log.

  Returns:
    (state, comparison, key) -> (state, metrics); what moves of the state passed in is donated.
  """

  @partial(jax.jit, donate_argnums=0)
  def moved(moving, fixed, comparison, key):
    state = moving._replace(fixed=fixed)
    selected = algorithm.select(comparison, key)
    others = {
      slot: score(trees.of_slot(state.slots, slot), selected) for slot in algorithm.references
    }

    def objective(policy):
      slots = {**state.slots, 'policy': policy}
      scores = {'policy': score(trees.of_slot(slots, 'policy'), selected), **others}
      return jnp.mean(algorithm.loss(scores, selected)), scores

    policy = state.params['policy']
    (loss, scores), gradient = jax.value_and_grad(objective, has_aux=True)(policy)
    change, memory = optimizer.update(gradient, state.optimizer, policy)
    metrics = {'loss': loss, 'gradient_norm': optax.tree.norm(gradient)}
    metrics |= measure(comparison, scores)
    state = advance(algorithm, state, optax.apply_updates(policy, change), memory)
    return state._replace(fixed={}), metrics

  def update(state, comparison, key):
    moving, metrics = moved(state._replace(fixed={}), dict(state.fixed), comparison, key)
    return moving._replace(fixed=state.fixed), metrics

  return update
