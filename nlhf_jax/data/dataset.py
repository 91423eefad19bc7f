"""What a run learns from: demonstrations, comparisons and prompts, tokenised and split in two."""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from nlhf_jax.data import examples, sources, token_store, tokenizers
from nlhf_jax.data.batches import Examples
from nlhf_jax.data.examples import Entry, ExampleSource
from nlhf_jax.data.readers import Problem
from nlhf_jax.data.schemas import Example
from nlhf_jax.data.token_store import Refuse, Tokenised
from nlhf_jax.errors import UserError
from nlhf_jax.ranges import AtLeastOne, ProperFraction, Range
from nlhf_jax.structs import Comparison, Prompts
from nlhf_jax.tasks.summaries import generator

VocabularySize = Annotated[
  int, Range('at least 259: all bytes and the special tokens', lambda size: 259 <= size < math.inf)
]
KINDS = ('prompts', 'demonstrations', 'comparisons')
NOTHING = (-1, -1, -1, -1, -1, -1, 0.5)  # a record without texts


class Split(NamedTuple):
  """One part of the data; no prompt is in two parts. What is trained on is read as it is needed.

  `places` says where each of the comparisons was found: file and row, [n, 2].
  """

  prompts: Examples | Prompts
  demonstrations: Examples | Comparison
  comparisons: Examples | Comparison
  places: np.ndarray


class Corpus(NamedTuple):
  """A tokenizer, and the two splits. `embedded` says that the raters and their oracle are known.

  `account` says what became of the rows: how many there were, were dropped and were cut, and why.
  `entries()` reads them again, as texts.
  """

  tokenizer: Any
  train: Split
  held_out: Split
  embedded: bool
  account: dict[str, Any]
  entries: Callable[[], Iterator[Entry]]

  def texts(self, split: Split) -> list[Example]:
    """The comparisons of a split, as they were written."""
    wanted = {tuple(place) for place in split.places.tolist()}
    found = {
      (file, number): said for file, number, said in self.entries() if (file, number) in wanted
    }
    return [found[tuple(place)] for place in split.places.tolist()]


def make_synthetic_corpus(
  seed: int,
  posts: AtLeastOne,
  held_out: AtLeastOne,
  prompt_length: AtLeastOne,
  response_length: AtLeastOne,
  vocabulary: VocabularySize,
  pretrained: str,
  folder: Path,
) -> Corpus:
  """The embedded task: `posts` posts to train on and `held_out` others, one comparison each.

  Args:
    seed: of the texts and the votes.
    posts: to train on.
    held_out: posts for testing.
    prompt_length: most tokens in a post.
    response_length: most tokens in a summary.
    vocabulary: most tokens in the vocabulary of a tokenizer trained here.
    pretrained: whose tokenizer is loaded instead, if any: a folder, or a name on the hub.
    folder: where tokenised texts are kept.

  Raises:
    UserError: if a length is too short for the texts, or the tokenizer cannot be used.
  """

  def entries():
    records = itertools.islice(generator.examples(seed), posts + held_out)
    return ((0, number, record) for number, record in enumerate(records, start=1))

  what = {'source': 'synthetic', 'seed': seed, 'posts': posts + held_out}
  tokenizer, said = _kept(
    folder, what, entries, generator.vocabulary, vocabulary, pretrained, lambda *_: None
  )
  hint = '' if pretrained else ' (fewer with a larger config.data.vocabulary, down to one a word)'
  for field, length, texts in (
    ('prompt_length', prompt_length, said.prompts),
    ('response_length', response_length, said.responses),
  ):
    longest = texts.lengths(np.arange(len(texts.ends) - 1)).max()
    if longest > length:
      raise UserError(
        f'config.data.{field}={length} is too short; texts of the embedded task have up to '
        f'{longest} tokens{hint}; raise it.'
      )
  lengths = prompt_length, response_length
  tested = np.arange(posts + held_out) >= posts
  return _corpus(tokenizer, said, said.records, tested, lengths, entries, embedded=True)


def make_file_corpus(
  seed: int,
  path: str,
  form: str,
  split: str,
  part: str,
  skip_bad: bool,
  held_out: ProperFraction,
  prompt_length: AtLeastOne,
  response_length: AtLeastOne,
  vocabulary: VocabularySize,
  pretrained: str,
  folder: Path,
) -> Corpus:
  """A user's data. SFT imitates the demonstrations or, without any, the responses preferred.

  Args:
    seed: of the split in two.
    path: files, folders and names on the hub, as `sources.locate` has them, separated by commas.
    form: of the rows, a name in `forms.FORMS`; one for all sources, or one each.
    split: which of a source's own splits to read; one for all sources, or one each.
    part: which of some disjoint parts of the prompts to keep, as `1/3`.
    skip_bad: skip and count rows that cannot be used.
    held_out: the share of prompts kept for testing, with all that was said to them.
    prompt_length: most tokens in a prompt.
    response_length: most tokens in a response; longer ones are cut, and counted.
    vocabulary: most tokens in the vocabulary of a tokenizer trained here.
    pretrained: whose tokenizer is loaded instead, if any: a folder, or a name on the hub.
    folder: where tokenised texts are kept.

  Raises:
    UserError: if a source or a row of it cannot be used, there are fewer than two prompts, or the
      tokenizer cannot be used.
  """
  found = examples.locate(path, form, split)

  def refuse(file, number, problem, remedy):
    if not skip_bad:
      raise examples.unusable_row(
        examples.describe_place(found, file, number), str(problem), remedy
      )

  what = {
    'sources': sources.digest(reading.source for reading in found),
    'forms': [reading.form.__name__ for reading in found],
    'skip_bad': skip_bad,
  }
  entries = functools.partial(examples.read_entries, found)
  texts = functools.partial(_texts, entries, refuse)
  tokenizer, said = _kept(folder, what, entries, texts, vocabulary, pretrained, refuse)
  if not said.account['rows']:
    raise UserError(f'{path}: no rows found; write one JSON object a line, or give another file.')
  examples.print_skipped(path, said.account['dropped'])
  fit = _fitting(found, said, prompt_length, skip_bad)
  examples.print_skipped(path, fit.dropped)
  prompts = _part(said, fit.records, part)
  tested = _tested(path, prompts, held_out, seed)
  rows = fit.records[np.isin(fit.records['prompt'], prompts)]
  corpus = _corpus(
    tokenizer,
    said,
    rows,
    np.isin(rows['prompt'], tested),
    (prompt_length, response_length),
    entries,
    embedded=False,
  )
  corpus.account['dropped'].update(fit.dropped)
  if corpus.account['cut']:
    print(
      f'{path}: cut {corpus.account["cut"]} of {corpus.account["responses"]} responses to '
      f'config.data.response_length={response_length} tokens.'
    )
  return corpus


def _texts(entries: Callable[[], Iterator[Entry]], refuse: Refuse) -> Iterator[str]:
  """The texts of questions and their answers, to train a tokenizer on."""
  for file, number, said in entries():
    if isinstance(said, Problem):
      refuse(file, number, said, 'correct it')
    elif isinstance(said.prompt, str):
      yield ' '.join(filter(None, (said.prompt, said.left, said.right, said.demonstration)))


def _kept(
  folder: Path,
  what: Mapping[str, Any],
  entries: Callable[[], Iterator[Entry]],
  texts: Callable[[], Iterable[str]],
  vocabulary: int,
  pretrained: str,
  refuse: Refuse,
) -> tuple[Any, Tokenised]:
  """The tokenizer and the tokenised records, from `folder` if they were made before.

  They are found again by all that determines them: `what` says so of the records.
  """
  tokenizer = tokenizers.load(pretrained) if pretrained else None
  by = {'vocabulary': vocabulary} if tokenizer is None else tokenizers.settings(tokenizer)
  everything = json.dumps([what, by, _code()], sort_keys=True)
  name = hashlib.sha256(everything.encode()).hexdigest()[:10]
  place, own = folder / f'data-{name}', 'tokenizer.json'

  def write(draft):
    known = tokenizer
    if known is None:
      known = tokenizers.train(texts(), vocabulary)
      (draft / own).write_text(tokenizers.to_text(known))
    token_store.write(draft, entries(), known, refuse)

  token_store.write_once(place, write)
  if tokenizer is None:
    tokenizer = tokenizers.restore((place / own).read_text())
  return tokenizer, token_store.read(place)


@functools.cache
def _code() -> str:
  """A digest of the code that makes tokens of texts."""
  code = hashlib.sha256()
  for file in sorted(Path(__file__).parent.glob('*.py')):
    code.update(file.read_bytes())
  return code.hexdigest()


class _Fitting(NamedTuple):
  records: np.ndarray
  dropped: dict[str, int]


def _fitting(
  found: Sequence[ExampleSource], said: Tokenised, length: int, skip_bad: bool
) -> _Fitting:
  """The records whose prompts are short enough; unless others are skipped, all have to be."""
  lengths = said.prompts.lengths(said.records['prompt'])
  fits = lengths <= length
  setting = f'config.data.prompt_length={length}'
  if not (fits.all() or skip_bad):
    first = said.records[~fits][0]
    problem = (
      f"field 'prompt' has {lengths[~fits][0]} tokens and leaves no room for a response ({setting})"
    )
    where = examples.describe_place(found, int(first['file']), int(first['number']))
    raise examples.unusable_row(where, problem, 'shorten it, raise that length')
  reason = f"field 'prompt' leaves no room for a response ({setting} tokens)"
  long = int((~fits).sum())
  return _Fitting(said.records[fits], {reason: long} if long else {})


def _part(said: Tokenised, records: np.ndarray, part: str) -> np.ndarray:
  """The prompts of a part, in an order that is not that of the records.

  Raises:
    UserError: if `part` is not a number of so many.
  """
  number, _, count = (text.strip() for text in part.partition('/'))
  if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
    raise UserError(f"config.data.part='{part}' must be like 1/3, the first of three parts.")
  prompts = np.unique(records['prompt'])
  return prompts[np.argsort(said.ranks[prompts])][int(number) - 1 :: int(count)]


def _tested(path: str, prompts: np.ndarray, share: float, seed: int) -> np.ndarray:
  """A random share of the prompts: at least one, and not all."""
  if len(prompts) < 2:
    found = f'{len(prompts)} different prompt{"" if len(prompts) == 1 else "s"}'
    raise UserError(
      f'{path}: {found} found; add some, for at least two are needed: to train on and to test on.'
    )
  count = min(max(round(share * len(prompts)), 1), len(prompts) - 1)
  return prompts[np.random.default_rng(seed).permutation(len(prompts))[:count]]


def _corpus(
  tokenizer: Any,
  said: Tokenised,
  records: np.ndarray,
  tested: np.ndarray,
  lengths: tuple[int, int],
  entries: Callable[[], Iterator[Entry]],
  embedded: bool,
) -> Corpus:
  """The records in two splits: those of which `tested` says so are held out."""
  given = (records['demonstration'] >= 0).any()

  def examples(rows):
    compared = rows[rows['left'] >= 0]
    shown = rows['demonstration']
    if not given:
      preferred = np.where(rows['preference'] > 0.5, rows['left'], rows['right'])
      shown = np.where(rows['preference'] == 0.5, -1, preferred)
    alone = rows.copy()
    alone['left'], alone['right'] = shown, -1
    asked = alone[np.sort(np.unique(rows['prompt'], return_index=True)[1])]
    asked['left'] = -1
    make = functools.partial(_examples, tokenizer, said, lengths)
    return Split(
      make(asked, lambda batch: batch.prompts),
      make(alone[shown >= 0], lambda batch: batch._replace(right=None, payoff=None)),
      make(compared, lambda batch: batch),
      np.stack([compared['file'], compared['number']], axis=1),
    )

  train, held_out = examples(records[~tested]), examples(records[tested])
  counts = {
    name: {kind: len(part.lengths) for kind, part in zip(KINDS, split[:3], strict=True)}
    for name, split in (('train', train), ('held_out', held_out))
  }
  responses = np.concatenate([records[field] for field in token_store.TEXTS])
  responses = responses[responses >= 0]
  compared = records['preference'][records['left'] >= 0]
  account = said.account | counts
  account |= {
    'cut': int((said.responses.lengths(responses) > lengths[1]).sum()),
    'responses': len(responses),
    'ties': int((compared == 0.5).sum()),
    'graded': int(((compared > 0) & (compared < 1) & (compared != 0.5)).sum()),
  }
  held_out = Split(*(part.all() for part in held_out[:3]), held_out.places)
  return Corpus(tokenizer, train, held_out, embedded, account, entries)


def _examples(tokenizer, said: Tokenised, lengths, records: np.ndarray, of: Callable) -> Examples:
  """Records that are read and padded as they are needed; `of` takes what is wanted of each."""
  prompt_length, response_length = lengths
  sides = [said.responses.lengths(records[side]) for side in ('left', 'right')]
  needed = [
    said.prompts.lengths(records['prompt']),
    np.minimum(np.maximum(*sides), response_length),
  ]
  table = np.append(records, np.array([NOTHING], records.dtype))  # which is row -1

  def read(rows, widths):
    chosen = table[rows]
    prompts = said.prompts.take(chosen['prompt'], prompt_length)
    left, right = (said.responses.take(chosen[side], response_length) for side in ('left', 'right'))
    batch = Comparison(
      tokenizers.pad_prompts(tokenizer, prompts, widths[0]),
      tokenizers.pad_responses(tokenizer, left, widths[1]),
      tokenizers.pad_responses(tokenizer, right, widths[1]),
      np.float32(chosen['preference'] - 0.5)[:, None, None],
    )
    return of(batch)

  return Examples(np.stack(needed, axis=1), (prompt_length, response_length), read)
