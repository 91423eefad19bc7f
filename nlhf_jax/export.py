"""Exports a policy: `nlhf export --run=runs/nash_md --policy=nash_md --to=DIR`.

Takes the work directory of the run, or the flags with which the policy was trained, and writes it
as a folder in the Hugging Face layout: a whole model or, where adapters were trained, the adapter;
`--merged=True` adds the adapter to the weights. `--push=ORG/NAME` prints what would be uploaded to
the Hugging Face hub, and `--yes=True` uploads it. `python -m nlhf_jax.export` does the same.
"""

import contextlib
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from nlhf_jax import command
from nlhf_jax.errors import UserError

FLAGS = {
  'run': 'the work directory of a finished run; it replaces --config and its other flags',
  'policy': 'the policy to write, by its name in the tournament: sft, or a policy of the config',
  'to': 'the folder to write; it must be new or empty',
  'merged': 'True to add an adapter to the weights of the model under it; default False',
  'push': 'ORG/NAME on the Hugging Face hub: prints what would be uploaded; --to may be left out',
  'yes': 'True to upload to --push; default False',
}


def main(arguments: Sequence[str]) -> int:
  """Exports the policy that the arguments name; returns the exit status."""
  return command.run_command(name_config(arguments), __doc__, FLAGS, run)


def name_config(arguments: Sequence[str]) -> list[str]:
  """The arguments, with --config for the config that the work directory of --run holds."""
  program, *rest = arguments
  for number, argument in enumerate(rest):
    name, _, folder = argument.partition('=')
    if name == '--run':
      folder = folder or ''.join(rest[number + 1 : number + 2])
      return [program, f'--config={Path(folder) / command.RECORDED}', *rest]
  return [program, *rest]


def run(config: ConfigDict, settings: flags.FlagValues) -> None:
  """Exports a policy of a finished run.

  Raises:
    UserError: if a flag is missing or wrong, or the experiment trains no language models.
  """
  if config.get('experiment') != 'language':
    raise UserError(
      f"--config: '{settings.config}' trains no language models to export; give one that does."
    )
  for flag in ('policy',) if settings.push else ('policy', 'to'):
    if not settings[flag].value:
      raise UserError(f'--{flag} is missing: {FLAGS[flag]}.')
  merged, yes = (read_switch(flag, settings) for flag in ('merged', 'yes'))
  if yes and not settings.push:
    raise UserError('--yes is for --push=ORG/NAME, which is missing.')
  name, workdir, stages = find_paths(settings)
  # Imported late, so that a mistake in the flags does not wait for JAX.
  experiment = importlib.import_module('nlhf_jax.experiments.export_policy')
  results = experiment.read_results(config, workdir, settings.policy)
  with contextlib.ExitStack() as stack:
    to = settings.to or f'{stack.enter_context(tempfile.TemporaryDirectory())}/{settings.policy}'
    export = experiment.Export(
      settings.policy, Path(to), merged, results, settings.push or '', confirmed=yes
    )
    experiment.start(config, name, stages, export)


def read_switch(flag: str, settings: flags.FlagValues) -> bool:
  """The value of a flag that is True or False, and False if it is not given."""
  text = (settings[flag].value or 'False').lower()
  if text not in ('true', 'false'):
    raise UserError(f"--{flag}: '{settings[flag].value}' is not True or False.")
  return text == 'true'


def find_paths(settings: flags.FlagValues) -> tuple[str, Path, Path]:
  """The name of the run, its work directory and the folder of its stages.

  Raises:
    UserError: if the flags name two runs.
  """
  if not settings.run:
    return command.run_paths(settings)
  folder = Path(settings.run)
  if settings.workdir or settings.config != str(folder / command.RECORDED):
    raise UserError('--run stands for --config and --workdir; leave them out.')
  own = folder / 'stages'
  stages = own if own.is_dir() else folder.parent / 'stages'
  return folder.name, folder, Path(settings.stages or stages)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
