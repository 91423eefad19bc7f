"""What the commands have in common: flags, a config and its changes, and how a run ends."""

import difflib
import importlib
import inspect
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from nlhf_jax.errors import Interrupted, UserError

# The types that fields have: what to call a value of each, and how to read one.
_TYPES = {
  bool: ('True or False', lambda text: {'true': True, 'false': False}[text.lower()]),
  int: ('a whole number', int),
  float: ('a number', float),
  str: ('text', str),
}


FLAGS = {
  'config': 'the experiment: a file with a function get_config, as FILE.py, or FILE.py:SOURCE '
  'to learn from another source of data; its fields are changed by --config.FIELD=VALUE',
  'workdir': 'where results go; default runs/<config name>, with _SOURCE if one is named',
  'stages': 'where trained stages are kept and looked up, to share them between runs; default '
  'runs/stages, or <workdir>/stages where --workdir is given',
  'cluster': 'to run as one of several processes, each started alike: auto on a TPU pod, on Slurm '
  'and others that JAX knows; else HOST:PORT,COUNT,NUMBER, the address being that of number 0',
}


def run(
  arguments: Sequence[str],
  usage: str,
  more: Mapping[str, str],
  work: Callable[[ConfigDict, flags.FlagValues], None],
) -> int:
  """Does the work that the arguments ask for; returns the exit status.

  Args:
    arguments: of the command line, its own name first.
    usage: printed by --help.
    more: flags beside `FLAGS`, and what they are for.
    work: (config, flags) -> None.
  """
  try:
    overrides = [argument for argument in arguments if argument.startswith('--config.')]
    known = [argument for argument in arguments if argument not in overrides]
    settings = parse(known, FLAGS | more)
    if settings.help:
      print(usage, settings.get_help(include_special_flags=False), sep='\n')
    else:
      config = load(settings.config)
      for override in overrides:
        apply(override, config, settings.config)
      if settings.cluster:
        # Imported late, so that a mistake in the flags does not wait for all of JAX.
        importlib.import_module('nlhf_jax.distributed').join(settings.cluster)
      work(config, settings)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except Interrupted as stopped:
    print(f'Stopped in {stopped}. All is saved: run the same command again to go on.')
    return 130
  except KeyboardInterrupt:
    print('Stopped at once. Run the same command again; it goes on from what has been saved.')
    return 130
  return 0


def parse(arguments: Sequence[str], known: Mapping[str, str]) -> flags.FlagValues:
  """The flags, the overrides of fields left out.

  Raises:
    UserError: if a flag is unknown, has a bad value or is missing.
  """
  settings = flags.FlagValues()
  for name, text in known.items():
    flags.DEFINE_string(name, None, text, flag_values=settings)
  flags.DEFINE_bool('help', False, 'show this text', flag_values=settings)
  try:
    _, *rest = settings(list(arguments))
  except flags.Error as error:
    raise UserError(f'{error} (--help lists the flags)') from None
  if rest:
    raise UserError(f"'{rest[0]}' is not a flag; flags start with --.")
  if not (settings.config or settings.help):
    raise UserError('--config is missing; try --config=configs/nash_md.py.')
  return settings


def load(name: str) -> ConfigDict:
  """What the function `get_config` of `FILE.py` gives; `FILE.py:SOURCE` calls it with `SOURCE`.

  Raises:
    UserError: if there is no such file, function or source.
  """
  file, _, source = name.partition(':')
  arguments = [source] if source else []
  sys.path.append(str(Path(file).resolve().parents[1]))  # configs import their neighbours
  try:
    get_config = runpy.run_path(file).get('get_config')
  except OSError as error:
    raise UserError(f"--config: cannot read '{file}': {error.strerror}.") from None
  except (ImportError, SyntaxError) as error:
    raise UserError(f"--config: cannot load '{file}': {error}.") from None
  if get_config is None:
    raise UserError(f"--config: '{file}' has no function get_config; try configs/nash_md.py.")
  try:
    inspect.signature(get_config).bind(*arguments)
  except TypeError as error:
    raise UserError(f"--config={name}: get_config of '{file}': {error}.") from None
  try:
    config = get_config(*arguments)
  except ValueError as error:
    raise UserError(f'--config={name}: {error}') from None
  if not isinstance(config, ConfigDict):
    raise UserError(f"--config={name}: get_config of '{file}' must return a ConfigDict.")
  return config


def apply(override: str, config: ConfigDict, name: str) -> None:
  """Does what `--config.FIELD=VALUE` says to the config called `name`; a field keeps its type.

  Raises:
    UserError: if there is no such field, or the value is not of its type.
  """
  flag, given, text = override.partition('=')
  fields = dict(_fields(config, '--config.'))
  if flag not in fields:
    nearest = difflib.get_close_matches(flag, fields, n=1, cutoff=0)[0]
    raise UserError(f'{flag}: {name} has no such field; the nearest is {nearest}.')
  before = fields[flag]
  if isinstance(before, ConfigDict):
    raise UserError(f'{flag} is a section; give a value to a field of it, of {list(before)}.')
  if not given:
    raise UserError(f'{flag}: write it with its value, as {flag}={before}.')
  if type(before) not in _TYPES:
    raise UserError(f'{flag}: a value like {before} can only be changed in {name}.')
  kind, read = _TYPES[type(before)]
  try:
    value = read(text)
  except (KeyError, ValueError):
    raise UserError(f"{flag}: '{text}' is not {kind}; the default is {before}.") from None
  config.update_from_flattened_dict({flag.removeprefix('--config.'): value})


def places(settings: flags.FlagValues) -> tuple[str, Path, Path]:
  """The name of the experiment, its work directory, and the folder of its stages."""
  file, _, source = settings.config.partition(':')
  name = '_'.join(filter(None, (Path(file).stem, source)))
  workdir = Path(settings.workdir or Path('runs') / name)
  stages = Path(settings.stages or (workdir if settings.workdir else Path('runs')) / 'stages')
  return name, workdir, stages


def _fields(config: ConfigDict, prefix: str) -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    yield prefix + name, value
    if isinstance(value, ConfigDict):
      yield from _fields(value, f'{prefix}{name}.')
