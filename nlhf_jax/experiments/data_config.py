"""The data of an experiment, and whether there is enough of it."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from nlhf_jax.algorithms.algorithm import Algorithm, training_data
from nlhf_jax.data import dataset
from nlhf_jax.data.dataset import Corpus
from nlhf_jax.errors import UserError


def make_corpus(config: ConfigDict, folder: Path) -> Corpus:
  """The data, by `config.data.source`; what is tokenised is kept in `folder`.

  Raises:
    UserError: if a setting or the data cannot be used.
  """
  settings = config.data.to_dict()
  source = settings.pop('source')
  makers = {'synthetic': dataset.make_synthetic_corpus, 'file': dataset.make_file_corpus}
  if source not in makers or ('path' in settings) != (source == 'file'):
    raise UserError(
      f"config.data.source='{source}' does not fit the other fields of config.data; choose the "
      f'source with the file, as --config=configs/nash_md.py:{" or :".join(makers)}.'
    )
  if source == 'file' and not settings['path']:
    raise UserError('config.data.path is empty; pass --config.data.path=FILE.jsonl.')
  return makers[source](config.seed, pretrained=config.model.hf, folder=folder, **settings)


def check_enough(config: ConfigDict, corpus: Corpus, learners: Mapping[str, Algorithm]) -> None:
  """Refuses data that lack what is learned from.

  Args:
    config: of the experiment.
    corpus: its data.
    learners: field of the config -> the algorithm that learns there.

  Raises:
    UserError: that names the first field with nothing to learn from, or to test on.
  """
  for field, algorithm in learners.items():
    kind = training_data(algorithm)
    if not all(corpus.account[split][kind] for split in ('train', 'held_out')):
      raise UserError(
        f"config.data.path='{config.data.path}' has too few {kind} for config.{field}: some have "
        'to be trained on and others tested on; name another source beside it, as PATH,PATH'
        f'{remedy(field)}.'
      )


def remedy(field: str) -> str:
  """What else may be done about data that this part of the config lacks."""
  if field == 'sft':
    return ', or start from the model as it is, with --config.sft.steps=0'
  if field.startswith('policies.'):
    return ''
  return ', or ask judges that are not trained here (config.judges, and that of each policy)'
