"""The sampler returns the stored tokens for the same key, on three seeds.

Run this file as a script to store them anew, after a change that is meant to change tokens.
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
# `drafts` is the draft length: 1 on CPUs, 4 on accelerators.
CASES = {
  'one by one': dict(drafts=1),
  'drafted': dict(drafts=4),
  'two samples, filtered': dict(drafts=1, count=2, filters=Filters(0.8, 12, 0.95)),
}


DECODER = tiny.decoder(VOCABULARY)
SLOTS = {
  slot: tiny.parameters(DECODER, number) for number, slot in enumerate(('policy', 'reference'))
}


def prompts_of(seed):
  """Prompts of two to five tokens, padded on the left."""
  random = np.random.default_rng(seed)
  tokens = random.integers(1, VOCABULARY, (PROMPTS, 5))
  mask = np.arange(5) >= random.integers(0, 4, (PROMPTS, 1))
  return Prompts(jnp.asarray(np.where(mask, tokens, STOP)), jnp.asarray(mask))


def sample(monkeypatch, seed, drafts, **options):
  """The rows of every mixture as lists, without padding."""
  monkeypatch.setattr(sampler, 'default_draft_length', lambda: drafts)
  rollout = make_rollout(DECODER, MIXTURES, length=LENGTH, stop=STOP, **options)
  responses = rollout(SLOTS, prompts_of(seed), jax.random.key(seed))
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
