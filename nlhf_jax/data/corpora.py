"""What a run learns from: demonstrations, comparisons and prompts, tokenised and split in two."""

import itertools
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from nlhf_jax.data import sources, synthetic, tokenizers
from nlhf_jax.data.batches import take
from nlhf_jax.errors import UserError
from nlhf_jax.structs import Comparison, Prompts


class Split(NamedTuple):
  """One part of the data; no prompt is in two parts."""

  prompts: Prompts
  demonstrations: Comparison
  comparisons: Comparison


class Corpus(NamedTuple):
  """A tokenizer, and the two splits. `embedded` says that the raters and their oracle are known."""

  tokenizer: Any
  train: Split
  held_out: Split
  embedded: bool


def make_synthetic(
  seed: int,
  posts: int,
  held_out: int,
  prompt_length: int,
  response_length: int,
  vocabulary: int,
  pretrained: str,
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

  Raises:
    UserError: if a length is too short for the texts, or the tokenizer cannot be used.
  """
  examples = list(itertools.islice(synthetic.examples(seed), posts + held_out))
  tokenizer = _tokenizer(synthetic.vocabulary(), vocabulary, pretrained)
  hint = '' if pretrained else ' (fewer with a larger config.data.vocabulary, down to one a word)'
  texts = synthetic.Example(*zip(*examples, strict=True))
  share = synthetic.votes(np.random.default_rng(seed), texts.post, texts.left, texts.right)

  def responses(column):
    ids = tokenizers.response_ids(tokenizer, column)
    _must_fit(ids, 'response_length', response_length, hint)
    return tokenizers.pad_responses(tokenizer, ids, response_length)

  ids = tokenizers.prompt_ids(tokenizer, texts.post)
  _must_fit(ids, 'prompt_length', prompt_length, hint)
  prompts = tokenizers.pad_prompts(tokenizer, ids, prompt_length)
  whole = Split(
    prompts,
    Comparison(prompts, responses(texts.summary)),
    Comparison(
      prompts,
      responses(texts.left),
      responses(texts.right),
      np.float32(share - 0.5)[:, None, None],
    ),
  )
  train, tested = np.split(np.arange(posts + held_out), [posts])
  return Corpus(tokenizer, take(whole, train), take(whole, tested), embedded=True)


def make_jsonl(
  seed: int,
  path: str,
  skip_bad: bool,
  held_out: float,
  prompt_length: int,
  response_length: int,
  vocabulary: int,
  pretrained: str,
) -> Corpus:
  """A user's comparisons; SFT imitates the chosen responses.

  Args:
    seed: of the split.
    path: JSON lines of `{"prompt", "chosen", "rejected"}`, as `sources.parse` has them.
    skip_bad: skip and count lines that cannot be used.
    held_out: the share of prompts kept for testing, with all their comparisons.
    prompt_length: most tokens in a prompt.
    response_length: most tokens in a response; longer ones are cut, and counted.
    vocabulary: most tokens in the vocabulary of a tokenizer trained here.
    pretrained: whose tokenizer is loaded instead, if any: a folder, or a name on the hub.

  Raises:
    UserError: if the file or a line of it cannot be used, or holds fewer than two prompts, or the
      tokenizer cannot be used.
  """
  numbered = list(sources.read_jsonl(path, skip_bad))
  if not numbered:
    raise UserError(
      f'{path}: no comparisons found; write one JSON object a line, with the fields '
      f'{", ".join(sources.FIELDS)}.'
    )
  questions = (record for _, record in numbered if isinstance(record.prompt, str))
  tokenizer = _tokenizer(map(' '.join, questions), vocabulary, pretrained)
  numbered, prompts = _encoded(path, numbered, tokenizer, skip_bad)
  fits = _fits(path, numbered, prompts, prompt_length, skip_bad)
  prompts = list(itertools.compress(prompts, fits))
  records = [record for _, record in itertools.compress(numbered, fits)]
  tested = _tested(path, {record.prompt for record in records}, held_out, seed)

  def responses(field):
    ids = tokenizers.response_ids(tokenizer, [getattr(record, field) for record in records])
    cut = sum(len(row) > response_length for row in ids)
    if cut:
      length = f'config.data.response_length={response_length}'
      print(f"{path}: cut {cut} of {len(ids)} texts of field '{field}' to {length} tokens.")
    rows = [row[:response_length] for row in ids]
    return tokenizers.pad_responses(tokenizer, rows, response_length)

  encoded = Comparison(
    tokenizers.pad_prompts(tokenizer, prompts, prompt_length),
    responses('chosen'),
    responses('rejected'),
    np.full((len(records), 1, 1), 0.5, np.float32),
  )

  def split(wanted):
    rows = [i for i, record in enumerate(records) if wanted(record.prompt)]
    first_of = {records[i].prompt: i for i in reversed(rows)}
    part = take(encoded, rows)
    return Split(
      take(encoded.prompts, sorted(first_of.values())),
      part._replace(right=None, payoff=None),
      part,
    )

  train = split(lambda prompt: prompt not in tested)
  return Corpus(tokenizer, train, split(tested.__contains__), embedded=False)


def _tokenizer(texts, vocabulary, pretrained):
  if pretrained:
    return tokenizers.load(pretrained)
  return tokenizers.train(texts, vocabulary)


def _encoded(path, numbered, tokenizer, skip_bad):
  """The numbered records whose prompts the tokenizer can write, and the token ids of these."""
  encoded, skipped = [], Counter()
  for number, record in numbered:
    prompt = record.prompt
    if not isinstance(prompt, str):
      prompt = [message._asdict() for message in prompt]
    try:
      encoded.append(((number, record), *tokenizers.prompt_ids(tokenizer, [prompt])))
    except sources.Problem as problem:
      if not skip_bad:
        remedy = 'change it, give a model whose chat template takes it by config.model.hf'
        raise sources.bad_line(path, number, str(problem), remedy) from None
      skipped[problem.reason] += 1
  sources.report_skipped(path, skipped)
  return [kept for kept, _ in encoded], [ids for _, ids in encoded]


def _fits(path, numbered, prompts, length, skip_bad) -> list[bool]:
  """Which prompts are short enough; unless those that are not are skipped, all have to be."""
  fits = [len(ids) <= length for ids in prompts]
  setting = f'config.data.prompt_length={length}'
  if not (all(fits) or skip_bad):
    first = fits.index(False)
    problem = (
      f"field 'prompt' has {len(prompts[first])} tokens and leaves no room for a response "
      f'({setting})'
    )
    raise sources.bad_line(path, numbered[first][0], problem, 'shorten it, raise that length')
  reason = f"field 'prompt' leaves no room for a response ({setting} tokens)"
  sources.report_skipped(path, Counter([reason] * fits.count(False)))
  return fits


def _tested(path, prompts: set[sources.Prompt], share, seed) -> set[sources.Prompt]:
  """A random share of the prompts: at least one, and not all."""
  if len(prompts) < 2:
    found = f'{len(prompts)} different prompt{"" if len(prompts) == 1 else "s"}'
    raise UserError(
      f'{path}: {found} found; add some, for at least two are needed: to train on and to test on.'
    )
  count = min(max(round(share * len(prompts)), 1), len(prompts) - 1)
  ordered = sorted(prompts, key=sources.messages)  # a set has another order in every process
  return {ordered[row] for row in np.random.default_rng(seed).permutation(len(ordered))[:count]}


def _must_fit(rows, field, length, hint):
  longest = max(map(len, rows))
  if longest > length:
    raise UserError(
      f'config.data.{field}={length} is too short; texts of the embedded task have up to {longest} '
      f'tokens{hint}; raise it.'
    )
