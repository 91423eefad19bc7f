"""The experiment that trains judges, of several kinds and sizes, on the same comparisons."""

import copy
from pathlib import Path

from ml_collections import ConfigDict

from nlhf_jax.data import examples
from nlhf_jax.data.schemas import Record
from nlhf_jax.data.sources import for_each
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.model_config import SIZES
from nlhf_jax.experiments.specs import JudgeExperiment


def make_experiment(config: ConfigDict, name: str, folder: Path) -> JudgeExperiment:
  """The experiment that a config describes; its stages are kept in `folder`.

  Raises:
    UserError: if a setting or the data cannot be used.
  """
  if config.policies:
    raise UserError('config.policies: this experiment trains judges alone; leave policies out.')
  if not config.sizes:
    raise UserError('config.sizes is empty; there is nothing to train.')
  sizes = {}
  for label, changes in config.sizes.items():
    unknown = sorted(set(changes) - set(SIZES))
    if unknown:
      raise UserError(f"config.sizes.{label}: '{unknown[0]}' is none of {', '.join(SIZES)}.")
    if changes and config.model.hf:
      raise UserError(
        f'config.sizes.{label}: config.model.hf has a size of its own; leave it empty.'
      )
    sized = copy.deepcopy(config)
    sized.model.update(changes)
    if not language_config.stages_of_judges(language_config.make_panel(sized)):
      sized.sft.steps = 0  # nothing goes on from there
    sizes[label] = language_config.make_experiment(sized, name, folder)
  experiment = JudgeExperiment(name, sizes, make_tests(config.tests))
  account = experiment.first.corpus.account
  if not all(account[split]['comparisons'] for split in ('train', 'held_out')):
    raise UserError(
      f"config.data.path='{config.data.path}' has too few comparisons: judges are tested on "
      'some, and the baselines learn from others; name another source beside it, as PATH,PATH.'
    )
  return experiment


def make_tests(section: ConfigDict) -> dict[str, list[Record]]:
  """Name of a source -> its comparisons, for all sources of the section.

  Raises:
    UserError: if one of them cannot be read, or has no comparisons.
  """
  try:
    return read_tests(section) if section.path else {}
  except UserError as error:
    # Who reads sources does not know for which section.
    raise UserError(str(error).replace('config.data.', 'config.tests.')) from None


def read_tests(section: ConfigDict) -> dict[str, list[Record]]:
  """The same of a section that names some."""
  paths = [path.strip() for path in section.path.split(',')]
  forms, splits = (for_each(field, section[field], len(paths)) for field in ('form', 'split'))
  tests = {}
  for path, form, split in zip(paths, forms, splits, strict=True):
    records = examples.records(path, form, split, skip_bad=section.skip_bad)
    compared = [record for record in records if record.left is not None]
    if not compared:
      raise UserError(f"config.tests.path: '{path}' has no comparisons to test on.")
    name = Path(path).name
    tests[name if name not in tests else path] = compared
  return tests
