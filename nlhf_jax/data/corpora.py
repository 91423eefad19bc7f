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
  """One part of the data; no prompt is in two parts.

  `comparisons` is None where the judgements are yet to be made, on responses of a policy.
  """

  prompts: Prompts
  demonstrations: Comparison
  comparisons: Comparison | None


class Corpus(NamedTuple):
  """A tokenizer, and the two splits. `embedded` says that the raters and their oracle are known."""

  tokenizer: Any
  train: Split
  held_out: Split
  embedded: bool


def make_synthetic(
  seed: int, posts: int, held_out: int, prompt_length: int, response_length: int, vocabulary: int
) -> Corpus:
  """The embedded task: `posts` posts to train on and `held_out` others, without comparisons."""
  stream = synthetic.examples(np.random.default_rng(seed))
  examples = list(itertools.islice(stream, posts + held_out))
  tokenizer = tokenizers.train((' '.join(example) for example in examples[:4096]), vocabulary)

  def split(part):
    ids = tokenizers.prompt_ids(tokenizer, [example.post for example in part])
    prompts = tokenizers.pad_prompts(tokenizer, ids, prompt_length)
    ids = tokenizers.response_ids(tokenizer, [example.summary for example in part])
    summaries = tokenizers.pad_responses(tokenizer, ids, response_length)
    return Split(prompts, Comparison(prompts, summaries), None)

  return Corpus(tokenizer, split(examples[:posts]), split(examples[posts:]), embedded=True)


def make_jsonl(
  seed: int,
  path: str,
  skip_bad: bool,
  held_out: float,
  prompt_length: int,
  response_length: int,
  vocabulary: int,
) -> Corpus:
  """A user's comparisons; SFT imitates the chosen responses.

  Args:
    seed: of the split.
    path: JSON lines of `{"prompt", "chosen", "rejected"}`.
    skip_bad: skip and count lines that cannot be used.
    held_out: the share of prompts kept for testing, with all their comparisons.
    prompt_length: most tokens in a prompt.
    response_length: most tokens in a response; longer ones are cut, and counted.
    vocabulary: most tokens in the vocabulary.

  Raises:
    UserError: if the file or a line of it cannot be used, or holds fewer than two prompts.
  """
  numbered = list(sources.read_jsonl(path, skip_bad))
  records = [record for _, record in numbered]
  if not records:
    raise UserError(f'{path}: no comparisons found; one JSON object a line is expected.')
  tokenizer = tokenizers.train((' '.join(record) for record in records), vocabulary)
  prompts = tokenizers.prompt_ids(tokenizer, [record.prompt for record in records])

  fits = [len(ids) <= prompt_length for ids in prompts]
  if not all(fits) and not skip_bad:
    first = fits.index(False)
    problem = (
      f"field 'prompt' has {len(prompts[first])} tokens and leaves no room for a response "
      f'(config.data.prompt_length is {prompt_length})'
    )
    raise sources.bad_line(path, numbered[first][0], problem)
  reason = f"field 'prompt' is longer than config.data.prompt_length={prompt_length} tokens"
  sources.report_skipped(path, Counter([reason] * fits.count(False)))
  records = [record for record, fit in zip(records, fits, strict=True) if fit]
  prompts = [ids for ids, fit in zip(prompts, fits, strict=True) if fit]

  unique = sorted({record.prompt for record in records})
  if len(unique) < 2:
    found = f'{len(unique)} different prompt{"" if len(unique) == 1 else "s"}'
    raise UserError(
      f'{path}: {found} found; at least two are needed, one to train on, one to test.'
    )
  np.random.default_rng(seed).shuffle(unique)
  tested = set(unique[: max(1, min(len(unique) - 1, round(held_out * len(unique))))])

  def responses(texts):
    ids = tokenizers.response_ids(tokenizer, texts)
    cut = sum(len(row) > response_length for row in ids)
    if cut:
      print(f'{path}: cut {cut} of {len(ids)} responses to {response_length} tokens.')
    rows = [row[:response_length] for row in ids]
    return tokenizers.pad_responses(tokenizer, rows, response_length)

  encoded = Comparison(
    tokenizers.pad_prompts(tokenizer, prompts, prompt_length),
    responses([record.chosen for record in records]),
    responses([record.rejected for record in records]),
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
