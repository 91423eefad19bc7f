"""The command: `python -m nlhf_jax.export --config=... --policy=nash_md --to=DIR`.

Takes the flags of nlhf_jax.main, and writes a player of a finished run as a folder in the Hugging
Face layout: a model, or the adapter of one (`--merged=True` makes it part of the weights).
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from nlhf_jax import command
from nlhf_jax.errors import UserError

FLAGS = {
  'policy': 'the policy to write, by its name in the tournament: sft, or a policy of the config',
  'to': 'the folder to write to; a new one',
  'merged': 'True to make an adapter part of the weights; default False',
}


def main(arguments: Sequence[str]) -> int:
  """Exports what the arguments name; returns the exit status."""
  return command.run(arguments, __doc__, FLAGS, run)


def run(config: ConfigDict, settings: flags.FlagValues) -> None:
  """Exports a player.

  Raises:
    UserError: if a flag is missing or wrong, or the experiment trains no language models.
  """
  if config.get('experiment') != 'language':
    raise UserError(
      f"--config: '{settings.config}' trains no language models of its own to export."
    )
  for flag in ('policy', 'to'):
    if not settings[flag].value:
      raise UserError(f'--{flag} is missing: {FLAGS[flag]}.')
  merged = (settings.merged or 'False').lower()
  if merged not in ('true', 'false'):
    raise UserError(f"--merged: '{settings.merged}' is not True or False.")
  name, _, stages = command.places(settings)
  # Imported late, so that a mistake in the flags does not wait for all of JAX.
  experiment = importlib.import_module('nlhf_jax.experiments.export_policy')
  experiment.start(config, name, stages, settings.policy, Path(settings.to), merged == 'true')


if __name__ == '__main__':
  sys.exit(main(sys.argv))
