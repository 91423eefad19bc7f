"""Numbers that are not finite: noticed on the device in the update, and named on the host.

Every update checks what it computed. `TrainState.nonfinite` keeps the bits of the first update in
which a quantity was not finite; neither that update nor a later one changes the state. The host
reads it with the metrics, so no step waits for the check. NaN from a judge that may abstain means
that it has no verdict on a pair; it is counted, and is no divergence.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from nlhf_jax import distributed
from nlhf_jax.algorithms.algorithm import Algorithm, needs_judge
from nlhf_jax.judges.judge import Judge
from nlhf_jax.structs import Comparison, TrainState

# In the order in which an update computes them; one bit each.
QUANTITIES = ('data', 'judge', 'loss', 'gradient', 'metrics', 'optimizer', 'parameters')
# Metrics that are NaN where a judge gives no verdict at all.
ABSTAINING = ('payoff', 'payoff_of_opponent', 'payoff_of_prompter')


# --- On the device ---


def has_nonfinite(tree: Any) -> Bool[Array, '']:
  """Whether a number of the tree is infinite or NaN."""
  leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
  return ~jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def check_step(
  algorithm: Algorithm, comparison: Comparison, metrics: Mapping[str, Array]
) -> Int[Array, '']:
  """The bits of what a step computes before it changes parameters.

  Args:
    algorithm: tells whether payoffs come from a judge, which may abstain, or from data.
    comparison: with its payoffs, before any are replaced.
    metrics: of the step; `loss` and `gradient_norm` among them.
  """
  judged, payoff = needs_judge(algorithm), comparison.payoff
  others = {
    name: jnp.where(jnp.isnan(value), 0.0, value) if name in ABSTAINING else value
    for name, value in metrics.items()
    if name not in ('loss', 'gradient_norm')
  }
  found = {
    'loss': has_nonfinite(metrics['loss']),
    'gradient': has_nonfinite(metrics['gradient_norm']),
    'metrics': has_nonfinite(others),
  }
  if payoff is not None:
    found['judge' if judged else 'data'] = (
      jnp.any(jnp.isinf(payoff)) if judged else has_nonfinite(payoff)
    )
  return _pack(found)


def check_state(state: TrainState) -> Int[Array, '']:
  """The bits of the slots that move, and of the optimiser's state."""
  return _pack(
    {'optimizer': has_nonfinite(state.optimizer), 'parameters': has_nonfinite(state.params)}
  )


def _pack(found: Mapping[str, Array]) -> Int[Array, '']:
  return sum(
    jnp.asarray(bad, jnp.int32) << QUANTITIES.index(quantity) for quantity, bad in found.items()
  )


def require_verdicts(judge: Judge) -> Judge:
  """The same judge, whose NaN stops the run: for judges that never abstain, such as networks."""

  def payoff(comparison):
    values = jnp.asarray(judge(comparison))
    return jnp.where(jnp.isnan(values), jnp.inf, values)

  return payoff


# --- On the host ---

CAUSES = {
  'data': 'correct the data: it is no preference in [0, 1]',
  'judge': 'a judge returns finite payoffs, or NaN for no verdict if it may abstain; look at its '
  'answers, and at the training of a learned one',
  'optimizer': 'the likely causes are a learning rate that is too high, and damaged memory',
  'parameters': 'the likely causes are weights that were not finite from the start, a learning '
  'rate or a weight decay that is too high, and damaged memory',
}
DIVERGED = (
  'the likely causes are a learning rate that is too high, too short a warm-up, an extreme row of '
  'the data or answer of the judge; lower learning_rate, or leave such updates out with '
  'on_divergence=skip'
)


def describe_failure(state: TrainState, metrics: Mapping[str, float], batch: Any) -> str:
  """What was not finite first, and the likely causes.

  Args:
    state: as the failed update left it.
    metrics: of that update.
    batch: that it was computed from.
  """
  first = _first_quantity(state)
  if first == 'data':
    return f'the preference of {_bad_rows(batch)} is not finite; {CAUSES[first]}'
  if first == 'judge':
    return f"the judge's answer, a payoff, is not finite; {CAUSES[first]}"
  # A number in the state explains those that were computed from it.
  place = _find_in_state(state)
  if place:
    cause = CAUSES['optimizer' if place.startswith('the optimiser') else 'parameters']
    return f'{place} is not finite; {cause}'
  names = {'loss': ['loss'], 'gradient': ['gradient_norm']}.get(first, list(metrics))
  name = next(name for name in names if not np.isfinite(metrics[name]) and name not in ABSTAINING)
  return f'the {"" if name == "loss" else "metric "}{name} is {metrics[name]:g}; {DIVERGED}'


def describe_state(state: TrainState) -> str:
  """Which step failed, and what was not finite first, where its metrics are not at hand."""
  step, first = int(state.step) + 1, _first_quantity(state)
  what = _find_in_state(state) or {
    'data': 'a preference of the data',
    'judge': "the judge's answer, a payoff,",
    'gradient': 'the gradient',
    'metrics': 'a metric',
  }.get(first, 'the loss')
  return f'step {step}: {what} is not finite; {CAUSES.get(first, DIVERGED)}.'


def is_state_failed(state: TrainState) -> bool:
  """Whether the state itself has numbers that are not finite."""
  return int(state.nonfinite) >> QUANTITIES.index('optimizer') > 0


def _first_quantity(state: TrainState) -> str:
  code = int(state.nonfinite)
  return next(name for number, name in enumerate(QUANTITIES) if code >> number & 1)


def _bad_rows(batch: Any) -> str:
  """The rows of a batch of comparisons whose payoff is not finite, counted from 1."""
  rows = 1 + np.flatnonzero(~np.isfinite(distributed.fetch(batch.payoff)).all(axis=(1, 2)))
  return f'row {", ".join(map(str, rows))} of its batch'


def _find_in_state(state: TrainState) -> str | None:
  """The first array of a state that is not finite, in words; None if all are finite."""
  trees = {"the optimiser's state": state.optimizer, "the slot 'policy'": state.params['policy']}
  beside = state.in_flight if isinstance(state.in_flight, Mapping) else {}
  trees |= {f"the slot '{slot}'": tree for slot, tree in state.slots.items()}
  trees |= {f"what is trained beside it, '{name}',": tree for name, tree in beside.items()}
  for place, tree in trees.items():
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      if has_nonfinite([leaf]):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        return f'{place}, {name},' if name else place
  return None
