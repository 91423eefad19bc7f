"""PairRM's computations: from texts to logits of pairs, and to a judge.

The logit of a pair in one order is the raw output of the ranker, neither antisymmetric nor
transitive. Source and lengths: LLM-Blender (arXiv 2306.02561) and its port to `transformers`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers
from jaxtyping import Bool, Float, Int
from scipy import special

from nlhf_jax import distributed
from nlhf_jax.errors import UserError, first_line
from nlhf_jax.judges.judge import Judge, TextPreference, judge_from_texts
from nlhf_jax.models import sharding
from nlhf_jax.models.pairrm_encoder import Lengths, Ranker
from nlhf_jax.storage.texts import clean_text
from nlhf_jax.structs import Params

# In the order in which they extend the vocabulary of DeBERTa-v3.
PREFIXES = ('<|source|>', '<|candidate1|>', '<|candidate2|>', '<|candidate|>')
START, STOP, UNKNOWN = '[CLS]', '[SEP]', '[UNK]'
MIN_LENGTH = 32  # tokens; shorter rows are padded to it

# (prompts, first responses, second responses) -> logits that the first are better, [n].
Score = Callable[[Sequence[str], Sequence[str], Sequence[str]], Float[np.ndarray, 'n']]


class Rows(NamedTuple):
  """Packed pairs with padding on the right, and the positions of the three prefixes."""

  tokens: Int[np.ndarray, 'N S']
  mask: Bool[np.ndarray, 'N S']
  prefixes: Int[np.ndarray, 'N 3']


class Vocabulary(NamedTuple):
  """A tokenizer, the ids that no text may contain, and the special ids that delimit a pair."""

  tokenizer: tokenizers.Tokenizer
  special: frozenset[int]
  start: int
  stop: int
  prefixes: tuple[int, ...]


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
  """The tokenizer of a published folder; prefixes that it lacks are added to its vocabulary.

  Args:
    folder: contains `tokenizer.json`.
    size: the number of tokens in the ranker's embedding.

  Raises:
    UserError: if there is no tokenizer, or it is not that of a DeBERTa.
  """
  path = folder / 'tokenizer.json'
  if not path.is_file():
    raise UserError(
      f'{path} is missing; that of the port fits both layouts: `hf download llm-blender/PairRM-hf '
      f'tokenizer.json --local-dir {folder}`.'
    )
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # `tokenizers` raises no more specific class
    raise UserError(f'{path} cannot be read ({first_line(error)}); download it again.') from None
  tokenizer.no_truncation()
  tokenizer.no_padding()
  tokenizer.add_tokens(list(PREFIXES))
  start, stop, *prefixes = (tokenizer.token_to_id(token) for token in (START, STOP, *PREFIXES))
  if start is None or stop is None or max(prefixes) >= size:
    raise UserError(
      f"{path} is not PairRM's: it has no {START} or {STOP}, or more tokens than the {size} of the "
      'embedding; replace it by the one published with the weights.'
    )
  added = tokenizer.get_added_tokens_decoder()
  special = frozenset(id for id, token in added.items() if token.content != UNKNOWN)
  return Vocabulary(tokenizer, special, start, stop, tuple(prefixes))


def encode(vocabulary: Vocabulary, prefix: str, texts: Sequence[str]) -> list[list[int]]:
  """Token ids of each text after its prefix, not truncated.

  Special tokens in a text are dropped, as LLM-Blender does with [SEP]: no text can end a prompt or
  a response early, or contain two. Halves of surrogate pairs are replaced by U+FFFD.
  """
  rows = vocabulary.tokenizer.encode_batch(
    [prefix + clean_text(text) for text in texts], add_special_tokens=False
  )
  return [
    [row.ids[0], *(token for token in row.ids[1:] if token not in vocabulary.special)]
    for row in rows
  ]


def pack(
  vocabulary: Vocabulary, lengths: Lengths, source: list[int], first: list[int], second: list[int]
) -> tuple[list[int], tuple[int, int, int]]:
  """`[CLS] prefix text [SEP]` for prompt and both responses, and the positions of the prefixes.

  The responses share the tokens that the prompt leaves; longer texts are truncated at the end.
  LLM-Blender and its port agree on this for batches of one prompt. For larger batches with
  responses of different lengths, LLM-Blender pads between the texts, which shifts the positions of
  later tokens; this is not reproduced.

  Args:
    vocabulary: has the ids of the special tokens.
    lengths: maximal numbers of tokens, special ones included.
    source: ids of the prompt with its prefix.
    first: ids of the first response, with any candidate's prefix.
    second: ids of the second one.
  """

  def delimit(ids, most):
    return [vocabulary.start, *ids[: most - 2], vocabulary.stop]

  prompt = delimit(source, lengths.source)
  rest = (lengths.source + 2 * lengths.candidate - len(prompt)) // 2
  _, one, two, _ = vocabulary.prefixes
  left = delimit([one, *first[1:]], rest)
  right = delimit([two, *second[1:]], rest)
  prefixes = (1, len(prompt) + 1, len(prompt) + len(left) + 1)
  return prompt + left + right, prefixes


def pad(rows: Sequence[tuple[list[int], tuple[int, int, int]]], count: int) -> Rows:
  """Packed pairs as arrays with one of few shapes, so that few programs are compiled.

  Lengths are multiples of an eighth of the power of two below them: less than an eighth is padding.
  There are `count` rows; the first row is repeated at the end.
  """
  longest = max(len(ids) for ids, _ in rows)
  step = max(2 ** (longest.bit_length() - 4), MIN_LENGTH // 8)
  length = max(-(-longest // step) * step, MIN_LENGTH)
  rows = [*rows, *[rows[0]] * (count - len(rows))]
  mask = np.arange(length) < np.array([len(ids) for ids, _ in rows])[:, None]
  tokens = np.zeros(mask.shape, np.int32)
  tokens[mask] = [token for ids, _ in rows for token in ids]
  return Rows(tokens, mask, np.array([prefixes for _, prefixes in rows], np.int32))


def make_score(
  ranker: Ranker, params: Params, lengths: Lengths, vocabulary: Vocabulary, batch: int
) -> Score:
  """The ranker as a function of texts.

  Pairs of similar length form batches. The last batch, with the shortest pairs, is padded to the
  next power of two: there are few shapes, and one program for each.

  Args:
    ranker: from `pairrm_encoder.load`, as are the next two.
    params: its parameters.
    lengths: maximal numbers of tokens.
    vocabulary: of the same folder.
    batch: the maximal number of pairs in a batch.
  """
  logit, places = jax.jit(ranker.logit), jax.jit(ranker.project_positions)(params)

  def score(prompts, first, second):
    prompt_ids, response_ids = (
      dict(zip(texts, encode(vocabulary, prefix, texts), strict=True))
      for prefix, texts in (
        (PREFIXES[0], list(dict.fromkeys(prompts))),
        (PREFIXES[3], list(dict.fromkeys([*first, *second]))),
      )
    )
    rows = [
      pack(vocabulary, lengths, prompt_ids[prompt], response_ids[one], response_ids[two])
      for prompt, one, two in zip(prompts, first, second, strict=True)
    ]
    order = np.argsort([-len(ids) for ids, _ in rows], kind='stable')
    parts = []
    for start in range(0, len(rows), batch):
      chosen = [rows[row] for row in order[start : start + batch]]
      count = min(1 << (len(chosen) - 1).bit_length(), batch)
      # Results are fetched after the last batch is dispatched.
      parts.append(logit(params, places, *sharding.put_rows(pad(chosen, count))))
    logits = np.zeros(len(rows), np.float32)
    logits[order] = np.concatenate(distributed.fetch(parts))[: len(rows)]
    return logits

  return score


def payoff(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
  """P(left > right) - 1/2: the sigmoid of half the difference of the two orders' logits.

  Args:
    forward: logits of left over right, the left response shown first.
    backward: logits of right over left, the right response shown first.
  """
  return np.tanh((forward - backward) / 4) / 2  # sigmoid(x) - 1/2 = tanh(x/2) / 2


def combine_orders(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
  """P(left > right) from the probabilities of both orders: a `judge.CombineOrders`."""
  return 0.5 + payoff(special.logit(forward), special.logit(backward))


def make_preference(score: Score) -> TextPreference:
  """P(left > right) in one order; in double precision, so that the logit can be recovered."""
  return lambda *texts: special.expit(np.asarray(score(*texts), np.float64))


def make_judge(score: Score, tokenizer: Any) -> Judge:
  """P(y > y'|x) - 1/2 from the logits of both orders, as in `payoff`.

  Args:
    score: from `make_score`.
    tokenizer: of the policy; it decodes the responses.
  """
  return judge_from_texts(score, tokenizer, payoff, tie=0.0)
