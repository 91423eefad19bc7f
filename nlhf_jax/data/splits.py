"""The splits of a corpus: prompts, demonstrations, comparisons and unpaired responses as tokens."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from nlhf_jax.data import tokenizers
from nlhf_jax.data.batches import Examples
from nlhf_jax.data.token_store import Tokenised
from nlhf_jax.structs import Comparison, Prompts

KINDS = ('prompts', 'demonstrations', 'comparisons', 'unpaired')
EMPTY = (-1, -1, -1, -1, -1, -1, 0.5)  # a record without texts


class Split(NamedTuple):
  """One part of the data; no prompt is in two parts.

  The training split is read when it is needed, as `Examples`; the test split is in memory.
  `unpaired` has single responses with payoff 1/2 (good) or -1/2 (bad) and
  no right side, into which comparisons are split; in data without any, it has the comparisons.
  `places` has the file and the row of each comparison, [n, 2].
  """

  prompts: Examples | Prompts
  demonstrations: Examples | Comparison
  comparisons: Examples | Comparison
  unpaired: Examples | Comparison
  places: np.ndarray


def split_records(
  tokenizer: Any,
  tokenised: Tokenised,
  lengths: tuple[int, int],
  demonstrated: bool,
  loose: bool,
  records: np.ndarray,
) -> Split:
  """A split of some records.

  Args:
    tokenizer: of the tokens.
    tokenised: the texts of the records.
    lengths: maximum numbers of tokens in a prompt and in a response.
    demonstrated: whether the data have demonstrations; otherwise preferred or good responses serve
      as such.
    loose: whether the data have unpaired responses.
    records: [n], those of the split.
  """
  compared = records[(records['left'] >= 0) & (records['right'] >= 0)]
  shown = records['demonstration']
  if not demonstrated:
    preferred = np.where(records['preference'] > 0.5, records['left'], records['right'])
    shown = np.where(records['preference'] == 0.5, -1, preferred)
  demonstrations = records.copy()
  demonstrations['left'], demonstrations['right'] = shown, -1
  prompts = demonstrations[np.sort(np.unique(records['prompt'], return_index=True)[1])]
  prompts['left'] = -1
  make = functools.partial(_examples, tokenizer, tokenised, lengths)
  comparisons = make(compared, lambda batch: batch)
  single = records[(records['left'] >= 0) & (records['right'] < 0)]
  single = np.concatenate([single, *_sides(compared)])
  return Split(
    make(prompts, lambda batch: batch.prompts),
    make(demonstrations[shown >= 0], lambda batch: batch._replace(right=None, payoff=None)),
    comparisons,
    make(single, lambda batch: batch._replace(right=None)) if loose else comparisons,
    np.stack([compared['file'], compared['number']], axis=1),
  )


def _sides(compared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Both responses of comparisons as unpaired ones, good by the probability that each wins."""
  left, right = compared.copy(), compared.copy()
  right['left'], right['preference'] = compared['right'], 1 - compared['preference']
  left['right'] = right['right'] = -1
  return left, right


def _examples(
  tokenizer: Any,
  tokenised: Tokenised,
  lengths: tuple[int, int],
  records: np.ndarray,
  select: Callable[[Comparison], Comparison | Prompts],
) -> Examples:
  """Records that are read and padded when they are needed; `select` takes a part of each batch."""
  prompt_length, response_length = lengths
  sides = [tokenised.responses.lengths(records[side]) for side in ('left', 'right')]
  needed = [
    tokenised.prompts.lengths(records['prompt']),
    np.minimum(np.maximum(*sides), response_length),
  ]
  table = np.append(records, np.array([EMPTY], records.dtype))  # row -1 is empty

  def read(rows, widths):
    chosen = table[rows]
    prompts = tokenised.prompts.take(chosen['prompt'], prompt_length)
    left, right = (
      tokenised.responses.take(chosen[side], response_length) for side in ('left', 'right')
    )
    batch = Comparison(
      tokenizers.pad_prompts(tokenizer, prompts, widths[0]),
      tokenizers.pad_responses(tokenizer, left, widths[1]),
      tokenizers.pad_responses(tokenizer, right, widths[1]),
      np.float32(chosen['preference'] - 0.5)[:, None, None],
    )
    return select(batch)

  return Examples(np.stack(needed, axis=1), (prompt_length, response_length), read)
