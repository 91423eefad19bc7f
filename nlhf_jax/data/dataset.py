"""Corpora: demonstrations, comparisons and prompts, tokenised and split into training and test."""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from nlhf_jax.data import examples, sources, token_store, tokenizers
from nlhf_jax.data.chat_templates import SPACED
from nlhf_jax.data.examples import Entry, ExampleSource
from nlhf_jax.data.readers import Problem
from nlhf_jax.data.schemas import Example
from nlhf_jax.data.splits import KINDS, Split, split_records
from nlhf_jax.data.token_store import Refuse, Tokenised
from nlhf_jax.errors import UserError
from nlhf_jax.ranges import AtLeastOne, ProperFraction, Range
from nlhf_jax.storage.texts import printable

VocabularySize = Annotated[
  int, Range('at least 259: all bytes and the special tokens', lambda size: 259 <= size < math.inf)
]

# (prompts, left, right) -> the true P(left > right) of n pairs of texts, [n].
Oracle = Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray]


class Annotator(NamedTuple):
  """Functions of an embedded task that assess responses, beyond its oracle.

  Its responses have K styles, numbered so that among equally good ones each style beats the next
  and the last beats the first.

  Attributes:
    perfect_responses: prompts -> for each style, a perfect response to each prompt.
    annotate: (a record of the tournament, another response of each policy to the same prompt) ->
      entries for that record.
    summarise: annotated records -> their summary in the results.
    weakest_edge: P(row beats column) of the styles, [K, K] -> the least probability along the
      cycle; there is a cycle if it is above 1/2.
  """

  perfect_responses: Callable[[Sequence[str]], Sequence[Sequence[str]]]
  annotate: Callable[[Mapping, Mapping[str, str]], dict]
  summarise: Callable[[Sequence[Mapping]], dict]
  weakest_edge: Callable[[Sequence[Sequence[float]]], float]


class Corpus(NamedTuple):
  """A tokenizer, and the two splits.

  `account` counts the rows that were read, cut, and dropped, by reason. `entries()` reads the rows
  again, as texts. An embedded task also has an `oracle`, the preference that its comparisons were
  sampled from, and an `annotator` of responses, or a function `measure`: records of the tournament
  -> name -> policy -> number.
  """

  tokenizer: Any
  train: Split
  held_out: Split
  account: dict[str, Any]
  entries: Callable[[], Iterator[Entry]]
  oracle: Oracle | None = None
  annotator: Annotator | None = None
  measure: Callable[[Sequence[Mapping]], dict[str, dict[str, float]]] | None = None

  def read_comparisons(self, split: Split) -> list[Example]:
    """The comparisons of a split as texts, in its order."""
    places = [tuple(place) for place in split.places.tolist()]
    wanted = set(places)
    found = {
      (file, number): example
      for file, number, example in self.entries()
      if (file, number) in wanted
    }
    return [found[place] for place in places]


class FileData(NamedTuple):
  """The section `data` of a config whose source is `file`.

  Attributes:
    path: files, folders and names on the hub, as `sources.locate` takes them, separated by commas.
    schema: of the rows, a name in `schemas.SCHEMAS`; one for all sources, or one for each.
    split: which of a source's own splits to read; one for all sources, or one for each.
    part: which of some disjoint parts of the training prompts to use, as `1/3`; all parts have the
      same held-out prompts.
    skip_bad: skip and count rows that cannot be used.
    held_out: share of the prompts kept for testing, with all their responses.
    prompt_length: maximum number of tokens in a prompt.
    response_length: maximum number of tokens in a response; longer ones are cut and counted.
    vocabulary: maximum number of tokens of a tokenizer trained here.
  """

  path: str
  schema: str
  split: str
  part: str
  skip_bad: bool
  held_out: ProperFraction
  prompt_length: AtLeastOne
  response_length: AtLeastOne
  vocabulary: VocabularySize


def make_file_corpus(data: FileData, seed: int, pretrained: str, folder: Path) -> Corpus:
  """The user's data. SFT imitates the demonstrations or, without any, the preferred responses.

  Args:
    data: which data.
    seed: seed of the split into training and test.
    pretrained: model whose tokenizer is loaded instead of training one, if any: a folder, or a name
      on the hub.
    folder: where tokenised texts are stored.

  Raises:
    UserError: if a source or a row of it cannot be used, there are fewer than two prompts, or the
      tokenizer cannot be used.
  """
  located = examples.locate(data.path, data.schema, data.split)

  def refuse(file, number, problem, remedy):
    if not data.skip_bad:
      where = examples.describe_place(located, file, number)
      hint = examples.suggest_schema(located, file, number, problem)
      raise examples.unusable_row(where, f'{problem}{hint}', remedy)

  what = {
    'sources': sources.digest(source.source for source in located),
    'schemas': [source.schema.__name__ for source in located],
    'skip_bad': data.skip_bad,
  }
  entries = functools.partial(examples.read_entries, located)
  texts = functools.partial(_texts, entries, refuse)
  tokenizer, tokenised = tokenise(folder, what, entries, texts, data.vocabulary, pretrained, refuse)
  if not tokenised.account['rows']:
    raise UserError(
      f'{data.path}: no rows found; write one JSON object per line, or give another file.'
    )
  examples.print_skipped(data.path, tokenised.account['dropped'])
  if pretrained:
    _print_spelled(data.path, tokenised.account)
  fit = _select_fitting(located, tokenised, data.prompt_length, data.skip_bad)
  fit = _drop_equal(tokenised, fit, data.response_length)
  examples.print_skipped(data.path, fit.dropped)
  prompts = _order_prompts(tokenised, fit.records)
  tested = _select_tested(data.path, prompts, data.held_out, seed)
  trained = _select_part(prompts[~np.isin(prompts, tested)], data.part)
  rows = fit.records[np.isin(fit.records['prompt'], np.concatenate([trained, tested]))]
  corpus = make_splits(
    tokenizer,
    tokenised,
    rows,
    np.isin(rows['prompt'], tested),
    (data.prompt_length, data.response_length),
    entries,
  )
  corpus.account['dropped'].update(fit.dropped)
  if corpus.account['cut']:
    print(
      f'{printable(data.path)}: cut {corpus.account["cut"]} of {corpus.account["responses"]} '
      f'responses to config.data.response_length={data.response_length} tokens.'
    )
  return corpus


def _texts(entries: Callable[[], Iterator[Entry]], refuse: Refuse) -> Iterator[str]:
  """Yields the texts of questions and their answers, to train a tokenizer on."""
  for file, number, example in entries():
    if isinstance(example, Problem):
      refuse(file, number, example, 'correct it')
    elif isinstance(example.prompt, str):
      texts = (example.prompt, example.left, example.right, example.demonstration)
      yield ' '.join(filter(None, (*texts, *example.replies)))


def tokenise(
  folder: Path,
  what: Mapping[str, Any],
  entries: Callable[[], Iterator[Entry]],
  texts: Callable[[], Iterable[str]],
  vocabulary: int,
  pretrained: str,
  refuse: Refuse,
  template: str = SPACED,
) -> tuple[Any, Tokenised]:
  """The tokenizer and the tokenised examples, read from `folder` if they are stored there.

  Their folder is named after a digest of everything that determines them.

  Args:
    folder: where they are stored.
    what: everything that determines the entries.
    entries: reads the examples.
    texts: reads the texts that a tokenizer is trained on.
    vocabulary: maximum number of tokens of a tokenizer trained here.
    pretrained: model whose tokenizer is loaded instead, if any.
    refuse: as in `token_store.write`.
    template: the chat template of a tokenizer trained here.
  """
  tokenizer = tokenizers.load(pretrained) if pretrained else None
  settings = {'vocabulary': vocabulary} if tokenizer is None else tokenizers.settings(tokenizer)
  everything = json.dumps([what, settings, code_digest(Path(__file__).parent)], sort_keys=True)
  name = hashlib.sha256(everything.encode()).hexdigest()[:10]
  store, file = folder / f'data-{name}', 'tokenizer.json'

  def write(draft):
    used = tokenizer
    if used is None:
      used = tokenizers.train(texts(), vocabulary, template)
      (draft / file).write_text(tokenizers.to_text(used))
    token_store.write(draft, entries(), used, refuse)

  token_store.write_once(store, write)
  if tokenizer is None:
    tokenizer = tokenizers.restore((store / file).read_text(), template)
  return tokenizer, token_store.read(store)


@functools.cache
def code_digest(folder: Path) -> str:
  """A digest of the Python files of a folder."""
  code = hashlib.sha256()
  for file in sorted(folder.glob('*.py')):
    code.update(file.read_bytes())
  return code.hexdigest()


class _Fitting(NamedTuple):
  records: np.ndarray
  dropped: dict[str, int]


def _select_fitting(
  located: Sequence[ExampleSource], tokenised: Tokenised, length: int, skip_bad: bool
) -> _Fitting:
  """The records whose prompts are short enough; others are an error unless they are skipped."""
  lengths = tokenised.prompts.lengths(tokenised.records['prompt'])
  fits = lengths <= length
  setting = f'config.data.prompt_length={length}'
  if not (fits.all() or skip_bad):
    first = tokenised.records[~fits][0]
    problem = (
      f"field 'prompt' has {lengths[~fits][0]} tokens and leaves no room for a response ({setting})"
    )
    where = examples.describe_place(located, int(first['file']), int(first['number']))
    raise examples.unusable_row(where, problem, 'shorten it, raise that length')
  reason = f"field 'prompt' leaves no room for a response ({setting} tokens)"
  long = int((~fits).sum())
  return _Fitting(tokenised.records[fits], {reason: long} if long else {})


def _drop_equal(tokenised: Tokenised, fit: _Fitting, length: int) -> _Fitting:
  """Drops comparisons whose responses are the same once they are cut to `length` tokens."""
  records = fit.records
  cut = np.ones(len(records), bool)
  for side in ('left', 'right'):
    cut &= tokenised.responses.lengths(records[side]) > length
  rows = np.flatnonzero(cut)
  sides = [tokenised.responses.take(records[side][rows], length) for side in ('left', 'right')]
  equal = rows[[np.array_equal(*pair) for pair in zip(*sides, strict=True)]]
  if not len(equal):
    return fit
  reason = f'both responses begin with the same config.data.response_length={length} tokens'
  return _Fitting(np.delete(records, equal), fit.dropped | {reason: len(equal)})


def _print_spelled(path: str, account: Mapping[str, Any]) -> None:
  """Says that texts spell special tokens or parts of the template, as if it was applied to them."""
  if spelled := account['spelled']:
    parts = ', '.join(map(ascii, sorted(spelled, key=lambda part: (-spelled[part], part))[:4]))
    print(
      f'{printable(path)}: {max(spelled.values())} of {account["rows"]} rows spell parts of the '
      f'chat template, as {parts}, which are learned as plain text; if a template was applied to '
      'them, give the texts without it: it is applied here.'
    )


def _order_prompts(tokenised: Tokenised, records: np.ndarray) -> np.ndarray:
  """The different prompts, in an order that does not depend on that of the records."""
  prompts = np.unique(records['prompt'])
  return prompts[np.argsort(tokenised.ranks[prompts])]


def _select_part(prompts: np.ndarray, part: str) -> np.ndarray:
  """The prompts of a part.

  Raises:
    UserError: if `part` is not like 1/3, or there are fewer prompts than parts.
  """
  number, count = parse_part(part)
  if len(prompts) < count:
    raise UserError(
      f"config.data.part='{part}': only {len(prompts)} prompts are there to train on; use fewer "
      'parts.'
    )
  return prompts[number - 1 :: count]


def parse_part(part: str) -> tuple[int, int]:
  """Which part, and of how many, from a text like 1/3. Part k of n is parts k and k + n of 2 n.

  Raises:
    UserError: if the text is not like that.
  """
  number, _, count = (text.strip() for text in part.partition('/'))
  if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
    raise UserError(f"config.data.part='{part}' must be like 1/3, the first of three parts.")
  return int(number), int(count)


def _select_tested(path: str, prompts: np.ndarray, share: float, seed: int) -> np.ndarray:
  """A random share of the prompts for testing: at least one, and not all."""
  if len(prompts) < 2:
    found = f'{len(prompts)} different prompt{"" if len(prompts) == 1 else "s"}'
    raise UserError(
      f'{path}: {found} found; add some: at least two are needed, one to train on and one to test '
      'on.'
    )
  count = min(max(round(share * len(prompts)), 1), len(prompts) - 1)
  return prompts[np.random.default_rng(seed).permutation(len(prompts))[:count]]


def make_splits(
  tokenizer: Any,
  tokenised: Tokenised,
  records: np.ndarray,
  tested: np.ndarray,
  lengths: tuple[int, int],
  entries: Callable[[], Iterator[Entry]],
) -> Corpus:
  """A corpus of some records, those with `tested` in its test split.

  Args:
    tokenizer: of the tokens.
    tokenised: the texts of the records.
    records: [n], those to use.
    tested: [n], which of them are for testing.
    lengths: maximum numbers of tokens in a prompt and in a response.
    entries: reads the examples again, as texts.
  """
  demonstrated = bool((records['demonstration'] >= 0).any())
  loose = bool(((records['left'] >= 0) & (records['right'] < 0)).any())
  make = functools.partial(split_records, tokenizer, tokenised, lengths, demonstrated, loose)
  train, held_out = make(records[~tested]), make(records[tested])
  responses = np.concatenate([records[field] for field in token_store.TEXTS])
  responses = responses[responses >= 0]
  preferences = records['preference'][records['left'] >= 0]
  account = tokenised.account | {
    name: {kind: len(part.lengths) for kind, part in zip(KINDS, split, strict=False)}
    for name, split in (('train', train), ('held_out', held_out))
  }
  account |= {
    'cut': int((tokenised.responses.lengths(responses) > lengths[1]).sum()),
    'responses': len(responses),
    'ties': int((preferences == 0.5).sum()),
    'graded': int(((preferences > 0) & (preferences < 1) & (preferences != 0.5)).sum()),
  }
  whole = [part.all() for part in held_out[:3]]
  paired = held_out.unpaired is held_out.comparisons
  held_out = Split(*whole, whole[2] if paired else held_out.unpaired.all(), held_out.places)
  return Corpus(tokenizer, train, held_out, account, entries)
