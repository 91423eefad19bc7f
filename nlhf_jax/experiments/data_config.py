"""Reads the section `data` of a config, and checks that there are enough data."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from nlhf_jax.algorithms.algorithm import Algorithm, training_data
from nlhf_jax.data.dataset import Corpus, FileData, Oracle, make_file_corpus
from nlhf_jax.errors import UserError
from nlhf_jax.tasks import clarify_corpus
from nlhf_jax.tasks.summaries import generator
from nlhf_jax.tasks.summaries.corpus import SyntheticData, make_synthetic_corpus

# Kind of data -> its name in messages, where that is another.
NOUNS = {'unpaired': 'comparisons or unpaired responses'}

# Source -> the fields of its section of the config, and the function that makes its corpus.
SOURCES = {
  'synthetic': (SyntheticData, make_synthetic_corpus),
  'file': (FileData, make_file_corpus),
  'clarify': (SyntheticData, clarify_corpus.make_clarify_corpus),
}
ORACLES = {'synthetic': generator.preference, 'clarify': clarify_corpus.preference}


def find_oracle(config: ConfigDict) -> Oracle | None:
  """The preference that the data were sampled from, or None where it is unknown."""
  return ORACLES.get(config.data.source)


def make_corpus(config: ConfigDict, folder: Path) -> Corpus:
  """The corpus that `config.data` describes; tokenised texts are stored in `folder`.

  Raises:
    UserError: if a setting or the data cannot be used.
  """
  settings = config.data.to_dict()
  source = settings.pop('source')
  if source not in SOURCES or ('path' in settings) != (source == 'file'):
    raise UserError(
      f"config.data.source='{source}' does not fit the other fields of config.data; choose the "
      'source with the file, as --config=configs/nash_md.py:synthetic or :file.'
    )
  if source == 'file' and not settings['path']:
    raise UserError('config.data.path is empty; pass --config.data.path=FILE.jsonl.')
  section, make = SOURCES[source]
  return make(section(**settings), config.seed, config.model.hf, folder)


def print_clamped(config: ConfigDict, corpus: Corpus) -> None:
  """Prints that there are fewer held-out prompts than the config wants, if so."""
  held_out = len(corpus.held_out.prompts.tokens)
  if config.tournament.prompts > held_out:
    print(
      f'config.tournament.prompts={config.tournament.prompts}: only {held_out} prompts are held '
      'out, and the tournament has these.'
    )


def check_enough(config: ConfigDict, corpus: Corpus, learners: Mapping[str, Algorithm]) -> None:
  """Checks that every algorithm has data to train and to test on.

  Args:
    config: the experiment's config.
    corpus: its data.
    learners: field of the config -> the algorithm that it trains with.

  Raises:
    UserError: names the first field without data to train or to test on.
  """
  for field, algorithm in learners.items():
    kind = training_data(algorithm)
    if not all(corpus.account[split][kind] for split in ('train', 'held_out')):
      raise UserError(
        f"config.data.path='{config.data.path}' has too few {NOUNS.get(kind, kind)} for "
        f'config.{field}: at least one is needed to train on and another to test on; add another '
        'source, as PATH,PATH'
        f'{_other_remedy(field)}.'
      )


def _other_remedy(field: str) -> str:
  """An alternative to adding data for a field of the config, for the error message."""
  if field == 'sft':
    return ', or start from the model without SFT, with --config.sft.steps=0'
  if field.startswith('policies.'):
    return ''
  return ', or use judges that are not trained here (config.judges, and the judge of each policy)'
