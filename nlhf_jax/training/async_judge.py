"""Having responses judged while others are learned from: for judges that are slow and elsewhere.

A step samples what the next one learns from, hands it to the judge, and learns from what the step
before it sampled. Everything it learns from is therefore one update old: sampled by the policy of
the update before, and learned from as if the policy of now had said it. What is underway is part of
the state, so that a run that is resumed asks for it again and is the same run, if the judge's word
stays the same.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.models import sharding
from nlhf_jax.structs import Comparison, Prompts, TrainState
from nlhf_jax.training.rollout_step import Play
from nlhf_jax.training.update import Update

Judge = Callable[[Comparison], Any]


class Ahead(NamedTuple):
  """`begin(state, batch, key)` puts the first responses underway; `step` goes on with others.

  The batch given to `step` is the one that the next step learns from; `close()` waits for the
  judge.
  """

  begin: Callable[[TrainState, Any, jax.Array], TrainState]
  step: Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
  close: Callable[[], None]


def make_ahead(
  sample: Play,
  judge: Judge,
  feedback: Callable[[Judge], Callable[[Comparison, jax.Array], jax.Array]],
  update: Update,
  *,
  steps: int,
  prompt_length: int,
) -> Ahead:
  """Steps that learn one update behind what they sample; of one process.

  Args:
    sample: (slots, batch, key) -> comparison without a payoff.
    judge: comparison -> payoff; asked in a thread of its own, about one comparison at a time.
    feedback: a judge -> how its word reaches the learner, (comparison, key) -> payoff.
    update: of the policy.
    steps: how many there are; what the last one samples is not judged.
    prompt_length: that prompts are padded to, for a state has one shape.
  """
  thread = ThreadPoolExecutor(1, 'ahead')
  asked = {}  # the comparison that is underway, and its payoff to come
  mesh = jax.sharding.get_mesh()

  def whole(comparison):
    """Responses that are compared with themselves are kept, and read, once."""
    right = comparison.left if comparison.right is None else comparison.right
    return comparison._replace(right=right)

  def ask(comparison):
    def answer():
      with sharding.use_mesh(mesh):  # which a thread does not know of
        return np.asarray(judge(whole(comparison)))

    asked.update(underway=comparison, payoff=thread.submit(answer))

  def sampled(state, batch, key):
    prompts = Prompts(*(_longer(leaf, prompt_length) for leaf in batch))
    comparison = sample(state.slots, prompts, key)
    themselves = comparison.right is comparison.left
    return comparison._replace(right=None) if themselves else comparison

  def begin(state, batch, key):
    return state._replace(underway=sampled(state, batch, key))

  def step(state, batch, key):
    before = state.underway
    if not asked or asked['underway'] is not before:  # at first, and after a restart
      ask(before)
    comparison = sampled(state, batch, key)
    payoff = asked['payoff'].result()
    if int(state.step) + 1 < steps:
      ask(comparison)
    judged = whole(before)
    judged = judged._replace(payoff=feedback(lambda _: payoff)(judged, jax.random.fold_in(key, 1)))
    state, metrics = update(state._replace(underway=None), judged, jax.random.fold_in(key, 2))
    return state._replace(underway=comparison), metrics

  return Ahead(begin, step, thread.shutdown)


def _longer(leaf: jax.Array, length: int) -> jax.Array:
  """Rows [B, P] with padding before them, [B, length]."""
  leaf = jnp.asarray(leaf)
  return jnp.pad(leaf, ((0, 0), (length - leaf.shape[1], 0)))
