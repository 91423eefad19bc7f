"""Text to padded token arrays and back; small vocabularies are trained here."""

import os
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')  # it misses PyTorch; we do not

from transformers import PreTrainedTokenizerFast

from nlhf_jax.structs import Prompts, Responses

PAD, STOP, SEPARATOR = '<pad>', '<eos>', '<sep>'


def train(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
  """A byte-level BPE tokenizer of at most `size` tokens; any text survives a round trip."""
  model = tokenizers.Tokenizer(models.BPE())
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=[PAD, STOP, SEPARATOR],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  model.train_from_iterator(map(_spaced, texts), trainer)
  return PreTrainedTokenizerFast(
    tokenizer_object=model, pad_token=PAD, eos_token=STOP, sep_token=SEPARATOR
  )


def prompt_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
  """Token ids of each prompt, closed by the separator."""
  return _ids(tokenizer, texts, tokenizer.sep_token_id)


def response_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
  """Token ids of each response, closed by the stop token."""
  return _ids(tokenizer, texts, tokenizer.eos_token_id)


def _spaced(text: str) -> str:
  """With a space before it, so that its first word is the same token as anywhere else."""
  return f' {text}'


def _ids(tokenizer, texts, last):
  # A user's text may spell out a special token; it is text all the same.
  texts = list(map(_spaced, texts))
  encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
  return [[*ids, last] for ids in encoded['input_ids']]


def pad_prompts(tokenizer, rows: Sequence[Sequence[int]], length: int) -> Prompts:
  """Rows of ids to the right of padding, [n, length].

  Raises:
    ValueError: if a row does not fit.
  """
  mask = np.arange(length) >= length - np.array([len(row) for row in rows])[:, None]
  return Prompts(_filled(tokenizer, rows, mask), mask)


def pad_responses(tokenizer, rows: Sequence[Sequence[int]], length: int) -> Responses:
  """Rows of ids to the left of padding, as one response a prompt: [n, 1, length].

  Raises:
    ValueError: if a row does not fit.
  """
  mask = np.arange(length) < np.array([len(row) for row in rows])[:, None]
  return Responses(_filled(tokenizer, rows, mask)[:, None], mask[:, None])


def _filled(tokenizer, rows, mask):
  if mask.sum() < sum(map(len, rows)):
    raise ValueError(f'a row of {max(map(len, rows))} tokens does not fit into {mask.shape[1]}')
  tokens = np.full(mask.shape, tokenizer.pad_token_id, np.int32)
  tokens[mask] = [token for row in rows for token in row]
  return tokens


def texts(tokenizer, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
  """The text of each row of tokens, without special tokens and the space that encoding added.

  Leading axes are flattened: [..., S] gives as many texts as there are rows.
  """
  tokens, mask = (np.reshape(leaf, (-1, leaf.shape[-1])) for leaf in (tokens, mask))
  rows = [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
  return [text.removeprefix(' ') for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]
