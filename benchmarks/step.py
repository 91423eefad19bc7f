"""Seconds and tokens a second of the parts of one step: rollout, judge, update.

python benchmarks/step.py --config=configs/nash_md.py

Measures the last policy of the config at random parameters, whose responses mostly have the maximum
length. Times are medians over 20 runs after compilation. Tokens are those of the responses on both
sides; in the update only of the left side, as the right one is not scored.
"""

import argparse
import statistics
import sys
from pathlib import Path

import jax
from training import timed

from nlhf_jax import command
from nlhf_jax.data.batches import batches
from nlhf_jax.experiments.data_config import make_corpus
from nlhf_jax.experiments.language.config import check, make_training
from nlhf_jax.experiments.model_config import make_model
from nlhf_jax.judges.judge import of_network
from nlhf_jax.judges.networks import make_preference_network
from nlhf_jax.models import scoring
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.structs import Comparison
from nlhf_jax.training import step_metrics
from nlhf_jax.training.update import initial_state, make_update


def measure(config) -> dict[str, tuple[float, float]]:
  """part of the step -> (seconds, tokens a second)."""
  check(config)
  corpus = make_corpus(config, Path('runs') / 'stages')
  decoder = make_model(config, len(corpus.tokenizer)).decoder
  name = list(config.policies)[-1]
  training = make_training(config.policies[name], f'config.policies.{name}')
  algorithm = training.algorithm
  params = decoder.init(jax.random.key(0))
  state = initial_state(algorithm, params, training.optimizer)
  network = make_preference_network(decoder, config.model.width, corpus.tokenizer.sep_token_id)
  judge = of_network(network, network.init(params))
  rollout = make_rollout(
    decoder,
    [*algorithm.left, *algorithm.right],
    length=config.data.response_length,
    stop=corpus.tokenizer.eos_token_id,
  )
  score = scoring.make_score(decoder)
  measure = step_metrics.of_play(algorithm)
  update = make_update(algorithm, score, training.optimizer, measure, training.accumulate)
  prompts = batches(corpus.train.prompts, training.batch, 0)[0]
  comparison = Comparison(prompts, *rollout(state.slots, prompts, jax.random.key(1)))
  judged = comparison._replace(payoff=judge(comparison))
  left, right = (int(side.mask.sum()) for side in (comparison.left, comparison.right))

  def step():
    nonlocal state
    state, metrics = update(state, judged, jax.random.key(2))
    return metrics

  parts = {
    'rollout': (lambda: rollout(state.slots, prompts, jax.random.key(1)), left + right),
    'judge': (lambda: judge(comparison), left + right),
    'update': (step, left),
  }
  measured = {
    name: (statistics.median(timed(call, 20)), tokens) for name, (call, tokens) in parts.items()
  }
  return {name: (time, tokens / time) for name, (time, tokens) in measured.items()}


if __name__ == '__main__':
  sys.path.insert(0, str(Path(__file__).parents[1]))
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--config', default='configs/nash_md.py')
  print(f'jax {jax.__version__}, {jax.devices()[0].device_kind}')
  for name, (time_taken, rate) in measure(command.load(parser.parse_args().config)).items():
    print(f'{name:<8} {1e3 * time_taken:7.1f} ms {rate:10,.0f} tokens/s')
