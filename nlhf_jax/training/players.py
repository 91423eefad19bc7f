"""Several trained slots: the policy and further players, each with its own loss and optimiser.

A player is the slot `policy` of a training state of its own, which an ordinary update moves. In a
step all of them learn from the same samples: a play turns a batch into one comparison for each, and
each then makes its update. Time scales are learning rates: under Adam, which divides gradients by
their size, the weight of a loss is none.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from nlhf_jax.models import sharding
from nlhf_jax.structs import Comparison, Params, TrainState
from nlhf_jax.training.loop import Steps
from nlhf_jax.training.update import Update, copy_params

# (slot -> parameters, batch, key) -> player -> the comparison that it learns from.
Play = Callable[[Mapping[str, Params], Any, Array], Mapping[str, Comparison]]


class Player(NamedTuple):
  """A trained slot beside the policy: its update, the optimiser of that, and where it starts.

  `update` returns the metric `payoff` too. `fixed` are the slots that it needs but does not train.
  None stands for what the policy starts from, and for its fixed slots.
  """

  update: Update
  optimizer: optax.GradientTransformation
  start: Params | None = None
  fixed: Mapping[str, Params] | None = None


def make_player_steps(update: Update, players: Mapping[str, Player], play: Play) -> Steps:
  """Steps in which the policy and all other players move at once.

  `begin` adds the players to the state, by name: the `params` and the `optimizer` of each. Metrics
  are those of the policy and, of each player, `payoff_of_PLAYER`; `loss` is the sum over all, and
  `gradient_norm` the norm of the gradients of all. If a number of one is not finite, no player
  moves in later steps; those before it in the same step have moved, and the stage resumes from the
  last checkpoint.

  Args:
    update: of the policy.
    players: name -> player; the name is the slot that the play samples it from.
    play: gives the comparison of `policy` and of each player.
  """

  def begin(state, batch, key):
    del batch, key
    first = {}
    for name, player in players.items():
      start = state.params['policy'] if player.start is None else player.start
      params = copy_params(start)
      own = {'params': params, 'optimizer': player.optimizer.init(params)}
      first[name] = sharding.put_parameters(own)
    return state._replace(in_flight=first)

  def step(state, batch, key):
    others = state.in_flight
    slots = {**state.slots, **{name: own['params'] for name, own in others.items()}}
    comparisons, key = play(slots, batch, key), jax.random.fold_in(key, 2)
    state, metrics = update(state._replace(in_flight=None), comparisons['policy'], key)
    moved = {}
    for name, player in players.items():
      own = TrainState(
        jnp.copy(state.step),
        {'policy': others[name]['params']},
        others[name]['optimizer'],
        state.fixed if player.fixed is None else player.fixed,
        nonfinite=jnp.copy(state.nonfinite),
      )
      own, values = player.update(own, comparisons[name], key)
      moved[name] = {'params': own.params['policy'], 'optimizer': own.optimizer}
      step, nonfinite, joined = join(state.step, state.nonfinite, own.nonfinite, metrics, values)
      state = state._replace(step=step, nonfinite=nonfinite)
      metrics = {**metrics, **joined, f'payoff_of_{name}': values['payoff']}
    return state._replace(in_flight=moved), metrics

  return Steps(step, begin)


@jax.jit
def join(
  step: Array,
  nonfinite: Array,
  failed: Array,
  metrics: Mapping[str, Array],
  values: Mapping[str, Array],
) -> tuple[Array, Array, dict[str, Array]]:
  """The step and the bits of a state after one more player has moved, and joint metrics.

  Args:
    step: number of updates of the players before.
    nonfinite: the bits of these.
    failed: the bits after the update of this player; if they are new, the step does not count.
    metrics: of the players before.
    values: of this player.
  """
  joined = {
    'loss': metrics['loss'] + values['loss'],
    'gradient_norm': jnp.hypot(metrics['gradient_norm'], values['gradient_norm']),
  }
  if 'skipped_updates' in values:
    joined['skipped_updates'] = jnp.maximum(metrics['skipped_updates'], values['skipped_updates'])
  return jnp.where(failed != nonfinite, step - 1, step), nonfinite | failed, joined
