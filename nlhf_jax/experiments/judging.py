"""Judges that are trained: what each kind is made of, and its stage."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax.build.language import Experiment
from nlhf_jax.data.batches import in_random_order, map_chunks, take
from nlhf_jax.evaluation import judging, styles
from nlhf_jax.experiments.competition import perfect_matrices
from nlhf_jax.experiments.stages import batches_of, fit
from nlhf_jax.preferences import judges
from nlhf_jax.preferences.judges import Judge
from nlhf_jax.preferences.networks import (
  make_embedding_network,
  make_preference_network,
  make_reward_network,
)
from nlhf_jax.structs import Comparison, Params
from nlhf_jax.training import measures
from nlhf_jax.training.steps import Measure, Score, make_update

WATCHED = 256  # held-out prompts that learning curves are measured on


class Kind(NamedTuple):
  """A network that judges, as functions of its parameters.

  `init(decoder's parameters)` gives them; `score` is what the loss sees. `judge(params)` is its
  word, P - 1/2 or a difference of rewards; `shown(params)` gives P(left > right), left shown first.
  """

  init: Callable[[Params], Params]
  score: Score
  measure: Measure
  judge: Callable[[Params], Judge]
  shown: Callable[[Params], Judge]


def make_kind(experiment: Experiment, name: str) -> Kind:
  """The kind that the stage `name` trains."""
  sizes = (
    experiment.model.decoder,
    experiment.model.sizes.width,
    experiment.corpus.tokenizer.sep_token_id,
  )
  if name == 'reward_model':
    network = make_reward_network(*sizes)
    judge = partial(judges.of_rewards, network)
    shown = lambda params: lambda comparison: jax.nn.sigmoid(judge(params)(comparison))
    return Kind(network.init, network.score, measures.of_rewards, judge, shown)
  if name == 'embedding_model':
    network = make_embedding_network(*sizes, planes=experiment.planes)
    judge = partial(judges.of_embeddings, network)
  else:
    network = make_preference_network(*sizes)
    judge = partial(judges.of_network, network)
  shown = lambda params: lambda comparison: jax.nn.sigmoid(network.logit(params, comparison))
  return Kind(network.init, network.logit, measures.of_preferences, judge, shown)


def swapped(shown: Judge, comparison: Comparison) -> Float[Array, 'B K J']:
  """P(left > right), the right response shown first."""
  other = comparison._replace(left=comparison.right, right=comparison.left)
  return 1 - shown(other).swapaxes(1, 2)


def train_judge(experiment: Experiment, name: str, reference: Params) -> Params:
  """The stage `name`, which goes on from the SFT policy's parameters; its network's."""
  training, stage = experiment.judges[name], experiment.stages[name]
  train, held_out = experiment.corpus.train.comparisons, experiment.corpus.held_out.comparisons
  kind = make_kind(experiment, name)

  def evaluate(slots):
    shown = kind.shown(slots['policy'])
    both = lambda comparison: (shown(comparison) + swapped(shown, comparison)) / 2

    chance = map_chunks(lambda chunk, _: both(chunk), held_out)
    values = against(chance, held_out.payoff)
    if experiment.corpus.embedded:
      prompts = take(held_out.prompts, slice(WATCHED))
      matrices = perfect_matrices(experiment, lambda chunk: both(chunk) - 0.5, prompts)
      values['weakest_edge_of_cycle'] = styles.weakest_edge(matrices.mean(axis=0).tolist())
    return values

  update = make_update(
    training.algorithm, kind.score, training.optimizer, kind.measure, training.accumulate
  )
  examples = in_random_order(batches_of(train, training, experiment.seed))
  init, trains = kind.init(reference), experiment.model.trains
  return fit(stage, training, init, update, examples, evaluate, trains)['policy']


def against(chance: np.ndarray, payoff: np.ndarray) -> dict[str, float]:
  """How a judge's P(left > right) stands to the votes' share less 1/2."""
  agreed = (1 + np.sign(chance - 0.5) * np.sign(payoff)) / 2  # with the majority; a tie is half
  return {
    'held_out_accuracy': float(np.mean(agreed)),
    'held_out_log_loss': judging.log_loss(chance, payoff + 0.5),
    'held_out_squared_error': float(np.mean((chance - 0.5 - payoff) ** 2)),
  }
