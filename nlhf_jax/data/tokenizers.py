"""Text to padded token arrays and back, in the format that a model expects.

That format is the tokenizer's chat template, and every tokenizer here has one. A pretrained chat
model brings its own. Tokenizers trained here, and those of models without a template, have `SPACED`
or `PLAIN`, which take a question and its answer but no conversation. The template determines the
text before and after a question, the text around an answer, and the stop token: `eos_token_id` of
every tokenizer here.

A special token among the tokens was written by the template or by the model: a text that spells one
out is encoded as plain text. Otherwise texts are tokenised as the rendered template is, in one
piece, except at the border between prompt and response: a model that continues a prompt cannot
merge tokens across it either. This matters only where a template ends a prompt with text, such as a
newline, and the response begins with text that would merge with it, such as another newline.
"""

import datetime
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')  # that PyTorch is missing

from transformers import PreTrainedTokenizerFast

from nlhf_jax.data.chat_templates import (
  PLAIN,
  SPACED,
  find_turn,
  make_codec,
  match_any,
  write_prompts,
)
from nlhf_jax.data.readers import Problem
from nlhf_jax.errors import UserError, first_line
from nlhf_jax.storage import hub
from nlhf_jax.structs import Prompts, Responses

Row = Sequence[int] | np.ndarray  # token ids of one text

PAD, STOP, SEPARATOR = '<pad>', '<eos>', '<sep>'

# The date for templates that write one: with today's date, a run resumed tomorrow would
# continue with other prompts. This one is the default of Llama 3's template.
DATE = datetime.date(2024, 7, 26)


def train(texts: Iterable[str], size: int, template: str = SPACED) -> PreTrainedTokenizerFast:
  """A byte-level BPE tokenizer of at most `size` tokens, which encodes any text without loss."""
  model = tokenizers.Tokenizer(models.BPE())
  model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=[PAD, STOP, SEPARATOR],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  model.train_from_iterator((f' {text}' for text in texts), trainer)
  return _wrap(model, template)


def restore(text: str, template: str = SPACED) -> PreTrainedTokenizerFast:
  """A tokenizer of `train`, from what `to_text` returned."""
  return _wrap(tokenizers.Tokenizer.from_str(text), template)


def to_text(tokenizer: PreTrainedTokenizerFast) -> str:
  """The vocabulary and the rules of a tokenizer, as text."""
  return tokenizer.backend_tokenizer.to_str()


def settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
  """Everything that determines the tokens of a text."""
  own = {'model': to_text(tokenizer), 'template': tokenizer.chat_template}
  return own | {name: str(token) for name, token in tokenizer.special_tokens_map.items()}


def _wrap(model, template) -> PreTrainedTokenizerFast:
  return PreTrainedTokenizerFast(
    tokenizer_object=model,
    pad_token=PAD,
    eos_token=STOP,
    sep_token=SEPARATOR,
    chat_template=template,
  )


def load(name: str, field: str = 'config.model.hf') -> PreTrainedTokenizerFast:
  """The tokenizer of a pretrained model, from a folder or by its name on the Hugging Face hub.

  Its `eos_token` becomes the stop token: the one that its chat template writes after an answer or,
  without a template, the one that it has. A missing padding token becomes the end-of-sequence
  token, which masks hide; a missing separator becomes the stop token. Only code of transformers
  runs.

  Args:
    name: a folder that holds `tokenizer.json`, or `vocab.json` and `merges.txt`; or `OWNER/MODEL`.
    field: the field of the config that has the name, for messages.

  Raises:
    UserError: if there is no such tokenizer, its files or its template cannot be used, it has no
      end-of-sequence token, or it reads special tokens in plain text.
  """
  folder, setting = hub.locate(name, field=field), f"{field}='{name}'"
  tokenizer = _load_files(setting, folder)
  if tokenizer.eos_token is None:
    raise UserError(
      f'{setting}: its tokenizer has no end-of-sequence token; name it as '
      f"'eos_token' in {folder / 'tokenizer_config.json'}."
    )
  if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
  try:
    _set_stop_token(tokenizer)
  except Problem as problem:
    raise UserError(f"{setting}: {problem}; correct 'chat_template' in its files.") from None
  if tokenizer.sep_token is None:
    tokenizer.sep_token = tokenizer.eos_token
  _check_special_tokens(setting, tokenizer)
  return tokenizer


def _load_files(setting, folder) -> PreTrainedTokenizerFast:
  has = lambda *files: all((folder / file).is_file() for file in files)
  if not (has('tokenizer.json') or has('vocab.json', 'merges.txt')):
    raise UserError(
      f"{setting} holds no tokenizer; put the model's tokenizer.json there, or its "
      'vocab.json and merges.txt.'
    )
  try:
    settings = folder / 'tokenizer_config.json'
    if settings.exists() and 'auto_map' in json.loads(settings.read_bytes()):
      raise UserError(
        f"{setting}: its tokenizer needs code of its own ('auto_map' in {settings}), "
        'which is not run here; choose a model whose tokenizer transformers has.'
      )
    from transformers import (
      AutoTokenizer,
    )  # imports PyTorch, if it is installed, which takes seconds

    tokenizer = AutoTokenizer.from_pretrained(
      str(folder), local_files_only=True, trust_remote_code=False
    )
  except UserError:
    raise
  except Exception as error:  # the files decide which code runs, and what it raises
    raise UserError(
      f'{setting}: its tokenizer cannot be read ({first_line(error)}); download the files again.'
    ) from None
  if not isinstance(tokenizer, PreTrainedTokenizerFast):
    raise UserError(
      f'{setting}: its tokenizer is a {type(tokenizer).__name__}, which cannot be '
      "used; choose a model with a tokenizer.json that 'tokenizers' reads."
    )
  return tokenizer


def _set_stop_token(tokenizer) -> None:
  """Gives a loaded tokenizer one template, and makes the stop token its `eos_token`.

  Raises:
    Problem: if the template cannot be used.
  """
  template = tokenizer.chat_template or PLAIN
  if isinstance(template, dict):
    if 'default' not in template:
      raise Problem(f"of its chat templates {sorted(template)} none is called 'default'")
    template = template['default']
  tokenizer.chat_template = re.sub(
    r'strftime_now\(\s*(["\'])(.*?)\1\s*\)', lambda call: repr(DATE.strftime(call[2])), template
  )
  added = [token.content for token in tokenizer.added_tokens_decoder.values()]
  found = match_any(filter(str.strip, added)).search(find_turn(tokenizer).tail)  # some are spaces
  if found and found[0] != tokenizer.eos_token:
    # The template still writes its own end-of-sequence token.
    own = f'{{% set eos_token = {json.dumps(tokenizer.eos_token)} %}}'
    tokenizer.chat_template = own + tokenizer.chat_template
    tokenizer.eos_token = found[0]


def _check_special_tokens(setting, tokenizer) -> None:
  """Refuses a vocabulary in which text can contain special tokens."""
  codec = make_codec(tokenizer)
  tokens = [token for token in codec.ids if token != tokenizer.unk_token]
  for token, row in zip(tokens, codec.encode(tokens), strict=True):
    if codec.ids[token] in row:
      raise UserError(
        f"{setting}: its tokenizer takes the text '{token}' for the special token; "
        'choose another model, because anyone could write this in a prompt.'
      )


def prompt_ids(tokenizer, prompts: Sequence[str | Sequence[Mapping[str, str]]]) -> list[list[int]]:
  """Token ids of each prompt, up to where its response begins.

  Args:
    tokenizer: of `train` or `load`.
    prompts: each a question, or the messages `{'role', 'content'}` of a conversation that ends with
      a user's. The chat template formats them; there is one BOS token if it, or the tokenizer, puts
      one there.

  Raises:
    Problem: if there is a conversation but no chat template, or the template refuses it.
  """
  rows = make_codec(tokenizer).encode(write_prompts(tokenizer, prompts))
  start = make_codec(tokenizer).start
  return [row if row[: len(start)] == start else [*start, *row] for row in rows]


def response_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
  """Token ids of each response to a prompt of `prompt_ids`, ended by the stop token.

  A text is not stripped where the chat template would strip it, because a policy's responses are
  not stripped either.
  """
  codec = make_codec(tokenizer)
  lead, tail = codec.insert_names(codec.turn.lead), codec.insert_names(codec.turn.tail)
  split = map(codec.turn.split_answer, texts)
  alone = [codec.insert_names(opening) + text + tail for opening, text in split]
  # Some tokenizers encode the first word of a text in another way than those after it.
  (before,), rows = codec.encode([lead]), codec.encode([lead + text for text in alone])
  return [
    row[len(before) :] if row[: len(before)] == before else codec.encode([text])[0]
    for row, text in zip(rows, alone, strict=True)
  ]


def pad_prompts(tokenizer, rows: Sequence[Row], length: int) -> Prompts:
  """Rows of ids, padded on the left: [n, length].

  Raises:
    ValueError: if a row does not fit.
  """
  mask = np.arange(length) >= length - np.array([len(row) for row in rows])[:, None]
  return Prompts(_fill(tokenizer, rows, mask), mask)


def pad_responses(tokenizer, rows: Sequence[Row], length: int) -> Responses:
  """Rows of ids, padded on the right, as one response per prompt: [n, 1, length].

  Raises:
    ValueError: if a row does not fit.
  """
  mask = np.arange(length) < np.array([len(row) for row in rows])[:, None]
  return Responses(_fill(tokenizer, rows, mask)[:, None], mask[:, None])


def _fill(tokenizer, rows, mask):
  if mask.sum() < sum(map(len, rows)):
    raise ValueError(f'a row of {max(map(len, rows))} tokens does not fit into {mask.shape[1]}')
  tokens = np.full(mask.shape, tokenizer.pad_token_id, np.int32)
  if len(rows):
    tokens[mask] = np.concatenate(rows, dtype=np.int32, casting='unsafe')
  return tokens


def response_texts(tokenizer, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
  """The text of each response, without special tokens and the template's text around it.

  Leading axes are flattened: [..., S] gives as many texts as there are rows.
  """
  codec = make_codec(tokenizer)
  special = set(codec.ids.values())
  rows = [[token for token in row if token not in special] for row in masked_rows(tokens, mask)]
  # Some decoders drop a space before the first word of a text, so the lead is decoded before it.
  (before,) = codec.encode([codec.insert_names(codec.turn.lead)])
  start, *decoded = decode_rows(tokenizer, [before, *(before + row for row in rows)])
  opening, tail = (codec.special.sub('', text) for text in (codec.turn.opening, codec.turn.tail))
  return [text.removeprefix(start).removeprefix(opening).removesuffix(tail) for text in decoded]


def prompt_texts(tokenizer, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
  """The text of each prompt, [n, P], without the template's text around it.

  The text of a conversation is what the template writes, turn by turn.
  """
  question = secrets.token_hex(8)  # a random word, which occurs in no text
  sample, *written = decode_rows(
    tokenizer, [*prompt_ids(tokenizer, [question]), *masked_rows(tokens, mask)]
  )
  before, _, after = sample.partition(question)
  return [text.removeprefix(before).removesuffix(after) for text in written]


def decode_rows(tokenizer: Any, rows: Sequence[Row]) -> list[str]:
  """Texts with their special tokens; ids beyond the vocabulary are left out."""
  return tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=False)


def masked_rows(tokens: np.ndarray, mask: np.ndarray) -> list[list[int]]:
  """The ids of each row that the mask keeps; leading axes are flattened."""
  tokens, mask = (np.reshape(leaf, (-1, leaf.shape[-1])) for leaf in (tokens, mask))
  return [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
