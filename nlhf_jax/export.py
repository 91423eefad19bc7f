"""Exports a policy: `nlhf export --config=nash_md --policy=nash_md --to=DIR`.

Takes the flags with which the policy was trained, and writes it as a folder in the Hugging Face
layout: a whole model or, where adapters were trained, the adapter; `--merged=True` adds the adapter
to the weights. `python -m nlhf_jax.export` does the same.
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
  'to': 'the folder to write; it must be new or empty',
  'merged': 'True to add an adapter to the weights of the model under it; default False',
}


def main(arguments: Sequence[str]) -> int:
  """Exports the policy that the arguments name; returns the exit status."""
  return command.run_command(arguments, __doc__, FLAGS, run)


def run(config: ConfigDict, settings: flags.FlagValues) -> None:
  """Exports a policy of a finished run.

  Raises:
    UserError: if a flag is missing or wrong, or the experiment trains no language models.
  """
  if config.get('experiment') != 'language':
    raise UserError(
      f"--config: '{settings.config}' trains no language models to export; give one that does."
    )
  for flag in ('policy', 'to'):
    if not settings[flag].value:
      raise UserError(f'--{flag} is missing: {FLAGS[flag]}.')
  merged = (settings.merged or 'False').lower()
  if merged not in ('true', 'false'):
    raise UserError(f"--merged: '{settings.merged}' is not True or False.")
  name, _, stages = command.run_paths(settings)
  # Imported late, so that a mistake in the flags does not wait for JAX.
  experiment = importlib.import_module('nlhf_jax.experiments.export_policy')
  experiment.start(config, name, stages, settings.policy, Path(settings.to), merged == 'true')


if __name__ == '__main__':
  sys.exit(main(sys.argv))
