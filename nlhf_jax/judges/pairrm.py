"""PairRM as a judge: from texts to the logits of pairs, their views, and a payoff.

The logit of a pair in one order, a over b, is the raw word of the ranker: neither antisymmetric nor
transitive. What is made of all of them is a view, and none throws the logits away. Source and
lengths: LLM-Blender (arXiv 2306.02561) and its port to `transformers`.
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
from nlhf_jax.judges.judge import Judge, Preference, spelled
from nlhf_jax.models import sharding
from nlhf_jax.models.pairrm_encoder import Lengths, Ranker
from nlhf_jax.structs import Params

# In the order in which they follow the vocabulary of DeBERTa-v3.
PREFIXES = ('<|source|>', '<|candidate1|>', '<|candidate2|>', '<|candidate|>')
START, STOP, UNKNOWN = '[CLS]', '[SEP]', '[UNK]'
LEAST = 32  # tokens that no row is padded below

# (prompts, first responses, second responses) -> logits that the first are better, [n].
Score = Callable[[Sequence[str], Sequence[str], Sequence[str]], Float[np.ndarray, 'n']]


class Rows(NamedTuple):
  """Packed pairs with padding on the right, and where the three prefixes are."""

  tokens: Int[np.ndarray, 'N S']
  mask: Bool[np.ndarray, 'N S']
  at: Int[np.ndarray, 'N 3']


class Vocabulary(NamedTuple):
  """A tokenizer, the ids that no text may have, and those that pairs are made of."""

  tokenizer: tokenizers.Tokenizer
  special: frozenset[int]
  start: int
  stop: int
  prefixes: tuple[int, ...]


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
  """The tokenizer of a published folder; prefixes that it lacks follow its vocabulary.

  Args:
    folder: with `tokenizer.json`.
    size: tokens that the ranker has an embedding for.

  Raises:
    UserError: if there is none, or it is not that of a DeBERTa.
  """
  path = folder / 'tokenizer.json'
  if not path.is_file():
    raise UserError(
      f'{path} is not there; that of the port fits both: `hf download llm-blender/PairRM-hf '
      f'tokenizer.json --local-dir {folder}`.'
    )
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # `tokenizers` raises nothing more special
    raise UserError(f'{path} cannot be read ({first_line(error)}); download it again.') from None
  tokenizer.no_truncation()
  tokenizer.no_padding()
  tokenizer.add_tokens(list(PREFIXES))
  start, stop, *prefixes = (tokenizer.token_to_id(token) for token in (START, STOP, *PREFIXES))
  if start is None or stop is None or max(prefixes) >= size:
    raise UserError(
      f"{path} is not PairRM's: it has no {START} or {STOP}, or more tokens than the {size} of the "
      'embedding; put the one there that was published with the weights.'
    )
  added = tokenizer.get_added_tokens_decoder()
  special = frozenset(id for id, token in added.items() if token.content != UNKNOWN)
  return Vocabulary(tokenizer, special, start, stop, tuple(prefixes))


def encode(vocabulary: Vocabulary, prefix: str, texts: Sequence[str]) -> list[list[int]]:
  """Token ids of each text after its prefix, whole.

  Special tokens that a text spells are left out, as LLM-Blender does with [SEP]: nobody can write a
  prompt or a response that ends early, or that is two.
  """
  rows = vocabulary.tokenizer.encode_batch(
    [prefix + text for text in texts], add_special_tokens=False
  )
  return [
    [row.ids[0], *(token for token in row.ids[1:] if token not in vocabulary.special)]
    for row in rows
  ]


def pack(
  vocabulary: Vocabulary, lengths: Lengths, source: list[int], first: list[int], second: list[int]
) -> tuple[list[int], tuple[int, int, int]]:
  """`[CLS] prefix text [SEP]` three times over, and where the prefixes are; ends are cut off.

  What the prompt leaves of all tokens the responses share evenly. LLM-Blender at one prompt a batch
  and its port agree on this; at more, and where responses differ in length, the former has padding
  between the texts, which moves what comes after it, and is not done here.

  Args:
    vocabulary: says which tokens those are.
    lengths: most tokens, the special ones included.
    source: ids of the prompt, its prefix included.
    first: those of the first response, with any candidate's prefix.
    second: those of the second.
  """

  def closed(ids, most):
    return [vocabulary.start, *ids[: most - 2], vocabulary.stop]

  prompt = closed(source, lengths.source)
  rest = (lengths.source + 2 * lengths.candidate - len(prompt)) // 2
  _, one, two, _ = vocabulary.prefixes
  left = closed([one, *first[1:]], rest)
  right = closed([two, *second[1:]], rest)
  at = (1, len(prompt) + 1, len(prompt) + len(left) + 1)
  return prompt + left + right, at


def padded(rows: Sequence[tuple[list[int], tuple[int, int, int]]], count: int) -> Rows:
  """Packed pairs as arrays of a length and a number of rows of which there are few.

  Lengths are multiples of an eighth of the power of two below them, so that less than an eighth is
  padding; there are `count` rows, the first again at the end.
  """
  longest = max(len(ids) for ids, _ in rows)
  step = max(2 ** (longest.bit_length() - 4), LEAST // 8)
  length = max(-(-longest // step) * step, LEAST)
  rows = [*rows, *[rows[0]] * (count - len(rows))]
  mask = np.arange(length) < np.array([len(ids) for ids, _ in rows])[:, None]
  tokens = np.zeros(mask.shape, np.int32)
  tokens[mask] = [token for ids, _ in rows for token in ids]
  return Rows(tokens, mask, np.array([at for _, at in rows], np.int32))


def make_score(
  ranker: Ranker, params: Params, lengths: Lengths, vocabulary: Vocabulary, batch: int
) -> Score:
  """The ranker as a function of texts.

  Pairs of about the same length are read together, `batch` at a time and the shortest, where fewer
  are left, in the power of two that holds them: there are few shapes, and a program for each.

  Args:
    ranker: from `models.pairrm.load`, as are the next two.
    params: its parameters.
    lengths: most tokens.
    vocabulary: of the same folder.
    batch: most pairs at a time.
  """
  logit, places = jax.jit(ranker.logit), jax.jit(ranker.project_positions)(params)

  def score(prompts, first, second):
    of_prompt, of_response = (
      dict(zip(texts, encode(vocabulary, prefix, texts), strict=True))
      for prefix, texts in (
        (PREFIXES[0], list(dict.fromkeys(prompts))),
        (PREFIXES[3], list(dict.fromkeys([*first, *second]))),
      )
    )
    rows = [
      pack(vocabulary, lengths, of_prompt[prompt], of_response[one], of_response[two])
      for prompt, one, two in zip(prompts, first, second, strict=True)
    ]
    order = np.argsort([-len(ids) for ids, _ in rows], kind='stable')
    parts = []
    for start in range(0, len(rows), batch):
      chosen = [rows[row] for row in order[start : start + batch]]
      count = min(1 << (len(chosen) - 1).bit_length(), batch)
      # None is waited for before the last is asked.
      parts.append(logit(params, places, *sharding.put_rows(padded(chosen, count))))
    logits = np.zeros(len(rows), np.float32)
    logits[order] = np.concatenate(distributed.fetch(parts))[: len(rows)]
    return logits

  return score


def ordered(
  score: Score,
  prompts: Sequence[str],
  left: Sequence[Sequence[str]],
  right: Sequence[Sequence[str]],
  wanted: Bool[np.ndarray, 'K J'],
) -> Float[np.ndarray, 'B K J']:
  """Logits of left responses over right ones, the left shown first; 0 where none is wanted."""
  triples = [
    (prompt, lefts[i], rights[j])
    for prompt, lefts, rights in zip(prompts, left, right, strict=True)
    for i, j in np.argwhere(wanted)
  ]
  logits = np.zeros((len(prompts), *wanted.shape), np.float32)
  if triples:
    logits[:, wanted] = score(*zip(*triples, strict=True)).reshape(len(prompts), -1)
  return logits


def all_pairs(
  score: Score, prompts: Sequence[str], responses: Sequence[Sequence[str]]
) -> Float[np.ndarray, 'B K K']:
  """Raw logits of K responses to each prompt over each other in both orders; diagonal 0."""
  apart = ~np.eye(len(responses[0]), dtype=bool)
  return ordered(score, prompts, responses, responses, apart)


# Views of the logits C of all ordered pairs.


def swap_mean(logits: Float[np.ndarray, '*B K K']) -> Float[np.ndarray, '*B K K']:
  """(C_ij - C_ji) / 2, whose sigmoid is calibrated: what a judge says of i and j.

  LLM-Blender's `compare` gives twice as much.
  """
  return (logits - np.swapaxes(logits, -1, -2)) / 2


def max_logits(logits: Float[np.ndarray, '*B K K']) -> Float[np.ndarray, '*B K']:
  """A score for each response, its mean of C_ik - C_ki over all k (arXiv 2306.02561, section 3.3).

  Cycles are lost. Where C_ij = r_i - r_j, two scores differ by 2 (r_i - r_j): the sigmoid of that
  is too sure.
  """
  return 2 * np.mean(swap_mean(logits), axis=-1)


def max_wins(logits: Float[np.ndarray, '*B K K']) -> Int[np.ndarray, '*B K']:
  """How many of the 2 (K - 1) showings of each response it wins (same source)."""
  return np.sum(logits > 0, axis=-1) + np.sum(logits < 0, axis=-2)


def payoff(ahead: np.ndarray, behind: np.ndarray) -> np.ndarray:
  """P(left > right) - 1/2, the sigmoid of the mean logit of left over right in both orders.

  Whoever asks the ranker goes by it, in training and in tournaments alike.

  Args:
    ahead: logits of left over right, the left shown first.
    behind: logits of right over left, the right shown first.
  """
  return np.tanh((ahead - behind) / 4) / 2  # sigmoid(x) - 1/2 = tanh(x/2) / 2


def both_orders(ahead: np.ndarray, behind: np.ndarray) -> np.ndarray:
  """The same of probabilities: a `judges.Both`."""
  return 0.5 + payoff(special.logit(ahead), special.logit(behind))


def make_preference(score: Score) -> Preference:
  """The ranker as a judge of texts in one order; in double precision, to find the logit again."""
  return lambda *asked: special.expit(np.asarray(score(*asked), np.float64))


def of_ranker(score: Score, tokenizer: Any) -> Judge:
  """P(y > y'|x) - 1/2 in both orders, as `payoff` has it.

  Args:
    score: from `make_score`.
    tokenizer: of the policy, whose tokens are read as text.
  """

  def judge(comparison):
    prompts, left, right = spelled(comparison, tokenizer)
    if comparison.right is comparison.left:
      ahead = all_pairs(score, prompts, left)
      return payoff(ahead, ahead.swapaxes(1, 2))
    whole = np.ones((len(left[0]), len(right[0])), bool)
    behind = ordered(score, prompts, right, left, whole.T)
    return payoff(ordered(score, prompts, left, right, whole), behind.swapaxes(1, 2))

  return judge
