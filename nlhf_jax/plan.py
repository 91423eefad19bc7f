"""The command: `python -m nlhf_jax.plan --config=... --devices=8 --memory=80`.

Says what each policy of a config needs on every device of a mesh, and what to change where it does
not fit. Nothing is allocated: of a pretrained model `config.json` is enough, and the devices are
simulated.
"""

import importlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from nlhf_jax import command
from nlhf_jax.errors import UserError

FLAGS = {
  'devices': 'how many devices there are; default 8',
  'memory': 'gigabytes (10^9 bytes) that each has; default 80',
}


def main(arguments: Sequence[str]) -> int:
  """Plans what the arguments name; returns the exit status."""
  return command.run(arguments, __doc__, FLAGS, run)


def run(config: ConfigDict, settings: flags.FlagValues) -> None:
  """Prints the plan.

  Raises:
    UserError: if a flag is wrong, or the experiment trains no policies.
  """
  if config.get('experiment') != 'language' or not config.policies:
    raise UserError(f"--config: '{settings.config}' trains no policies to plan for.")
  try:
    devices, memory = int(settings.devices or 8), float(settings.memory or 80)
  except ValueError:
    raise UserError('--devices is a whole number, --memory a number of gigabytes.') from None
  if devices < 1 or memory <= 0:
    raise UserError('--devices must be at least 1, --memory above 0.')
  # Imported late, so that a mistake in the flags does not wait for all of JAX.
  experiment = importlib.import_module('nlhf_jax.experiments.memory_plan')
  experiment.start(config, devices, memory)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
