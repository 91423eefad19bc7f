"""The sampler gives the tokens it has always given for a key, on three seeds.

`stored_tokens.json` holds what the sampler returned before it was split into modules. Run this file
as a script to write it anew, after a change that is meant to change tokens.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.sampling import sampler
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.sampling.token import Filters
from nlhf_jax.structs import Prompts
from tests.laws import tiny

STORED = Path(__file__).with_name('stored_tokens.json')
VOCABULARY, STOP, LENGTH, PROMPTS = 17, 0, 44, 32
MIXTURES = ({'policy': 1.0}, {'policy': 0.7, 'reference': 0.3})
# Tokens drafted at once: 1 as on CPUs, 4 as on accelerators.
CASES = {
  'one by one': dict(drafts=1),
  'drafted': dict(drafts=4),
  'two samples, filtered': dict(drafts=1, count=2, filters=Filters(0.8, 12, 0.95)),
}


def prompts_of(seed):
  """Prompts of two to five tokens, padded on the left."""
  random = np.random.default_rng(seed)
  tokens = random.integers(1, VOCABULARY, (PROMPTS, 5))
  mask = np.arange(5) >= random.integers(0, 4, (PROMPTS, 1))
  return Prompts(jnp.asarray(np.where(mask, tokens, STOP)), jnp.asarray(mask))


def sample(monkeypatch, seed, drafts, **options):
  """The rows of every mixture as lists, without the stop tokens that fill them up."""
  monkeypatch.setattr(sampler, 'default_draft_length', lambda: drafts)
  decoder = tiny.decoder(VOCABULARY)
  slots = {
    slot: tiny.parameters(decoder, number) for number, slot in enumerate(('policy', 'reference'))
  }
  rollout = make_rollout(decoder, MIXTURES, length=LENGTH, stop=STOP, **options)
  responses = rollout(slots, prompts_of(seed), jax.random.key(seed))
  return [
    [row[mask].tolist() for row, mask in zip(*map(np.concatenate, one[:2]), strict=True)]
    for one in responses
  ]


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('seed', range(3))
def test_same_tokens_for_the_same_key(case, seed, monkeypatch):
  assert sample(monkeypatch, seed, **CASES[case]) == json.loads(STORED.read_text())[case][seed]


if __name__ == '__main__':
  with pytest.MonkeyPatch.context() as patch:
    tokens = {case: [sample(patch, seed, **CASES[case]) for seed in range(3)] for case in CASES}
  STORED.write_text(json.dumps(tokens) + '\n')
