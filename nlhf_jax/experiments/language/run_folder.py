"""Opens the work directory of a run that trained language models."""

from pathlib import Path

from ml_collections import ConfigDict

from nlhf_jax.errors import UserError, first_line
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.storage import json_lines


def open_run(run: Path, beside: Path, stages: str | Path | None = None) -> LanguageExperiment:
  """The experiment of a work directory.

  Args:
    run: the work directory.
    beside: where the run kept its stages, unless they are in the work directory.
    stages: where they are in any case, if it is known.

  Raises:
    UserError: if there is no config, it cannot be read, or it trains no language models.
  """
  path = run / 'config.json'
  if not path.is_file():
    raise UserError(f"'{run}' is not the folder of a run: it has no config.json.")
  own = run / 'stages'
  folder = Path(stages or (own if own.is_dir() else beside))
  try:
    settings = ConfigDict(json_lines.read_json(path))
    if settings.experiment != 'language':
      raise UserError(f"'{run}' is a run of kind {settings.experiment}, which has no policies.")
    return make_experiment(settings, run.name, folder)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"'{path}' is damaged or from another version of nlhf_jax ({first_line(error)}); run "
      'nlhf_jax.main again with its config and --workdir, which trains nothing twice.'
    ) from None
