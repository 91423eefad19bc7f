"""The command: `python -m nlhf_jax.main --config=configs/nash_md.py [--config.FIELD=VALUE ...]`."""

import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from nlhf_jax.errors import Interrupted, UserError


def main(arguments: Sequence[str]) -> int:
  """Runs the experiment that the arguments name; returns the exit status."""
  try:
    settings = parse(arguments)
    if settings.help:
      print(__doc__, settings.get_help(), sep='\n')
    else:
      run(settings)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except Interrupted as stopped:
    print(f'Stopped in {stopped}. All is saved: run the same command again to go on.')
    return 130
  return 0


def run(settings: flags.FlagValues) -> None:
  """Builds the experiment and runs it in its work directory."""
  # Imported late, so that a mistake in the flags does not wait for all of JAX.
  from nlhf_jax import pipeline, records
  from nlhf_jax.build import make_experiment
  from nlhf_jax.training import interrupts

  name = Path(config_flags.get_config_filename(settings['config']).partition(':')[0]).stem
  workdir = Path(settings.workdir or Path('runs') / name)
  stages = Path(settings.stages or workdir / 'stages')
  try:
    for folder in (workdir, stages):
      folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"cannot make the folder '{error.filename}': {error.strerror}.") from None
  with interrupts.deferred():
    experiment = make_experiment(settings.config, name, stages)
    records.write_json(workdir / 'config.json', settings.config.to_dict())
    experiment.corpus.tokenizer.save_pretrained(workdir / 'tokenizer')
    pipeline.run(experiment, workdir)
  print(f'\nReport: {workdir / "report.html"}')


def parse(arguments: Sequence[str]) -> flags.FlagValues:
  """The flags, the config with its overrides among them.

  Raises:
    UserError: if a flag or field is unknown or has a bad value, or the config cannot be loaded.
  """
  overrides = [argument for argument in arguments if argument.startswith('--config.')]
  settings = _parsed([argument for argument in arguments if argument not in overrides])
  if settings.help:
    return settings
  if settings.config is None:
    raise UserError('--config is missing; try --config=configs/nash_md.py.')
  fields = [f'--config.{field}' for field in _fields(settings.config)]
  for override in overrides:
    name, given, _ = override.partition('=')
    if name not in fields:
      nearest = difflib.get_close_matches(name, fields, n=1, cutoff=0)[0]
      raise UserError(f'{name}: there is no such field; the nearest is {nearest}.')
    if not given:
      raise UserError(f'{name}: write it with its value, as {name}=VALUE.')
  return _parsed(arguments)


def _parsed(arguments: Sequence[str]) -> flags.FlagValues:
  settings = flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, 'the experiment', flag_values=settings)
  flags.DEFINE_string(
    'workdir', None, 'where results go; default runs/<config name>', flag_values=settings
  )
  flags.DEFINE_string(
    'stages',
    None,
    'where trained stages are kept and looked up, to share them between runs; default '
    '<workdir>/stages',
    flag_values=settings,
  )
  flags.DEFINE_bool('help', False, 'show this text', flag_values=settings)
  try:
    _, *rest = settings(list(arguments))
    _ = settings.config  # loading is lazy, and may fail
  except (flags.Error, OSError, ValueError, TypeError) as error:
    raise UserError(' '.join(str(error).split())) from None
  if rest:
    raise UserError(f"'{rest[0]}' is not a flag; flags start with --.")
  return settings


def _fields(config: ConfigDict, prefix: str = '') -> Iterator[str]:
  for name, value in config.items():
    yield prefix + name
    if isinstance(value, ConfigDict):
      yield from _fields(value, f'{prefix}{name}.')


if __name__ == '__main__':
  sys.exit(main(sys.argv))
