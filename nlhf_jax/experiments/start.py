"""Starts an experiment of any kind: reads its config, records it, and runs it."""

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from nlhf_jax import distributed
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.model_config import make_mesh
from nlhf_jax.experiments.run_log import announced, timed_run
from nlhf_jax.judges.keys import check_secrets
from nlhf_jax.storage import disk, json_lines, store
from nlhf_jax.storage.locks import lock_folder
from nlhf_jax.training import interrupts

# Kinds that compute in double precision, in seconds to minutes. They store no stages, so an
# interruption ends them at once.
EXACT = ('sample_complexity', 'tabular')

CONFIG = 'config.json'
# What belongs to one config. Caches and stages do not: their keys say what they are of.
RESULTS = (
  *('results.json', 'report.html', 'samples.jsonl', 'metrics.jsonl', 'data.json', 'tokenizer'),
  *('*.png', CONFIG),
)
SHOWN = 5  # differences between configs


def start(
  config: ConfigDict, name: str, workdir: Path, stages: Path, store_url: str | None = None
) -> None:
  """Runs the experiment that a config describes, or resumes it.

  The kind `config.experiment` names a folder beside this file, with a config reader
  (`make_experiment`) and a `run`.

  Args:
    config: its settings; they are written to `config.json` of the work directory. Results of
      another config that are there are moved to `previous-1`, `previous-2`, ...
    name: of the experiment, for its report.
    workdir: for results.
    stages: for trained stages, which runs may share.
    store_url: where both are copied to, and fetched from at the start; None leaves them local.

  Raises:
    Interrupted: if the user asked to stop; starting again resumes.
    UserError: if a setting or the data cannot be used, the config contains a secret, another run
      uses the work directory, or the disk refuses a file.
  """
  check_secrets(config.to_dict())
  digest = json_lines.json_digest(config.to_dict())
  with disk.writing(workdir, stages):
    distributed.check_alike(digest, (workdir, stages), may_differ=bool(store_url))
  exact = config.experiment in EXACT
  with (
    disk.writing(workdir, stages),
    jax.enable_x64(True) if exact else interrupts.deferred(),
    make_mesh(config) if 'mesh' in config else contextlib.nullcontext(),
    lock_folder(workdir) if store_url else contextlib.nullcontext(),  # which is written to at once
    store.mirrored(store_url, workdir, stages),  # before anything is read from the folders
  ):
    experiment = announced(lambda: make_experiment(config, name, stages), workdir)
    with contextlib.nullcontext() if store_url else lock_folder(workdir):
      if distributed.is_first():
        move_other_results(workdir, json_lines.to_json(config.to_dict()))
      json_lines.write_json(workdir / CONFIG, config.to_dict())
      if not exact:
        stages.mkdir(parents=True, exist_ok=True)
      run = importlib.import_module(f'nlhf_jax.experiments.{config.experiment}.run').run
      with timed_run(experiment):
        run(experiment, workdir)


def make_experiment(config: ConfigDict, name: str, stages: Path) -> Any:
  """The experiment that a config describes, by its kind.

  Raises:
    UserError: if a setting or the data cannot be used.
  """
  reader = importlib.import_module(f'nlhf_jax.experiments.{config.experiment}.config')
  return reader.make_experiment(config, name, stages)


def move_other_results(workdir: Path, config: Mapping[str, Any]) -> None:
  """Moves results of another config out of the way, and says where and how it differs.

  Raises:
    UserError: if `config.json` there is none of a run.
  """
  path, draft = workdir / CONFIG, workdir / '.previous'
  before = None
  if path.exists():
    try:
      before = json_lines.read_json(path)
    except ValueError:
      json_lines.set_aside(path, 'is written again')
    else:
      if not isinstance(before, dict) or 'experiment' not in before:
        raise UserError(f"'{path}' is not the config of a run; give another --workdir.")
  if before == config:
    return
  found = [file for pattern in RESULTS for file in sorted(workdir.glob(pattern))]
  if not found and not draft.exists():
    return
  draft.mkdir(exist_ok=True)  # exists if a process was killed here
  for file in found:
    os.replace(file, draft / file.name)
  number = 1
  while (workdir / f'previous-{number}').exists():
    number += 1
  os.replace(draft, workdir / f'previous-{number}')
  differences = 'of an unknown config'
  if before:
    differences = f'of another config ({", ".join(describe_changes(before, config))})'
  print(f'The results {differences} in {workdir} are kept in its folder previous-{number}.')


def describe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
  """Yields the first fields in which two configs differ, with both values."""
  old, new = dict(_leaves(before)), dict(_leaves(after))
  differ = [name for name in {**old, **new} if old.get(name) != new.get(name)]
  for name in differ[:SHOWN]:
    yield f'{name}={json.dumps(old.get(name))}, now {json.dumps(new.get(name))}'
  if len(differ) > SHOWN:
    yield f'and {len(differ) - SHOWN} more'


def _leaves(section, prefix='') -> Iterator[tuple[str, Any]]:
  for name, value in section.items():
    if isinstance(value, dict):
      yield from _leaves(value, f'{prefix}{name}.')
    else:
      yield prefix + name, value
