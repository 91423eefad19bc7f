"""The tokenizer and the chat template in the metadata of a GGUF file, as Hugging Face files."""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import (
  AddedToken,
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from nlhf_jax.errors import UserError, first_line

# What `tokenizer.ggml.token_type` distinguishes.
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
SPACE = '▁'  # as SentencePiece writes it


def _split(digits: str) -> str:
  """How Llama 3 and Qwen 2 split text into words; they differ in the digits taken together."""
  return (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r'| ?[^\s\p{L}\p{N}]+'
    r'[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )


# `tokenizer.ggml.pre` -> how text is split into words.
_LLAMA3, _QWEN2 = _split(r'\p{N}{1,3}'), _split(r'\p{N}')
PATTERNS = {
  'llama-bpe': _LLAMA3,
  'llama3': _LLAMA3,
  'llama-v3': _LLAMA3,
  'qwen2': _QWEN2,
  'deepseek-r1-qwen': _QWEN2,
}
WORDS = ('gpt-2', 'smollm', *PATTERNS)


def make_files(metadata: Any) -> dict[str, Any]:
  """The contents of tokenizer.json and tokenizer_config.json.

  Args:
    metadata: a `gguf_files.Metadata`.

  Raises:
    UserError: if the tokenizer's kind is not supported, or it cannot be made.
  """
  get = lambda key, *default: metadata.value(f'tokenizer.ggml.{key}', *default)
  tokens, kinds = get('tokens'), get('token_type', None)
  kinds = kinds or [1] * len(tokens)
  special = {
    name: tokens[number]
    for name, key in (('bos', 'bos'), ('eos', 'eos'), ('unk', 'unknown'), ('pad', 'padding'))
    if (number := get(f'{key}_token_id', None)) is not None and number < len(tokens)
  }
  kind = get('model')
  if kind not in MODELS:
    raise UserError(
      f"{metadata.path}: a tokenizer of type '{kind}' is not supported; use a model with one of "
      f'{", ".join(MODELS)}.'
    )
  try:
    tokenizer, adds_bos = MODELS[kind](metadata.path, get, tokens, kinds)
    tokenizer.add_tokens(
      [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
      ]
    )
    if get('add_bos_token', adds_bos) and 'bos' in special:
      bos = special['bos']
      tokenizer.post_processor = processors.Sequence(
        [
          *([tokenizer.post_processor] if tokenizer.post_processor else []),
          processors.TemplateProcessing(
            single=f'{bos} $A', special_tokens=[(bos, tokens.index(bos))]
          ),
        ]
      )
  except UserError:
    raise
  except Exception as error:  # of any kind that broken lists raise
    raise UserError(
      f'{metadata.path}: its tokenizer cannot be made ({first_line(error)}); convert it again.'
    ) from None
  template = metadata.value('tokenizer.chat_template', None)
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
    **{f'{name}_token': token for name, token in special.items()},
    **({'chat_template': template} if template else {}),
  }
  return {'tokenizer.json': tokenizer.to_str(), 'tokenizer_config.json': settings}


def _byte_level(path, get, tokens: Sequence[str], kinds) -> tuple[tokenizers.Tokenizer, bool]:
  """Byte-level BPE, and whether it begins texts with a BOS token by default."""
  del kinds
  words = get('pre', 'missing')
  if words not in WORDS:
    raise UserError(
      f"{path}: the way '{words}' to split text ('tokenizer.ggml.pre') is not supported; "
      f'use one of {", ".join(WORDS)}.'
    )
  llama3 = PATTERNS.get(words) == _LLAMA3
  merges = [tuple(merge.split(' ')) for merge in get('merges')]
  tokenizer = tokenizers.Tokenizer(models.BPE(_numbers(tokens), merges, ignore_merges=llama3))
  if words in PATTERNS:
    split = pre_tokenizers.Split(Regex(PATTERNS[words]), 'isolated')
    steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  else:
    digits = [pre_tokenizers.Digits(individual_digits=True)] if words == 'smollm' else []
    steps = [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
  if PATTERNS.get(words) == _QWEN2:
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer, llama3


def _sentence_piece(path, get, tokens: Sequence[str], kinds) -> tuple[tokenizers.Tokenizer, bool]:
  """SentencePiece's BPE, whose merges follow from the scores; by default with a BOS token."""
  del path
  vocabulary, scores = _numbers(tokens), get('scores')
  merges = []
  for token, kind, score in zip(tokens, kinds, scores, strict=True):
    if kind not in (UNKNOWN, CONTROL):
      splits = [(token[:end], token[end:]) for end in range(1, len(token))]
      parts = [(a, b) for a, b in splits if a in vocabulary and b in vocabulary]
      parts.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
      merges += [(score, pair) for pair in parts]
  merges.sort(key=lambda merge: -merge[0])
  unknown = next(
    (token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None
  )
  tokenizer = tokenizers.Tokenizer(
    models.BPE(
      vocabulary, [pair for _, pair in merges], unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
  )
  prefix = get('add_space_prefix', True)
  steps = [normalizers.Prepend(SPACE)] if prefix else []
  tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(' ', SPACE)])
  steps = [decoders.Strip(' ', 1, 0)] if prefix else []
  tokenizer.decoder = decoders.Sequence(
    [decoders.Replace(SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(), *steps]
  )
  return tokenizer, True


def _numbers(tokens: Sequence[str]) -> Mapping[str, int]:
  return {token: number for number, token in enumerate(tokens)}


# `tokenizer.ggml.model` -> how the tokenizer is made.
MODELS = {'gpt2': _byte_level, 'llama': _sentence_piece}
