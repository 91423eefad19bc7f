"""Runs an experiment: `nlhf run --config=nash_md [--config.FIELD=VALUE ...]`.

`python -m nlhf_jax.main` does the same.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from nlhf_jax import command
from nlhf_jax.errors import UserError

# The kinds of experiments, each a folder in nlhf_jax/experiments.
KINDS = ('evaluate', 'judges', 'language', 'sample_complexity', 'tabular', 'token_game')


def main(arguments: Sequence[str]) -> int:
  """Runs the experiment that the arguments describe; returns the exit status."""
  return command.run_command(arguments, __doc__, {}, run)


def run(config: ConfigDict, settings: flags.FlagValues) -> None:
  """Starts the experiment that the config describes, by its kind.

  Raises:
    UserError: if there is no such kind of experiment, or the work directory cannot be written to.
  """
  if config.get('experiment') not in KINDS:
    raise UserError(
      f"config.experiment='{config.get('experiment')}' must be one of {', '.join(KINDS)}."
    )
  if settings.cluster and config.experiment != 'language':
    raise UserError(
      f'--cluster: the experiment {config.experiment} runs in one process; leave --cluster out.'
    )
  # Imported late, so that a mistake in the flags does not wait for all of JAX.
  compilation = importlib.import_module('nlhf_jax.compilation')
  experiment = importlib.import_module('nlhf_jax.experiments.start')
  name, workdir, stages = command.run_paths(settings)
  compilation.keep_programs(Path(settings.workdir or 'runs') / 'programs')
  try:
    experiment.start(config, name, workdir, stages)
  except OSError as error:
    # The error names the first parent that is missing, which may be above our folders.
    path = error.filename and Path(error.filename)
    if not path or not any(
      path.is_relative_to(folder) or folder.is_relative_to(path) for folder in (workdir, stages)
    ):
      raise
    raise UserError(f"cannot write to '{error.filename}': {error.strerror}.") from None
  print(f'\nReport: {workdir / "report.html"}')


if __name__ == '__main__':
  sys.exit(main(sys.argv))
