"""Runs an experiment: `nlhf run --config=nash_md [--config.FIELD=VALUE ...]`.

`python -m nlhf_jax.main` does the same.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from nlhf_jax import command, configs
from nlhf_jax.errors import UserError
from nlhf_jax.progress import is_on_terminal

# Kinds of experiments that several processes can run.
IN_PROCESSES = ('language', 'judges', 'evaluate')
# The flags of this command alone.
FLAGS = {
  'tracker': 'where the learning curves are plotted, besides metrics.jsonl: none, tensorboard, '
  'wandb or trackio; default tensorboard. It changes no result',
  'store': 'gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, to which work directory and stages are '
  'copied after each checkpoint, and from which a run resumes on another machine',
}


def main(arguments: Sequence[str]) -> int:
  """Runs the experiment that the arguments describe; returns the exit status."""
  return command.run_command(arguments, __doc__, FLAGS, run)


def run(config: ConfigDict, settings: flags.FlagValues) -> None:
  """Starts the experiment that the config describes, by its kind.

  Raises:
    UserError: if there is no such kind of experiment, the config lacks a part of it, or a setting
      or the data cannot be used.
  """
  kind = config.get('experiment')
  if kind not in configs.EXAMPLES:
    raise UserError(f"config.experiment='{kind}' must be one of {', '.join(configs.EXAMPLES)}.")
  example = configs.EXAMPLES[kind]
  missing = [name for name in command.load_config(example) if name not in config]
  if missing:
    raise UserError(
      f"config.experiment='{config.experiment}' needs {', '.join(missing)}, which "
      f'--config={settings.config} lacks; start from --config={example}.'
    )
  if settings.cluster and config.experiment not in IN_PROCESSES:
    raise UserError(
      f'--cluster: the experiment {config.experiment} runs in one process; leave --cluster out.'
    )
  if not is_on_terminal():  # the hub's own bars, which it reads when it is imported
    os.environ.setdefault('HF_HUB_DISABLE_PROGRESS_BARS', '1')
  # Imported late, so that a mistake in the flags does not wait for all of JAX.
  compilation = importlib.import_module('nlhf_jax.compilation')
  experiment = importlib.import_module('nlhf_jax.experiments.start')
  name, workdir, stages = command.run_paths(settings)
  dashboards = importlib.import_module('nlhf_jax.training.dashboards')
  common = Path(settings.workdir or 'runs')
  compilation.keep_programs(common / 'programs')
  importlib.import_module('nlhf_jax.storage.model_files').keep_digests(common)
  with dashboards.chosen(settings.tracker or dashboards.DEFAULT):
    experiment.start(config, name, workdir, stages, settings.store)
  print(f'\nReport: {workdir / "report.html"}')


if __name__ == '__main__':
  sys.exit(main(sys.argv))
