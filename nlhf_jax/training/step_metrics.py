"""Metrics that training logs at every step: (comparison, slot -> scores) -> scalars.

The comparison is the one before selection; the scores are those of the selected part.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from nlhf_jax.algorithms.algorithm import LEFT, Algorithm, needs_judge
from nlhf_jax.judges.unfinished import has_ended
from nlhf_jax.structs import Comparison
from nlhf_jax.training.update import Measure


def demonstration_metrics(comparison: Comparison, scores: Mapping) -> dict[str, Array]:
  """Negative log-likelihood of the left responses in nats per token, and their number of tokens."""
  tokens = jnp.sum(comparison.left.mask)
  return {'nats_per_token': -jnp.sum(scores['policy'].left) / tokens, 'tokens': tokens}


def preference_metrics(comparison: Comparison, scores: Mapping) -> dict[str, Array]:
  """Accuracy: how often the network agrees with the majority of votes; a tie counts half."""
  return _accuracy(comparison, scores['policy'])


def reward_metrics(comparison: Comparison, scores: Mapping) -> dict[str, Array]:
  """Accuracy of a reward network."""
  left, right = scores['policy']
  return _accuracy(comparison, left[:, :, None, 0] - right[:, None, :, 0])


def _accuracy(comparison, logit):
  agreement = jnp.sign(logit) * jnp.sign(comparison.payoff)
  tokens = jnp.sum(comparison.left.mask) + jnp.sum(comparison.right.mask)
  return {'accuracy': jnp.mean((1 + agreement) / 2), 'tokens': tokens}


def make_rollout_metrics(algorithm: Algorithm, stop: int | None = None) -> Measure:
  """Payoff, entropy and length of the left responses.

  `payoff` is the mean over the pairs that have one, where a judge compares two sides, and
  `missing_verdicts` the share of pairs that have none; `entropy` is in nats per token, of sampled
  responses; `response_length` in tokens; `unfinished` the share of responses without a `stop`
  token, if there is one.
  """

  def measure(comparison, scores):
    del scores
    left, right = comparison.left, comparison.right
    tokens = jnp.sum(left.own)
    values = {'response_length': jnp.mean(jnp.sum(left.own, axis=-1)), 'tokens': tokens}
    if stop is not None:
      values['unfinished'] = 1 - jnp.mean(has_ended(left, stop))
    if left.entropy is not None:
      values['entropy'] = jnp.sum(left.entropy) / tokens
    if right is not None and algorithm.right != LEFT:
      values['tokens'] += jnp.sum(right.own)
      if needs_judge(algorithm):
        values['payoff'] = jnp.nanmean(comparison.payoff)
    if needs_judge(algorithm):
      values['missing_verdicts'] = jnp.mean(jnp.isnan(comparison.payoff))
    return values

  return measure
