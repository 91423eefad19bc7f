"""Seconds and tokens a second of the parts of one step: rollout, judge, update.

python benchmarks/step.py --config=configs/nash_md.py

Measures the last policy of the config at random parameters, whose responses mostly have the maximum
length. Times are medians over 20 runs after compilation. Tokens are those of the responses on both
sides; in the update only of the left side, as the right one is not scored.

With --checks, what it costs to look for numbers that are not finite: the update takes turns with
one that does not look.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from timing import timed

from nlhf_jax import command
from nlhf_jax.data.batches import batches
from nlhf_jax.experiments.data_config import make_corpus
from nlhf_jax.experiments.language.config import check
from nlhf_jax.experiments.model_config import make_model
from nlhf_jax.experiments.training_config import make_training
from nlhf_jax.judges.judge import judge_from_network
from nlhf_jax.judges.learned import make_preference_network
from nlhf_jax.models import scoring
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.structs import Comparison
from nlhf_jax.training import divergence, step_metrics
from nlhf_jax.training.update import initial_state, make_update


def measure(config, checks: bool) -> dict[str, tuple[float, float]]:
  """part of the step -> (seconds, tokens a second); or the seconds of updates with and without."""
  check(config)
  corpus = make_corpus(config, Path('runs') / 'stages')
  decoder = make_model(config, len(corpus.tokenizer)).decoder
  name = list(config.policies)[-1]
  training = make_training(config.policies[name], f'config.policies.{name}')
  algorithm = training.algorithm
  params = decoder.init(jax.random.key(0))
  state = initial_state(algorithm, params, training.optimizer)
  network = make_preference_network(decoder, config.model.width, corpus.tokenizer.sep_token_id)
  judge = judge_from_network(network, network.init(params))
  rollout = make_rollout(
    decoder,
    [*algorithm.left, *algorithm.right],
    length=config.data.response_length,
    stop=corpus.tokenizer.eos_token_id,
  )
  score = scoring.make_score(decoder)
  measure = step_metrics.make_rollout_metrics(algorithm)
  make_update_now = lambda: make_update(
    algorithm, score, training.optimizer, measure, training.accumulate
  )
  update = make_update_now()
  prompts = batches(corpus.train.prompts, training.batch, 0)[0]
  comparison = Comparison(prompts, *rollout(state.slots, prompts, jax.random.key(1)))
  judged = comparison._replace(payoff=judge(comparison))
  left, right = (int(side.mask.sum()) for side in (comparison.left, comparison.right))

  def step():
    nonlocal state
    state, metrics = update(state, judged, jax.random.key(2))
    return metrics

  if checks:
    return {'with checks, without': measure_checks(make_update_now, state, judged)}
  parts = {
    'rollout': (lambda: rollout(state.slots, prompts, jax.random.key(1)), left + right),
    'judge': (lambda: judge(comparison), left + right),
    'update': (step, left),
  }
  measured = {
    name: (statistics.median(timed(call, 20)), tokens) for name, (call, tokens) in parts.items()
  }
  return {name: (time, tokens / time) for name, (time, tokens) in measured.items()}


def measure_checks(make_update_now, state, judged) -> tuple[float, float]:
  """Median seconds of an update with and without the checks, in 200 turns."""
  states, updates = [jax.tree.map(jnp.copy, state) for _ in range(2)], [make_update_now()]
  nothing = lambda *_: jnp.int32(0)
  with mock.patch.multiple(divergence, check_step=nothing, check_state=nothing):
    updates.append(make_update_now())
    states[1], _ = updates[1](states[1], judged, jax.random.key(2))  # compiles
  states[0], _ = updates[0](states[0], judged, jax.random.key(2))
  taken = [], []
  for _ in range(200):
    for which, update in enumerate(updates):
      start = time.perf_counter()
      states[which], metrics = update(states[which], judged, jax.random.key(2))
      jax.block_until_ready((states[which].params, metrics))
      taken[which].append(time.perf_counter() - start)
  return statistics.median(taken[0]), statistics.median(taken[1])


if __name__ == '__main__':
  sys.path.insert(0, str(Path(__file__).parents[1]))
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--config', default='configs/nash_md.py')
  parser.add_argument('--checks', action='store_true')
  arguments = parser.parse_args()
  print(f'jax {jax.__version__}, {jax.devices()[0].device_kind}')
  found = measure(command.load_config(arguments.config), arguments.checks)
  for name, (seconds, other) in found.items():
    shown = f'{1e3 * other:7.2f} ms' if arguments.checks else f'{other:10,.0f} tokens/s'
    print(f'{name:<8} {1e3 * seconds:7.2f} ms {shown}')
