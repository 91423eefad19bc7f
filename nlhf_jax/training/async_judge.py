"""Judging in the background: a slow judge compares responses while the policy trains on others.

Step n samples responses and sends them to the judge, then trains on those sampled at step n - 1.
Training is therefore one update late: responses were sampled by the policy before the last update,
but are trained on as if the current policy had sampled them. The comparison in flight is part of
the state; a resumed run sends it to the judge again, and equals an uninterrupted one if the judge
gives the same answers. Of several processes the first one calls the judge, with texts alone: a
network would work on the devices of all, which are at other work.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax import distributed
from nlhf_jax.models import sharding
from nlhf_jax.structs import Comparison, Prompts
from nlhf_jax.training.loop import Steps
from nlhf_jax.training.rollout_step import RolloutStep
from nlhf_jax.training.update import Update

Judge = Callable[[Comparison], Any]


def make_async_judge(
  sample: RolloutStep,
  judge: Judge,
  feedback: Callable[[Judge], Callable[[Comparison, jax.Array], jax.Array]],
  update: Update,
  *,
  steps: int,
  prompt_length: int,
) -> Steps:
  """Steps that train on the comparison sampled one step before.

  `begin` samples the first comparison. The batch given to `step` is the one that the next step
  trains on; `close` waits for the judge.

  Args:
    sample: (slots, batch, key) -> comparison without a payoff.
    judge: comparison -> payoff; called in one background thread, one comparison at a time.
    feedback: judge -> ((comparison, key) -> payoff), as probabilities or as sampled votes.
    update: of the policy, from a comparison.
    steps: number of steps; the last one's samples are not judged.
    prompt_length: length in tokens that prompts are padded to, so that the state keeps its shape.
  """
  thread = ThreadPoolExecutor(1, 'judge')
  in_flight = {}  # the comparison that is being judged, and the future of its payoff
  mesh = jax.sharding.get_mesh()

  def submit(comparison):
    several = jax.process_count() > 1
    judged = distributed.fetch(comparison) if several else comparison

    def payoff():
      # Threads do not inherit the mesh.
      with distributed.alone() if several else sharding.use_mesh(mesh):
        return np.asarray(judge(_restore_right(judged)))

    future = thread.submit(payoff) if distributed.is_first() else None
    in_flight.update(comparison=comparison, payoff=future)

  def receive(comparison):
    left, right = comparison.left, _restore_right(comparison).right
    shape = (*left.tokens.shape[:2], right.tokens.shape[1])
    return distributed.compute_on_first(lambda: in_flight['payoff'].result(), shape)

  def sample_padded(state, batch, key):
    prompts = Prompts(*(_pad_left(leaf, prompt_length) for leaf in batch))
    comparison = sample(state.slots, prompts, key)
    shared = comparison.right is comparison.left
    return comparison._replace(right=None) if shared else comparison

  def begin(state, batch, key):
    return state._replace(in_flight=sample_padded(state, batch, key))

  def step(state, batch, key):
    previous = state.in_flight
    if in_flight.get('comparison') is not previous:  # the first step, or the first after a restart
      submit(previous)
    comparison = sample_padded(state, batch, key)
    payoff = receive(previous)
    if int(state.step) + 1 < steps:
      submit(comparison)
    judged = _restore_right(previous)
    judged = judged._replace(payoff=feedback(lambda _: payoff)(judged, jax.random.fold_in(key, 1)))
    state, metrics = update(state._replace(in_flight=None), judged, jax.random.fold_in(key, 2))
    return state._replace(in_flight=comparison), metrics

  return Steps(step, begin, thread.shutdown)


def _restore_right(comparison: Comparison) -> Comparison:
  """Restores a right side that is the left one, which the state stores only once."""
  right = comparison.left if comparison.right is None else comparison.right
  return comparison._replace(right=right)


def _pad_left(leaf: jax.Array, length: int) -> jax.Array:
  """Pads rows [B, P] on the left, to [B, length]."""
  leaf = jnp.asarray(leaf)
  return jnp.pad(leaf, ((0, 0), (length - leaf.shape[1], 0)))
