"""What the log of a run begins and ends with: its device and parameters, and seconds by stage."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nlhf_jax import __version__, compilation, trees
from nlhf_jax.experiments.game_specs import TokenGameExperiment
from nlhf_jax.experiments.specs import (
  EvaluateExperiment,
  JudgeExperiment,
  LanguageExperiment,
  Model,
  Stage,
)
from nlhf_jax.models.decoder import parameter_shapes
from nlhf_jax.reporting import formatting
from nlhf_jax.storage import json_lines

THIS_RUN = 'this run, in all'
# Facts of a stage, with their heads in the table.
COLUMNS = {
  'seconds': 'seconds',
  'compile_seconds': 'of them compiling',
  'compiled_programs': 'programs',
}


def announced(make_experiment: Callable[[], Any], workdir: Path) -> Any:
  """Makes an experiment and prints the first line of its log, then what making it printed."""
  notes = io.StringIO()
  try:
    with contextlib.redirect_stdout(notes):
      experiment = make_experiment()
    print(describe_run(experiment, workdir))
  finally:
    print(notes.getvalue(), end='', flush=True)
  return experiment


def describe_run(experiment: Any, workdir: Path) -> str:
  """The first line of a log: version, devices, parameters and work directory."""
  devices = jax.devices()
  parts = [f'nlhf_jax {__version__}', f'{len(devices)} x {devices[0].device_kind}']
  counts = [count_parameters(*network) for network in find_networks(experiment)]
  parts += [f'parameters: {trained:,} trained, {fixed:,} fixed' for trained, fixed in counts]
  return f'{"; ".join(parts)}; {workdir}'


def find_networks(experiment: Any) -> Iterator[tuple]:
  """The decoder, and which of its parameters are trained, of each model of an experiment."""
  match experiment:
    case LanguageExperiment(model=Model(decoder=decoder, trains=trains)):
      yield decoder, trains
    case JudgeExperiment(sizes=sizes):
      for size in sizes.values():
        yield from find_networks(size)
    case EvaluateExperiment(trained=LanguageExperiment() as trained):
      yield from find_networks(trained)
    case TokenGameExperiment(decoder=decoder):
      yield decoder, lambda path: True


def count_parameters(decoder, trains) -> tuple[int, int]:
  """The numbers of parameters that are trained, and that are fixed."""
  shapes = parameter_shapes(decoder)
  return tuple(
    sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(part))
    for part in trees.split(shapes, trains)
  )


def find_stages(experiment: Any) -> Iterator[Stage]:
  """The stages that an experiment trains or computes."""
  match experiment:
    case LanguageExperiment(stages=stages, exploiters=exploiters):
      yield from (*stages.values(), *exploiters.values())
    case JudgeExperiment(sizes=sizes):
      for size in sizes.values():
        yield from find_stages(size)
    case EvaluateExperiment(trained=LanguageExperiment() as trained):
      yield from find_stages(trained)
    case TokenGameExperiment(stages=stages, learners=learners):
      yield from (*stages.values(), *(learner.stage for learner in learners.values()))


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
  """Records the seconds that the block took as `seconds[name]`."""
  began = time.monotonic()
  yield
  seconds[name] = time.monotonic() - began


@contextlib.contextmanager
def timed_run(experiment: Any) -> Iterator[None]:
  """Prints the seconds and compiled programs of each stage, and of the block, after the block."""
  programs, compiling = compilation.count_programs(), compilation.compile_seconds()
  began = time.monotonic()
  yield
  rows: dict[str, list[int | float | None]] = {}
  # Exploiters have one name, and so have the judges of several sizes: their figures are added.
  for stage in {stage.folder: stage for stage in find_stages(experiment)}.values():
    note = json_lines.read_sealed(stage.folder / 'stage.json')
    if note:
      found, before = [note.get(name) for name in COLUMNS], rows.get(stage.name)
      rows[stage.name] = [*map(_add, before, found)] if before else found
  rows[THIS_RUN] = [
    time.monotonic() - began,
    compilation.compile_seconds() - compiling,
    compilation.count_programs() - programs,
  ]
  # Stages of earlier versions lack some of these.
  cells = [['' if it is None else f'{it:.0f}' for it in row] for row in rows.values()]
  title = '\nSeconds by stage, over all runs that worked on it:'
  print(formatting.format_text(title, list(rows), list(COLUMNS.values()), cells))


def _add(one, other) -> int | float | None:
  return None if one is None or other is None else one + other
