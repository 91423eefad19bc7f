"""Adapters through every stage of a run: SFT, judge, policy, exploiter."""

import copy
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax import trees
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.experiments.language.finished_run import load_policy, load_reference
from nlhf_jax.models import lora


@pytest.fixture(scope='module')
def trained(adapter_run):
  return adapter_run.experiment, adapter_run.results


def test_reference_slot_is_the_fine_tuned_adapter(trained):
  experiment, _ = trained
  reference = load_reference(experiment)
  slots = load_policy(experiment, 'nash_md', reference)
  own, base = trees.split(slots['reference'], lora.is_adapter)
  assert any(np.any(leaf) for path, leaf in trees.flatten(own).items() if path.endswith('lora_b'))
  moved, same = trees.split(slots['policy'], lora.is_adapter)
  loaded = trees.split(experiment.model.begin(jax.random.key(0)), lora.is_adapter)[1]
  for path, leaf in trees.flatten(loaded).items():
    np.testing.assert_array_equal(trees.flatten(base)[path], leaf)
    np.testing.assert_array_equal(trees.flatten(same)[path], leaf)
  tuned = trees.flatten(trees.split(reference, lora.is_adapter)[0])
  for path, leaf in trees.flatten(own).items():
    np.testing.assert_array_equal(tuned[path], leaf)
  assert any(np.any(trees.flatten(moved)[path] != leaf) for path, leaf in tuned.items())


def test_exploiters_save_adapters_only(trained):
  experiment, results = trained
  assert set(results['exploitability']) == {'sft', 'nash_md'}
  for stage in experiment.exploiters.values():
    assert len(json.loads((stage.folder / experiment.exploiter_wins).read_text())['learned']) > 0
    saved = list(stage.folder.rglob('checkpoints/*'))
    assert sum(path.stat().st_size for path in stage.folder.rglob('*') if path.is_file()) < 10**6
    assert saved


def test_another_model_is_another_experiment(adapter_run, tmp_path):
  config = copy.deepcopy(adapter_run.config)
  config.model.hf = str(shutil.copytree(adapter_run.folder / 'model', tmp_path / 'model'))
  folders = lambda: {
    name: stage.folder for name, stage in make_experiment(config, 'x', tmp_path).stages.items()
  }
  before = folders()
  assert folders() == before
  weights = Path(config.model.hf) / 'model.safetensors'
  kept = weights.read_bytes()
  weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
  after = folders()
  assert not set(before.values()) & set(after.values())
