"""Starts an experiment of any kind: reads its config, records it, and runs it."""

import contextlib
import importlib
from pathlib import Path

import jax
from ml_collections import ConfigDict

from nlhf_jax import distributed
from nlhf_jax.experiments.model_config import make_mesh
from nlhf_jax.storage import json_lines
from nlhf_jax.storage.locks import lock_folder
from nlhf_jax.training import interrupts

# Kinds that compute in double precision, in seconds to minutes. They store no stages, so an
# interruption ends them at once.
EXACT = ('sample_complexity', 'tabular')


def start(config: ConfigDict, name: str, workdir: Path, stages: Path) -> None:
  """Runs the experiment that a config describes, or resumes it.

  The kind `config.experiment` names a folder beside this file, with a config reader
  (`make_experiment`) and a `run`.

  Args:
    config: its settings; they are written to `config.json` of the work directory.
    name: of the experiment, for its report.
    workdir: for results.
    stages: for trained stages, which runs may share.

  Raises:
    Interrupted: if the user asked to stop; starting again resumes.
    UserError: if a setting or the data cannot be used, or another run uses the work directory.
  """
  distributed.check_alike(json_lines.json_digest(config.to_dict()), (workdir, stages))
  kind = f'nlhf_jax.experiments.{config.experiment}'
  make_experiment = importlib.import_module(f'{kind}.config').make_experiment
  run = importlib.import_module(f'{kind}.run').run
  exact = config.experiment in EXACT
  with (
    jax.enable_x64(True) if exact else interrupts.deferred(),
    make_mesh(config) if 'mesh' in config else contextlib.nullcontext(),
  ):
    experiment = make_experiment(config, name, stages)
    with lock_folder(workdir):
      json_lines.write_json(workdir / 'config.json', config.to_dict())
      if not exact:
        stages.mkdir(parents=True, exist_ok=True)
      run(experiment, workdir)
