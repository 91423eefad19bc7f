"""Seconds of sampling conversations of three turns, beside responses of as many tokens.

python benchmarks/dialogues.py

A small model, two mixtures as in Nash-MD, random parameters, and a stop token that is not sampled.
The user is a function of arrays that takes no time. Calls take turns in one process. Writes
benchmarks/results/dialogues.json.
"""

import json
import statistics
from pathlib import Path

import environments
import jax
import jax.numpy as jnp
import numpy as np
from timing import time_alternately

from nlhf_jax.models import architectures
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling.dialogue_rollout import Dialogue, Replies, make_dialogue_rollout
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.structs import Prompts

RESULTS = Path(__file__).parent / 'results'
VOCABULARY, PROMPTS, PROMPT_LENGTH = 4096, 16, 64
TURNS, TURN_LENGTH, REPLY_LENGTH = 3, 64, 16
MIXTURES = [{'policy': 1.0}, {'policy': 0.875, 'reference': 0.125}]
RUNS = 7
MOST = 1.15


def main() -> None:
  """Measures, prints the ratios, and writes them."""
  decoder = make_decoder(
    architectures.small(
      VOCABULARY, 256, layers=4, heads=4, key_heads=2, head_size=64, hidden=768, rotary_base=1e4
    )
  )
  init = jax.jit(decoder.init)
  slots = {slot: init(jax.random.key(n)) for n, slot in enumerate(('policy', 'reference'))}
  tokens = jax.random.randint(jax.random.key(2), (PROMPTS, PROMPT_LENGTH), 0, VOCABULARY)
  prompts = Prompts(tokens, jnp.ones_like(tokens, bool))

  def reply(prompts, responses, key):
    shape = responses.tokens.shape[:2]
    lengths, over = np.full(shape, REPLY_LENGTH), np.zeros(shape, bool)
    return Replies(np.full((*shape, REPLY_LENGTH), 7), lengths, over)

  def silent(prompts, responses, key):
    shape = responses.tokens.shape[:2]
    return Replies(np.zeros((*shape, 0), int), np.zeros(shape, int), np.zeros(shape, bool))

  sampled, replied = TURNS * TURN_LENGTH, (TURNS - 1) * REPLY_LENGTH
  response = lambda length: make_rollout(decoder, MIXTURES, length=length, stop=VOCABULARY)
  conversation = lambda user, most: make_dialogue_rollout(
    decoder, MIXTURES, dialogue=Dialogue(user, TURNS, most), length=TURN_LENGTH, stop=VOCABULARY
  )
  rollouts = {
    f'response of {sampled}': response(sampled),
    f'{TURNS} turns of {TURN_LENGTH}, silent user': conversation(silent, 0),
    f'response of {sampled + replied}': response(sampled + replied),
    f'{TURNS} turns of {TURN_LENGTH}, replies of {REPLY_LENGTH}': conversation(reply, REPLY_LENGTH),
  }
  calls = {
    name: lambda rollout=rollout: rollout(slots, prompts, jax.random.key(3))
    for name, rollout in rollouts.items()
  }
  seconds = time_alternately(calls, RUNS)
  one, cut, long, full = (statistics.median(taken) for taken in seconds.values())
  ratios = {
    'silent user, as many tokens': cut / one,
    'replies, as many tokens in all': full / long,
    'replies, as many sampled tokens': full / one,
  }
  found = {
    'machine': environments.machine(),
    'command': 'python benchmarks/dialogues.py',
    'seconds': seconds,
    'ratios': ratios,
    'most': MOST,
  }
  for name, ratio in ratios.items():
    print(f'{name}: {ratio:.3f}')
  (RESULTS / 'dialogues.json').write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()
