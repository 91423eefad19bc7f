"""What the commands share: flags, configs and changes to them, and how a command ends."""

import contextlib
import difflib
import importlib
import inspect
import json
import os
import re
import runpy
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from nlhf_jax import __version__, configs
from nlhf_jax.errors import Interrupted, UserError, first_line
from nlhf_jax.judges.keys import check_secrets
from nlhf_jax.storage import disk
from nlhf_jax.storage.texts import printable

# Type of a field -> what an error calls its values, and the function that parses one.
_TYPES = {
  bool: ('True or False', lambda text: {'true': True, 'false': False}[text.lower()]),
  int: ('a whole number', int),
  float: ('a number', float),
  str: ('text', str),
}


RECORDED = 'config.json'  # the config of a run, in its work directory

FLAGS = {
  'config': 'the experiment: the name of a shipped config (`nlhf list` lists them), or FILE.py '
  'with a function get_config. NAME:ARGUMENT and FILE.py:ARGUMENT call get_config with that '
  'argument, such as the source of data. --config.FIELD=VALUE changes a field',
  'workdir': 'the folder of the results; default runs/<config name>, followed by _ARGUMENT if '
  'there is one',
  'stages': 'the folder in which trained stages are kept and looked up, so that runs can share '
  'them; default runs/stages, or <workdir>/stages where --workdir is given',
  'cluster': 'to run as one of several processes, all started with the same flags: auto on a TPU '
  'pod, on Slurm and wherever JAX detects the cluster; else HOST:PORT,COUNT,NUMBER with the '
  'address of process 0',
}
SWITCHES = {
  'help': 'show this text',
  'version': 'show the version',
  'print': 'show every field of the config, with the changes made, and stop',
}


def run_command(
  arguments: Sequence[str],
  usage: str,
  more: Mapping[str, str],
  work: Callable[[ConfigDict, flags.FlagValues], None],
) -> int:
  """Parses the arguments, loads the config and calls `work`; returns the exit status.

  Args:
    arguments: the command line, starting with the name of the command.
    usage: printed by --help.
    more: flags of this command besides `FLAGS`, with their descriptions.
    work: (config, flags) -> None.
  """
  try:
    overrides = [argument for argument in arguments if argument.startswith('--config.')]
    settings = parse_flags([text for text in arguments if text not in overrides], FLAGS | more)
    if settings.help:
      return print_quietly(f'{usage}\n{settings.get_help(include_special_flags=False)}')
    if settings.version:
      return print_quietly(f'nlhf_jax {__version__}')
    with _joined(settings):
      config = load_config(settings.config)
      for override in overrides:
        apply_override(override, config, settings.config)
      check_secrets(config.to_dict())
      if settings.print:
        return print_quietly(describe(config))
      logging.set_verbosity('fatal')  # Orbax logs the tracebacks of errors that it also raises
      with disk.writing(*_places(settings)):
        work(config, settings)
    sys.stdout.flush()  # a pipe that is closed shows here, and not when Python ends
  except UserError as error:
    print(f'error: {printable(str(error))}', file=sys.stderr)
    return 2
  except Interrupted as stopped:
    print(f'Stopped in {stopped}. All work is saved: run the same command again to resume.')
    if not settings.cluster:
      return 130
    return importlib.import_module('nlhf_jax.distributed').RESUME_STATUS  # for the launcher
  except KeyboardInterrupt:
    print(
      'Stopped at once. Run the same command again: it resumes from what was saved, if anything.'
    )
    return 130
  except BrokenPipeError:
    return silence_output()
  except Exception as error:
    if not _is_out_of_memory(error):
      raise
    print(
      f'error: there is not enough memory ({first_line(error)}); lower the sizes of the model, of '
      'batches or of texts (`nlhf plan` says what fits), and run again: what was saved is safe.',
      file=sys.stderr,
    )
    return 2
  return 0


def _is_out_of_memory(error: Exception) -> bool:
  text = str(error)
  return isinstance(error, MemoryError) or (
    'RESOURCE_EXHAUSTED' in text and 'memory' in text.lower()
  )


def _places(settings: flags.FlagValues) -> list[Path]:
  """The folders that a command writes to."""
  given = settings['to'].value if 'to' in settings else None
  _, *folders = run_paths(settings)
  return [Path(given), *folders] if given else folders


def print_quietly(text: str) -> int:
  """Prints a text, of which nobody need read the end; returns the exit status."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    return silence_output()
  except OSError as error:
    silence_output()
    print(f'error: cannot print: {error.strerror}; send the output elsewhere.', file=sys.stderr)
    return 2
  return 0


def silence_output() -> int:
  """Sends what is still printed nowhere, once nobody reads it, as after `| head`.

  Returns:
    the exit status of a command that a closed pipe ends.
  """
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  return 128 + signal.SIGPIPE


def _joined(settings: flags.FlagValues) -> contextlib.AbstractContextManager[None]:
  """A context within which the processes of a run are joined, if there are several.

  It begins before the config is read, so that a mistake there in one process ends all.
  """
  if not settings.cluster or settings.print:
    return contextlib.nullcontext()
  # Imported late, so that a single process that was started by mistake does not wait for JAX.
  return importlib.import_module('nlhf_jax.distributed').joined(settings.cluster)


def parse_flags(arguments: Sequence[str], known: Mapping[str, str]) -> flags.FlagValues:
  """The values of the flags; `arguments` are without the changes of the config.

  Raises:
    UserError: if a flag is unknown, has a bad value or is missing.
  """
  settings = flags.FlagValues()
  for name, text in known.items():
    flags.DEFINE_string(name, None, text, flag_values=settings)
  for name, text in SWITCHES.items():
    flags.DEFINE_bool(name, False, text, flag_values=settings)
  try:
    _, *rest = settings(list(arguments))
  except flags.Error as error:
    raise UserError(f'{error} (--help lists the flags)') from None
  if rest:
    # A long word may be a key that was meant as the value of a field.
    hidden = re.fullmatch(r'[\w-]{16,}', rest[0])
    shown = f'an argument of {len(rest[0])} characters' if hidden else f"'{rest[0]}'"
    raise UserError(f'{shown} is not a flag; flags start with --, and are written --FLAG=VALUE.')
  if not (settings.config or settings.help or settings.version):
    raise UserError(
      '--config is missing; try --config=nash_md. `nlhf list` lists the shipped configs.'
    )
  return settings


def load_config(name: str) -> ConfigDict:
  """The config that `get_config` of a shipped config or of a file returns.

  Args:
    name: NAME or FILE.py, followed by `:ARGUMENT` to call `get_config` with an argument; or the
      config.json of a run.

  Raises:
    UserError: if the config cannot be found or loaded, or does not take the argument.
  """
  if Path(name).name == RECORDED:
    return _load_recorded(Path(name))
  source, argument = split_name(name)
  arguments = [argument] if argument else []
  get_config = _load_get_config(source)
  try:
    inspect.signature(get_config).bind(*arguments)
  except TypeError as error:
    raise UserError(f"--config={name}: get_config of '{source}': {error}.") from None
  try:
    config = get_config(*arguments)
  except ValueError as error:
    raise UserError(f'--config={name}: {error}') from None
  if not isinstance(config, ConfigDict):
    raise UserError(f"--config={name}: get_config of '{source}' must return a ConfigDict.")
  return config


def split_name(name: str) -> tuple[str, str]:
  """The file or name of a config, and its argument, which may be empty."""
  source, argument = re.fullmatch(r'(.+?)(?::([^:/\\]*))?', name).groups()
  return source, argument or ''


def _load_get_config(source: str) -> Callable[..., ConfigDict]:
  """The function `get_config` of a shipped config, by its name, or of a file, by its path."""
  path = Path(source)
  if path.suffix != '.py' and path.name == source:
    if source not in configs.names():
      raise UserError(f"--config: there is no shipped config '{source}'; {_choices(source)}")
    return importlib.import_module(f'{configs.__name__}.{source}').get_config
  try:
    get_config = _run_file(path).get('get_config')
  except OSError as error:
    raise UserError(
      f"--config: cannot read '{source}': {error.strerror}; {_choices(path.stem)}"
    ) from None
  except (ImportError, SyntaxError) as error:
    raise UserError(f"--config: cannot load '{source}': {error}.{_import_remedy(error)}") from None
  if get_config is None:
    raise UserError(f"--config: '{source}' has no function get_config; see `nlhf list`.")
  return get_config


def _run_file(path: Path) -> dict[str, Any]:
  """The globals of a config file.

  While it runs, its own folder and the one above come first on the path of imports: the files
  beside it can be imported, by their names or through the name of their folder.
  """
  before = sys.path.copy()
  folder = path.resolve().parent
  sys.path[:0] = [str(folder), str(folder.parent)]
  try:
    return runpy.run_path(str(path))
  finally:
    sys.path[:] = before


def _load_recorded(path: Path) -> ConfigDict:
  """The config that a run recorded in its work directory."""
  try:
    config = json.loads(path.read_bytes())
  except OSError as error:
    raise UserError(
      f"'{path.parent}' is not the work directory of a run: {path.name} cannot be read "
      f'({error.strerror}); give that of a finished run.'
    ) from None
  except (ValueError, RecursionError):
    config = None
  if not isinstance(config, dict):
    raise UserError(f"'{path}' is damaged; give the flags of the run instead.")
  return ConfigDict(config)


def _choices(wanted: str) -> str:
  """What to choose instead of a config that does not exist."""
  names = configs.names()
  nearest = difflib.get_close_matches(wanted, names, n=1)
  hint = f'the nearest is {nearest[0]}; ' if nearest else ''
  return f'{hint}give a FILE.py or one of {", ".join(names)}.'


def _import_remedy(error: Exception) -> str:
  """How to import shipped configs, for a file that looks for them in a folder `configs`."""
  if not isinstance(error, ImportError) or (error.name or '').partition('.')[0] != 'configs':
    return ''
  return ' Shipped configs are imported as: from nlhf_jax.configs import base.'


def describe(config: ConfigDict) -> str:
  """Every field of the config with its value, one a line, as a flag would set it."""
  fields = _fields(config, '--config.')
  return '\n'.join(f'{flag}={value}' for flag, value in fields if not isinstance(value, ConfigDict))


def apply_override(override: str, config: ConfigDict, name: str) -> None:
  """Changes the config called `name` by `--config.FIELD=VALUE`; the field keeps its type.

  Raises:
    UserError: if there is no such field, or the value is not of its type.
  """
  flag, given, text = override.partition('=')
  fields = dict(_fields(config, '--config.'))
  if flag not in fields:
    nearest = max(fields, key=lambda field: _likeness(flag, field))
    raise UserError(f'{flag}: {name} has no such field; the nearest is {nearest}.')
  before = fields[flag]
  if isinstance(before, ConfigDict):
    raise UserError(f'{flag} is a section; set one of its fields: {", ".join(before)}.')
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


def _likeness(wanted: str, field: str) -> float:
  """How alike two fields are: their last parts, then all of them."""
  ends, wholes = zip(wanted.rsplit('.', 1), field.rsplit('.', 1), strict=False), (wanted, field)
  *_, last = ends
  return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in (last, wholes))


def run_paths(settings: flags.FlagValues) -> tuple[str, Path, Path]:
  """The name of the experiment, its work directory and the folder of its stages.

  Without a work directory, runs share their stages; but a store keeps those of one run.
  """
  source, argument = split_name(settings.config)
  name = '_'.join(filter(None, (Path(source).stem, argument)))
  workdir = Path(settings.workdir or Path('runs') / name)
  own = settings.workdir or ('store' in settings and settings.store)
  stages = Path(settings.stages or (workdir if own else Path('runs')) / 'stages')
  for flag, folder in {'workdir': settings.workdir, 'stages': settings.stages}.items():
    if '://' in (folder or ''):
      raise UserError(
        f"--{flag}='{folder}' must be a local folder; add --store={folder} to keep a copy there."
      )
  return name, workdir, stages


def _fields(config: ConfigDict, prefix: str) -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    yield prefix + name, value
    if isinstance(value, ConfigDict):
      yield from _fields(value, f'{prefix}{name}.')
