"""A run that the tests of adapters, exports and evaluation share."""

import copy
import json
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock
from ml_collections import ConfigDict

from tests.experiments import pretrained


class AdapterRun(NamedTuple):
  """A finished run. Tests leave its files as they are."""

  config: ConfigDict
  experiment: object
  results: dict
  folder: Path  # with `model`, `stages` and `run`


@pytest.fixture(scope='session')
def adapter_run(toy, session_folder) -> AdapterRun:
  """Nash-MD with adapters on a pretrained model, and exploiters; trained once in a test session."""
  from nlhf_jax.experiments.language import run as language
  from nlhf_jax.experiments.language.config import make_experiment

  folder = session_folder / 'adapter_run'
  with FileLock(session_folder / 'adapter_run.lock'):
    begun = (folder / 'model' / 'model.safetensors').exists()
    folder.mkdir(exist_ok=True)
    config = pretrained.config(folder, toy, write=not begun)
    config.sft.optimizer.update(learning_rate=0.05, warmup=0)
    config.exploiter = copy.deepcopy(config.policies.nash_md)
    config.exploiter.exploited = ''
    config.exploiter.algorithm = 'best_response'
    del config.exploiter.arguments['beta']
    config.exploiter.arguments.tau = 0.0
    experiment = make_experiment(config, 'adapters', folder / 'stages')
    if not (folder / 'run' / 'report.html').exists():
      language.run(experiment, folder / 'run')
  results = json.loads((folder / 'run' / 'results.json').read_text())
  return AdapterRun(config, experiment, results, folder)
