"""Reads the config of an experiment that trains judges and compares them."""

import copy
from pathlib import Path

from ml_collections import ConfigDict

from nlhf_jax.data import examples
from nlhf_jax.data.schemas import Example
from nlhf_jax.data.sources import one_per_source
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.judge_config import find_judges
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.language.stage_settings import stages_of_judges
from nlhf_jax.experiments.model_config import SIZES
from nlhf_jax.experiments.specs import JudgeExperiment


def make_experiment(config: ConfigDict, name: str, folder: Path) -> JudgeExperiment:
  """The experiment that a config describes; its stages are stored in `folder`.

  Raises:
    UserError: if a setting or the data cannot be used.
  """
  if config.policies:
    raise UserError('config.policies: this experiment trains only judges; leave policies out.')
  if config.held_apart:
    raise UserError(
      f"config.held_apart='{config.held_apart}': this experiment tests its judges on data that "
      'none of them reads; leave it empty.'
    )
  if not config.sizes:
    raise UserError('config.sizes is empty; name at least one size to train.')
  if find_judges(config).combined:
    raise UserError(
      f"config.judges='{config.judges}': combinations are for policies and tournaments; name the "
      'judges that they are made of.'
    )
  tests = make_tests(config.tests)  # before data are tokenised, which takes longer
  sizes = {}
  for label, changes in config.sizes.items():
    unknown = sorted(set(changes) - set(SIZES))
    if unknown:
      raise UserError(f"config.sizes.{label}: '{unknown[0]}' is none of {', '.join(SIZES)}.")
    if changes and config.model.hf:
      raise UserError(
        f'config.sizes.{label}: config.model.hf determines the size; leave the size empty.'
      )
    sized = copy.deepcopy(config)
    sized.model.update(changes)
    if not stages_of_judges(language_config.make_panel(sized)):
      sized.sft.steps = 0  # no judge is trained from the SFT policy
    sizes[label] = language_config.make_experiment(sized, name, folder)
  experiment = JudgeExperiment(name, sizes, tests)
  account = experiment.first.corpus.account
  if not all(account[split]['comparisons'] for split in ('train', 'held_out')):
    raise UserError(
      f"config.data.path='{config.data.path}' has too few comparisons: judges are tested on "
      'held-out ones, and the baselines are fitted on the others; name another source beside it, '
      'as PATH,PATH.'
    )
  return experiment


def make_tests(section: ConfigDict) -> dict[str, list[Example]]:
  """Name of a source -> its comparisons, for all sources of the section.

  Raises:
    UserError: if a source cannot be read, or has no comparisons.
  """
  try:
    return read_tests(section) if section.path else {}
  except UserError as error:
    # The messages of the reader name settings of the section `data`.
    raise UserError(str(error).replace('config.data.', 'config.tests.')) from None


def read_tests(section: ConfigDict) -> dict[str, list[Example]]:
  """Reads the sources that the section names in `path`."""
  paths = [path.strip() for path in section.path.split(',')]
  schemas, splits = (
    one_per_source(field, section[field], len(paths)) for field in ('schema', 'split')
  )
  tests = {}
  for path, schema, split in zip(paths, schemas, splits, strict=True):
    records = examples.read_examples(path, schema, split, skip_bad=section.skip_bad)
    comparisons = [record for record in records if record.right is not None]
    if not comparisons:
      raise UserError(f"config.tests.path: '{path}' has no comparisons to test on.")
    name = Path(path).name
    tests[name if name not in tests else path] = comparisons
  return tests
