"""MaxMin over groups of raters: their weights move while the policy trains (arXiv 2402.08925).

max over pi of min_g E r_g - tau KL(pi, mu), r_g the payoff under group g's judge against a fixed
opponent. The policy learns from the payoff sum_g w_g r_g; after each batch the weights take the
step w_g <- w_g exp(-step mean r_g) / Z towards the groups that it serves worst. Both gradients are
unbiased, since the weights enter linearly. In self-play each mean r_g is 0, and the weights stay.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from nlhf_jax.judges.judge import Judge, with_feedback
from nlhf_jax.training.loop import Steps
from nlhf_jax.training.rollout_step import RolloutStep
from nlhf_jax.training.update import Update


class Groups(NamedTuple):
  """The judge of each group of raters, P - 1/2, and the step of the groups' weights."""

  judges: Mapping[str, Judge]
  step: float


def make_group_steps(
  sample: RolloutStep,
  groups: Groups,
  feedback: Callable[[Array, Array], Array],
  update: Update,
) -> Steps:
  """Steps that also move the weights of the groups, which start equal; for a single process.

  `begin` adds the weights to the state. Metrics are `weight_of_GROUP`, before the step, and
  `payoff_of_GROUP`, over the pairs that all groups have a verdict on.

  Args:
    sample: (slots, batch, key) -> comparison without a payoff; its opponents must not move.
    groups: of raters.
    feedback: turns each group's preference into its payoff, (payoff, key) -> payoff.
    update: of the policy, from a comparison.
  """
  judges = [with_feedback(judge, feedback) for judge in groups.judges.values()]

  @jax.jit
  def weigh(weights, payoffs):
    payoffs = jnp.stack(payoffs)
    combined = jnp.tensordot(weights, payoffs, 1)
    known = jnp.where(jnp.isnan(combined), 0.0, payoffs).sum(axis=(1, 2, 3))
    return combined, known / jnp.maximum(jnp.sum(~jnp.isnan(combined)), 1)

  def begin(state, batch, key):
    del batch, key
    return state._replace(in_flight={name: jnp.zeros(()) for name in groups.judges})

  def step(state, batch, key):
    logits = np.array([state.in_flight[name] for name in groups.judges])
    weights = np.exp(logits - np.logaddexp.reduce(logits))
    comparison = sample(state.slots, batch, key)
    keys = [jax.random.fold_in(jax.random.fold_in(key, 1), number) for number in range(len(judges))]
    payoffs = [judge(comparison, own) for judge, own in zip(judges, keys, strict=True)]
    combined, gains = weigh(weights, payoffs)
    gains = np.asarray(gains)
    judged = comparison._replace(payoff=combined)
    state, metrics = update(state._replace(in_flight=None), judged, jax.random.fold_in(key, 2))
    for name, weight, gain in zip(groups.judges, weights, gains, strict=True):
      metrics |= {f'weight_of_{name}': weight, f'payoff_of_{name}': gain}
    moved = zip(groups.judges, logits - groups.step * gains, strict=True)
    return state._replace(in_flight={name: jnp.asarray(value) for name, value in moved}), metrics

  return Steps(step, begin)
