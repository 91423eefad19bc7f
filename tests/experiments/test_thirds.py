"""Iterated SPPO on prompts without comparisons, with an external judge.

Each of three iterations starts from the exported policy of the one before, on its own prompts.
"""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import export_policy
from nlhf_jax.experiments.language import run as language
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.storage import json_lines
from tests.experiments import pretrained
from tests.judges import published

ROOT = Path(__file__).parents[2]
PROMPTS = [f'tell {number} {word}' for number in range(3) for word in pretrained.WORDS[:8]]


@pytest.fixture
def config(toy, tmp_path, monkeypatch):
  """SPPO from a pretrained model, on a file of prompts, judged by a random PairRM."""
  monkeypatch.syspath_prepend(str(ROOT))
  pretrained.save(tmp_path / 'model')
  (tmp_path / 'pairrm').mkdir()
  published.save(tmp_path / 'pairrm', 'port')
  json_lines.write(tmp_path / 'prompts.jsonl', [{'prompt': prompt} for prompt in PROMPTS])
  made = toy(importlib.import_module('nlhf_jax.configs.sppo').get_config('file'))
  made.data.update(path=str(tmp_path / 'prompts.jsonl'), schema='prompts', response_length=6)
  made.model.hf, made.sft.steps = str(tmp_path / 'model'), 0
  made.pairrm.hf, made.judges, made.policies.sppo.judge = str(tmp_path / 'pairrm'), *['pairrm'] * 2
  made.policies.sppo.optimizer.update(learning_rate=0.01, warmup=0)
  return made


def prompts_of(experiment):
  corpus = experiment.corpus
  both = corpus.train.prompts.all(), corpus.held_out.prompts
  return [set(tokenizers.prompt_texts(corpus.tokenizer, *prompts)) for prompts in both]


@pytest.mark.slow
def test_each_iteration_starts_from_the_last_policy(config, tmp_path):
  seen, starts, ends = [], [], []
  for number in (1, 2, 3):
    config.data.part = f'{number}/3'
    workdir = tmp_path / str(number)
    experiment = make_experiment(config, 'sppo', workdir / 'stages')
    assert not experiment.judges  # only the policy is trained
    assert experiment.corpus.account['train'] == {
      'prompts': 8 if number == 1 else 7,
      'demonstrations': 0,
      'comparisons': 0,
      'unpaired': 0,
    }
    trained, held_out = prompts_of(experiment)
    seen += [trained] if seen else [trained, held_out]
    assert held_out == seen[1]
    starts.append(experiment.model.begin(experiment.stages['sft'].key))
    if number < 3:  # the last iteration would add nothing
      results = language.run(experiment, workdir)
      assert results['tables'].keys() == {'pairrm'}
      assert {row['stage'] for row in json_lines.read(workdir / 'metrics.jsonl')} == {'sppo'}
      ends.append(export_policy.load_entry(experiment, 'sppo'))
      export_policy.write_policy(experiment, ends[-1], workdir / 'model', merged=False)
      config.model.hf = str(workdir / 'model')
  assert sum(map(len, seen)) == len(PROMPTS)
  assert set().union(*seen) == set(PROMPTS)
  same = lambda one, other: all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))
  for start, end, then in zip(starts[:2], ends, starts[1:], strict=True):
    assert not same(start, end)
    assert same(end, then)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'sft.steps': 2}, r'too few demonstrations for config\.sft: .* --config\.sft\.steps=0'),
    ({'judges': 'learned'}, r'too few comparisons for config\.preference_model: .* judges that'),
  ],
)
def test_missing_data_is_refused(config, tmp_path, changes, message):
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    make_experiment(config, 'sppo', tmp_path / 'stages')
