"""Random command lines, most of them wrong: each must end in a sentence, or be accepted."""

import contextlib
import io
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from ml_collections import ConfigDict

from nlhf_jax import command, configs, main
from nlhf_jax.errors import Interrupted
from nlhf_jax.experiments import data_config, start
from nlhf_jax.experiments.model_config import make_mesh

# What a user may type, or a script compute, for a field of any type.
VALUES = (
  *('-1', '0', '1', '2', '3', '7', '99', '100000', '2147483647', '2147483648', '-2147483648'),
  *('100000000000000000000', '9' * 5_000, '1e-3', '0.9'),
  *('0.5', '-0.5', '1e-30', '1e30', '1e400', 'nan', '-nan', 'inf', '-inf'),
  *('', ' ', 'none', 'None', 'True', 'false', 'many', '1,2', '[1]', '{}', '1/3', '0/0', '٣'),
  *('nash_md', 'learned', 'reward', 'remote', 'oracle', 'uniform', '../..', '/dev/null', 'a' * 300),
)
# Settings that cannot hold together, or that are contradicted by another.
TOGETHER = (
  ['--config.model.heads=3', '--config.model.key_heads=2'],
  ['--config.model.head_size=3', '--config.model.width=5'],
  ['--config.sft.batch=7', '--config.sft.accumulate=2'],
  ['--config.model.lora.rank=4', '--config.model.lora.targets='],
  ['--config.model.lora.rank=2147483648'],
  ['--config.mesh.data=3', '--config.mesh.fsdp=5'],
  ['--config.mesh.data=2147483648', '--config.mesh.tensor=2147483648'],
  ['--config.model.compute=float16'],
  ['--config.model.remat=everything'],
  ['--config.data.posts=2147483647', '--config.data.held_out=2147483647'],
  ['--config.model.width=2147483647', '--config.model.hidden=2147483647'],
  ['--config.experiment=tabular'],
  ['--config.experiment=evaluate'],
  ['--config.experiment=token_game'],
  ['--config.judges=learned,learned'],
  ['--config.data.source=file'],
  ['--config.sft.steps=1', '--config.sft.steps=-1'],
)
WRONG = (
  *('--config', '--config=', '--confg=x', '--workdir', '--stages=', '--cluster=x', '--print=maybe'),
  *(
    '--config.seed',
    '--config..=1',
    '--config.=1',
    '--config.sft=1',
    'run',
    '--',
    '-',
    '--=',
    '=1',
  ),
)


REFUSED, ACCEPTED = 2, (0, 130)  # statuses; 130 because accepted runs are interrupted
FIRST_SENTENCE = 20.0  # seconds


class Ending(NamedTuple):
  """How a command line ended: its exit status, what it printed to stderr, and after how long."""

  status: int
  error: str
  seconds: float

  def fault(self) -> str:
    """What is wrong with it; empty if it was accepted, or refused in one sentence, and soon."""
    if self.seconds > FIRST_SENTENCE:
      return f'{self.seconds:.0f} s'
    if self.status == REFUSED:
      one = self.error.startswith('error: ') and self.error.count('\n') == 1
      return '' if one else 'not one sentence'
    return '' if self.status in ACCEPTED else f'status {self.status}'


def generate(count: int, seed: int) -> Iterator[list[str]]:
  """Yields command lines, without the name of the program."""
  chosen = random.Random(seed)
  names = configs.names()
  fields = {name: list(_fields(command.load_config(name))) for name in names}
  for _ in range(count):
    name = chosen.choice(names)
    line = [f'--config={name}']
    if chosen.random() < 0.15:
      line += chosen.choice(TOGETHER)
    if chosen.random() < 0.1:
      line.insert(chosen.randrange(2), chosen.choice(WRONG))
    for _ in range(chosen.choice((1, 1, 1, 2, 3))):
      field = chosen.choice(fields[name])
      if chosen.random() < 0.05:
        field = _misspell(field, chosen)
      line.append(f'--config.{field}={chosen.choice(VALUES)}')
    yield line


def _fields(config: ConfigDict, prefix: str = '') -> Iterator[str]:
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _fields(value, f'{prefix}{name}.')
    else:
      yield prefix + name


def _misspell(field: str, chosen: random.Random) -> str:
  place = chosen.randrange(len(field))
  return field[:place] + chosen.choice('xyz_.') + field[place + chosen.randrange(2) :]


def run(program: Sequence[str]) -> Ending:
  """Ends a command line in this process, as the command would before it reads data."""
  error, since = io.StringIO(), time.monotonic()
  with reading_only(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
    status = main.main(['nlhf run', *program])
  return Ending(status, error.getvalue(), time.monotonic() - since)


@contextlib.contextmanager
def reading_only() -> Iterator[None]:
  """Within this context a run ends once its settings are read, before its data are."""

  def stop(*_):
    raise Interrupted('the reading of settings')

  def read(config, name, workdir, stages, store):
    del workdir, store
    with make_mesh(config) if 'mesh' in config else contextlib.nullcontext():
      start.make_experiment(config, name, Path(stages))
    stop()

  with (
    mock.patch.object(start, 'start', read),
    mock.patch.dict(
      data_config.SOURCES, {name: (kind, stop) for name, (kind, _) in data_config.SOURCES.items()}
    ),
  ):
    yield
