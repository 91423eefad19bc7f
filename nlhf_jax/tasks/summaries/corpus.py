"""The embedded task as a corpus, with its oracle and its annotator."""

import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nlhf_jax.data import dataset
from nlhf_jax.data.dataset import Annotator, Corpus, VocabularySize
from nlhf_jax.errors import UserError
from nlhf_jax.ranges import AtLeastOne
from nlhf_jax.tasks.summaries import generator, styles

ANNOTATOR = Annotator(
  styles.perfect_by_style, styles.annotate, styles.summarise, styles.weakest_edge
)


class SyntheticData(NamedTuple):
  """The section `data` of a config whose source is an embedded task.

  Attributes:
    posts: number of posts to train on.
    held_out: number of other posts, for testing.
    prompt_length: most tokens in a post.
    response_length: most tokens in a response, or in a turn of a conversation.
    vocabulary: most tokens in the vocabulary of a tokenizer trained here.
  """

  posts: AtLeastOne
  held_out: AtLeastOne
  prompt_length: AtLeastOne
  response_length: AtLeastOne
  vocabulary: VocabularySize


def make_synthetic_corpus(data: SyntheticData, seed: int, pretrained: str, folder: Path) -> Corpus:
  """The embedded task, with one comparison for each post.

  Args:
    data: how many posts, and how long texts may be.
    seed: seed of the texts and the votes.
    pretrained: model whose tokenizer is loaded instead of training one, if any: a folder, or a name
      on the hub.
    folder: where tokenised texts are stored.

  Raises:
    UserError: if a length is too short for the texts, or the tokenizer cannot be used.
  """

  def entries():
    records = itertools.islice(generator.examples(seed), data.posts + data.held_out)
    return ((0, number, record) for number, record in enumerate(records, start=1))

  what = {
    'source': 'synthetic',
    'seed': seed,
    'posts': data.posts + data.held_out,
    'code': dataset.code_digest(Path(__file__).parent),
  }
  tokenizer, tokenised = dataset.tokenise(
    folder, what, entries, generator.vocabulary, data.vocabulary, pretrained, lambda *_: None
  )
  hint = '' if pretrained else ' (fewer with a larger config.data.vocabulary: at least one a word)'
  for field, length, texts in (
    ('prompt_length', data.prompt_length, tokenised.prompts),
    ('response_length', data.response_length, tokenised.responses),
  ):
    most = texts.lengths(np.arange(len(texts.ends) - 1)).max()
    if most > length:
      raise UserError(
        f'config.data.{field}={length} is too short; texts of the embedded task have up to '
        f'{most} tokens{hint}; raise it.'
      )
  lengths = data.prompt_length, data.response_length
  tested = np.arange(data.posts + data.held_out) >= data.posts
  corpus = dataset.make_splits(tokenizer, tokenised, tokenised.records, tested, lengths, entries)
  return corpus._replace(oracle=generator.preference, annotator=ANNOTATOR)
