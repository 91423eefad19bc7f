"""Plans memory: `nlhf plan --config=nash_md --devices=8 --memory=80`.

Prints the memory that each policy of a config needs on every device of a mesh, and what to change
where it does not fit. Nothing is allocated: the devices are simulated, and only `config.json` of a
pretrained model is read. `python -m nlhf_jax.plan` does the same.
"""

import importlib
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from nlhf_jax import command
from nlhf_jax.errors import UserError

FLAGS = {
  'devices': 'number of devices; default 8',
  'memory': 'memory of each device in gigabytes (10^9 bytes); default 80',
}


def main(arguments: Sequence[str]) -> int:
  """Prints the plan for a config; returns the exit status."""
  return command.run_command(arguments, __doc__, FLAGS, run)


def run(config: ConfigDict, settings: flags.FlagValues) -> None:
  """Prints the plan.

  Raises:
    UserError: if a flag is wrong, or the experiment trains no policies.
  """
  if config.get('experiment') != 'language' or not config.policies:
    raise UserError(f"--config: '{settings.config}' trains no policies; give one that does.")
  try:
    devices, memory = int(settings.devices or 8), float(settings.memory or 80)
  except ValueError:
    raise UserError(
      f"--devices is a whole number and --memory a number of gigabytes, not '{settings.devices}' "
      f"and '{settings.memory}'."
    ) from None
  if devices < 1 or memory <= 0:
    raise UserError(
      f'--devices must be at least 1 and --memory above 0, not {devices} and {memory:g}.'
    )
  # Imported late, so that a mistake in the flags does not wait for JAX.
  experiment = importlib.import_module('nlhf_jax.experiments.memory_plan')
  experiment.start(config, devices, memory)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
