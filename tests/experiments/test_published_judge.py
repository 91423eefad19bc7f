"""PairRM as the judge of a policy and of the tournament."""

import importlib
import json
from pathlib import Path

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language import run as language
from nlhf_jax.experiments.language.config import make_experiment
from tests.judges import published

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(toy, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))
  folder = tmp_path / 'pairrm'
  folder.mkdir()
  published.save(folder, 'port')
  config = toy(importlib.import_module('nlhf_jax.configs.sppo').get_config())
  config.policies.sppo.judge, config.judges = 'pairrm', 'learned,pairrm'
  config.pairrm.hf = str(folder)
  return config


@pytest.mark.slow
def test_policy_and_tournament_use_pairrm(config, tmp_path):
  language.run(make_experiment(config, 'sppo', tmp_path / 'stages'), tmp_path)
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results['tables'].keys() == {'oracle', 'learned', 'pairrm'}
  wins = results['tables']['pairrm']['win_rate']
  assert wins[0][1] + wins[1][0] == pytest.approx(1)


def test_weights_identify_the_policy_stage(config, tmp_path):
  before = make_experiment(config, 'sppo', tmp_path).stages
  path = Path(config.pairrm.hf) / 'config.json'
  path.write_text(path.read_text() + '\n')
  after = make_experiment(config, 'sppo', tmp_path).stages
  assert before['sppo'].folder != after['sppo'].folder
  assert before['preference_model'].folder == after['preference_model'].folder


def test_invalid_settings_are_refused(config, tmp_path):
  config.pairrm.compute = 'float16'
  with pytest.raises(UserError, match=r"config\.pairrm\.compute='float16' must be one of"):
    make_experiment(config, 'sppo', tmp_path).external['pairrm']()
  config.pairrm.hf = str(tmp_path / 'nowhere')
  with pytest.raises(UserError, match=r"config\.pairrm\.hf='.*nowhere' is no folder"):
    make_experiment(config, 'sppo', tmp_path)
