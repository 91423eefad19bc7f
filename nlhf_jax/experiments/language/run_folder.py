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
  try:
    settings = json_lines.read_json(path)
  except FileNotFoundError:
    raise UserError(f"'{run}' is not the folder of a run: it has no config.json.") from None
  except (OSError, ValueError) as error:
    raise UserError(
      f"'{path}' is damaged ({first_line(error)}); run nlhf_jax.main with the same config and "
      '--workdir, which writes it again and trains nothing twice.'
    ) from None
  kind = settings.get('experiment') if isinstance(settings, dict) else None
  if kind != 'language':
    raise UserError(f"'{run}' is not a run that trains language models, but of kind {kind}.")
  own = run / 'stages'
  folder = Path(stages or (own if own.is_dir() else beside))
  try:
    return make_experiment(ConfigDict(settings), run.name, folder)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"'{path}' is damaged or of another version of nlhf_jax ({first_line(error)}); train again."
    ) from None
