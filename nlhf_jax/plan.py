"""Plans memory: `nlhf plan --config=nash_md --devices=8 --memory=80`.

Prints the memory that each policy of a config needs on every device of a mesh, and with which
settings it fits where it does not. Nothing is allocated, and only `config.json` of a pretrained
model is read. The devices are simulated; with `--topology=v5e:8x8` the programs are compiled for
TPUs, which need not be there. `python -m nlhf_jax.plan` does the same.
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
  'memory': 'memory of each device in gigabytes (10^9 bytes); default 80, or that of the topology',
  'topology': 'TPUs to compile for, such as v5e:8x8, instead of --devices; needs the extra [tpu]',
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
  if devices < 1 or not 0 < memory < float('inf'):
    raise UserError(
      f'--devices must be at least 1 and --memory above 0, not {devices} and {memory:g}.'
    )
  if settings.topology and settings.devices:
    raise UserError(
      f'--topology={settings.topology} determines how many devices there are; leave --devices out.'
    )
  # Imported late, so that a mistake in the flags does not wait for JAX.
  load = lambda name: importlib.import_module(f'nlhf_jax.experiments.{name}')
  plan, found = load('memory_plan'), ()
  if settings.topology:
    found = load('topology').find_devices(settings.topology)
    devices = len(found)
    if not settings.memory:
      memory = load('topology').device_memory(found[0]) / 1e9
  plan.start(config, plan.Machine(found, devices, 1e9 * memory))


if __name__ == '__main__':
  sys.exit(main(sys.argv))
