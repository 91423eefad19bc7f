"""Text to padded token arrays and back, in the form that a model expects.

That form is the tokenizer's chat template, and every tokenizer here has one. A pretrained chat
model brings its own. Those of `train` and of models without one (`SPACED`, `PLAIN`) know a question
and its answer, no conversation. From a template follow the text before and after a question, the
text around an answer, and the stop token: `eos_token_id` of every tokenizer here.

A special token in the tokens is one that the template wrote, or the model; a text that spells one
out is text all the same. Text is otherwise tokenised as the rendered template is, in one piece. The
exception is the border between prompt and response, for the model that continues a prompt cannot
merge tokens across it either: it matters only where a template ends a prompt with text, such as a
newline, and the response begins with what would merge with it, such as a newline again.
"""

import datetime
import functools
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')  # it misses PyTorch; we do not

from transformers import PreTrainedTokenizerFast

from nlhf_jax.data.readers import Problem
from nlhf_jax.errors import UserError, first_line
from nlhf_jax.storage import hub
from nlhf_jax.structs import Prompts, Responses

Row = Sequence[int] | np.ndarray  # token ids of one text

PAD, STOP, SEPARATOR = '<pad>', '<eos>', '<sep>'

# A space before each text, so that its first word is the same token as anywhere else.
SPACED = (
  '{% for message in messages %}'
  "{{ ' ' + message.content + (sep_token if message.role == 'user' else eos_token) }}"
  '{% endfor %}'
)
PLAIN = (
  '{% for message in messages %}'
  "{{ message.content + ('' if message.role == 'user' else eos_token) }}"
  '{% endfor %}'
)

# What templates that write the date write: with that of today, a run resumed tomorrow would go on
# with other prompts. Llama 3's falls back to this very day.
TODAY = datetime.date(2024, 7, 26)


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
  model.train_from_iterator((f' {text}' for text in texts), trainer)
  return _own(model)


def restore(text: str) -> PreTrainedTokenizerFast:
  """A tokenizer of `train`, from what `stored` gave."""
  return _own(tokenizers.Tokenizer.from_str(text))


def to_text(tokenizer: PreTrainedTokenizerFast) -> str:
  """The vocabulary and the rules of a tokenizer, as text."""
  return tokenizer.backend_tokenizer.to_str()


def settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
  """All that determines what a tokenizer makes of a text."""
  own = {'model': to_text(tokenizer), 'template': tokenizer.chat_template}
  return own | {name: str(token) for name, token in tokenizer.special_tokens_map.items()}


def _own(model) -> PreTrainedTokenizerFast:
  return PreTrainedTokenizerFast(
    tokenizer_object=model,
    pad_token=PAD,
    eos_token=STOP,
    sep_token=SEPARATOR,
    chat_template=SPACED,
  )


def load(name: str, field: str = 'config.model.hf') -> PreTrainedTokenizerFast:
  """The tokenizer of a pretrained model, from a folder or by its name on the Hugging Face hub.

  Its `eos_token` becomes the stop token: what its chat template writes after an answer, or without
  a template what it was. A missing padding token is the end-of-sequence token, which masks hide; a
  missing separator is the stop token. No code but that of transformers runs.

  Args:
    name: a folder that holds `tokenizer.json`, or `vocab.json` and `merges.txt`; or `OWNER/MODEL`.
    field: of the config, that has the name.

  Raises:
    UserError: if there is no such tokenizer, its files or its template cannot be used, it has no
      end-of-sequence token, or it reads special tokens in plain text.
  """
  folder, said = hub.locate(name, field=field), f"{field}='{name}'"
  tokenizer = _loaded(said, folder)
  if tokenizer.eos_token is None:
    raise UserError(
      f'{said}: its tokenizer has no end-of-sequence token; name it as '
      f"'eos_token' in {folder / 'tokenizer_config.json'}."
    )
  if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token
  try:
    _settle(tokenizer)
  except Problem as problem:
    raise UserError(f"{said}: {problem}; correct 'chat_template' in its files.") from None
  if tokenizer.sep_token is None:
    tokenizer.sep_token = tokenizer.eos_token
  _must_keep_apart(said, tokenizer)
  return tokenizer


def _loaded(said, folder) -> PreTrainedTokenizerFast:
  has = lambda *files: all((folder / file).is_file() for file in files)
  if not (has('tokenizer.json') or has('vocab.json', 'merges.txt')):
    raise UserError(
      f"{said} holds no tokenizer; put the model's tokenizer.json there, or its "
      'vocab.json and merges.txt.'
    )
  try:
    settings = folder / 'tokenizer_config.json'
    if settings.exists() and 'auto_map' in json.loads(settings.read_bytes()):
      raise UserError(
        f"{said}: its tokenizer is code of its own ('auto_map' in {settings}), "
        'which is not run here; choose a model whose tokenizer transformers has.'
      )
    from transformers import AutoTokenizer  # with it comes PyTorch, if there is one: seconds

    tokenizer = AutoTokenizer.from_pretrained(
      str(folder), local_files_only=True, trust_remote_code=False
    )
  except UserError:
    raise
  except Exception as error:  # whatever the code that the files lead to trips over
    raise UserError(
      f'{said}: its tokenizer cannot be read ({first_line(error)}); download the files again.'
    ) from None
  if not isinstance(tokenizer, PreTrainedTokenizerFast):
    raise UserError(
      f'{said}: its tokenizer is a {type(tokenizer).__name__}, which cannot be '
      "used; choose a model with a tokenizer.json that 'tokenizers' reads."
    )
  return tokenizer


def _settle(tokenizer) -> None:
  """Gives a loaded tokenizer its one template, and makes the stop token its `eos_token`.

  Raises:
    Problem: if the template cannot be used.
  """
  template = tokenizer.chat_template or PLAIN
  if isinstance(template, dict):
    if 'default' not in template:
      raise Problem(f"of its chat templates {sorted(template)} none is called 'default'")
    template = template['default']
  tokenizer.chat_template = re.sub(
    r'strftime_now\(\s*(["\'])(.*?)\1\s*\)', lambda call: repr(TODAY.strftime(call[2])), template
  )
  added = [token.content for token in tokenizer.added_tokens_decoder.values()]
  found = _one_of(filter(str.strip, added)).search(_turn(tokenizer).tail)  # some are spaces
  if found and found[0] != tokenizer.eos_token:
    # The template goes on to mean its own end-of-sequence token.
    own = f'{{% set eos_token = {json.dumps(tokenizer.eos_token)} %}}'
    tokenizer.chat_template = own + tokenizer.chat_template
    tokenizer.eos_token = found[0]


def _must_keep_apart(said, tokenizer) -> None:
  """Refuses a vocabulary in which special tokens are pieces of text like others."""
  codec = _codec(tokenizer)
  tokens = [token for token in codec.ids if token != tokenizer.unk_token]
  for token, row in zip(tokens, _encode(codec, tokens), strict=True):
    if codec.ids[token] in row:
      raise UserError(
        f"{said}: its tokenizer takes the text '{token}' for the special token; "
        'choose another model, for anyone could write this in a prompt.'
      )


class _Turn(NamedTuple):
  """What a template writes around a question and its answer."""

  before: str  # the question
  lead: str  # after the question; it asks for the answer
  opening: str  # after that, before the answer
  tail: str  # after the answer


def _turn(tokenizer) -> _Turn:
  """Found out by rendering.

  Raises:
    Problem: if the template cannot be rendered, or leaves the question or the answer out.
  """
  question, answer = _unheard(), _unheard()
  messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
  before, asked, lead = _rendered(tokenizer, messages[:1]).rpartition(question)
  between, answered, tail = _rendered(tokenizer, messages).rpartition(question)[2].partition(answer)
  if not (asked and answered):
    raise Problem('its chat template leaves messages out')
  # Some ask for an answer with text that they leave out once it is there: '<think>', mostly.
  opening = between.removeprefix(lead) if between.startswith(lead) else ''
  return _Turn(before, lead, opening, tail)


def _unheard() -> str:
  """A word that is in no text."""
  return secrets.token_hex(8)


def _rendered(tokenizer, messages) -> str:
  try:
    return tokenizer.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=messages[-1]['role'] == 'user'
    )
  except Exception as error:  # a template is a program of somebody else's
    raise Problem('the chat template refuses the messages', f' ({first_line(error)})') from None


def _one_of(words: Iterable[str]) -> re.Pattern:
  """Matches the longest of these words."""
  return re.compile('|'.join(map(re.escape, sorted(words, key=len, reverse=True))))


class _Codec(NamedTuple):
  """A tokenizer for text in which special tokens go by names that no text can spell.

  In `model` the names are tokens after all others, and what spells a special token is split up.
  """

  model: tokenizers.Tokenizer
  special: re.Pattern  # matches any special token
  ids: Mapping[str, int]  # special token -> its id
  names: Mapping[str, str]  # special token -> its name
  named: Mapping[int, int]  # id of a name -> id of the special token
  veil: str  # begins what stands for a special token that a text spells
  start: list[int]  # what the tokenizer itself puts before any text: a BOS token, or nothing
  turn: _Turn  # its tail ends with the stop token


@functools.lru_cache(maxsize=8)
def _codec(tokenizer) -> _Codec:
  added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
  special = [token for token, kind in added.items() if kind.special]
  special = list(dict.fromkeys([*special, *tokenizer.all_special_tokens]))
  ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
  names = {token: _unheard() for token in special}
  model = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
  model.no_truncation()
  model.no_padding()
  model.add_special_tokens([added[token] for token in special])  # the stop token may not be one
  model.encode_special_tokens = True  # as text, that is
  model.add_tokens([_renamed(added[token], name) for token, name in names.items()])
  turn = _turn(tokenizer)
  before, stop, _ = turn.tail.partition(tokenizer.eos_token)
  return _Codec(
    model=model,
    special=_one_of(special),
    ids=ids,
    names=names,
    named={model.token_to_id(name): ids[token] for token, name in names.items()},
    veil=_unheard(),
    start=_start(tokenizer),
    turn=turn._replace(tail=before + stop if stop else tokenizer.eos_token),
  )


def _renamed(token, name) -> AddedToken:
  flags = {flag: getattr(token, flag) for flag in ('single_word', 'lstrip', 'rstrip', 'normalized')}
  return AddedToken(name, special=False, **flags)


def _start(tokenizer) -> list[int]:
  bare, whole = (tokenizer('a', add_special_tokens=adds)['input_ids'] for adds in (False, True))
  return whole[: whole.index(bare[0])]


def _named(codec, text) -> str:
  """A template's text, with names for special tokens."""
  return codec.special.sub(lambda token: codec.names[token[0]], text)


def _veiled(codec, text) -> str:
  """A user's text, in which a template's special tokens can be told from those it spells."""
  return codec.special.sub(lambda token: f'{codec.veil}{token[0].encode().hex()};', text)


def _unveiled(codec, text) -> str:
  return re.sub(f'{codec.veil}(.*?);', lambda veiled: bytes.fromhex(veiled[1]).decode(), text)


def _encode(codec, texts: Iterable[str]) -> list[list[int]]:
  """Token ids of texts in which special tokens go by their names."""
  rows = codec.model.encode_batch(list(texts), add_special_tokens=False)
  return [[codec.named.get(token, token) for token in row.ids] for row in rows]


def prompt_ids(tokenizer, prompts: Sequence[str | Sequence[Mapping[str, str]]]) -> list[list[int]]:
  """Token ids of each prompt, up to where its response begins.

  Args:
    tokenizer: of `train` or `load`.
    prompts: each one question, or the messages `{'role', 'content'}` of a conversation, of which
      the last is a user's. The chat template gives them their form; there is one BOS token if it,
      or the tokenizer, puts one there.

  Raises:
    Problem: if there is a conversation but no chat template, or the template refuses it.
  """
  codec = _codec(tokenizer)
  rows = _encode(codec, [_written(tokenizer, codec, prompt) for prompt in prompts])
  start = codec.start
  return [row if row[: len(start)] == start else [*start, *row] for row in rows]


def _written(tokenizer, codec, prompt) -> str:
  """The prompt as the template writes it, with names for special tokens."""
  question = isinstance(prompt, str)
  if tokenizer.chat_template in (SPACED, PLAIN):
    if not question:
      raise Problem('there is no chat template for a conversation')
    return _named(codec, codec.turn.before) + prompt + _named(codec, codec.turn.lead)
  messages = [{'role': 'user', 'content': prompt}] if question else prompt
  # Templates read what they write; most strip it.
  veiled = [{**message, 'content': _veiled(codec, message['content'])} for message in messages]
  return _unveiled(codec, _named(codec, _rendered(tokenizer, veiled)))


def response_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
  """Token ids of each response to a prompt of `prompt_ids`, closed by the stop token.

  A text stays as it is where the chat template would strip it, for so a policy's responses stay.
  """
  codec = _codec(tokenizer)
  _, lead, opening, tail = (_named(codec, text) for text in codec.turn)
  alone = [opening + text + tail for text in texts]
  # Some tokenizers read the first word of all in another way than those after it.
  (before,), rows = _encode(codec, [lead]), _encode(codec, [lead + text for text in alone])
  return [
    row[len(before) :] if row[: len(before)] == before else _encode(codec, [text])[0]
    for row, text in zip(rows, alone, strict=True)
  ]


def pad_prompts(tokenizer, rows: Sequence[Row], length: int) -> Prompts:
  """Rows of ids to the right of padding, [n, length].

  Raises:
    ValueError: if a row does not fit.
  """
  mask = np.arange(length) >= length - np.array([len(row) for row in rows])[:, None]
  return Prompts(_filled(tokenizer, rows, mask), mask)


def pad_responses(tokenizer, rows: Sequence[Row], length: int) -> Responses:
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
  if len(rows):
    tokens[mask] = np.concatenate(rows, dtype=np.int32, casting='unsafe')
  return tokens


def response_texts(tokenizer, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
  """The text of each response, without special tokens and what the template puts around it.

  Leading axes are flattened: [..., S] gives as many texts as there are rows.
  """
  codec = _codec(tokenizer)
  special = set(codec.ids.values())
  rows = [[token for token in row if token not in special] for row in _rows(tokens, mask)]
  # Some decoders drop a space before the first word of all.
  (before,) = _encode(codec, [_named(codec, codec.turn.lead)])
  start, *said = _decode(tokenizer, [before, *(before + row for row in rows)])
  opening, tail = (codec.special.sub('', text) for text in (codec.turn.opening, codec.turn.tail))
  return [text.removeprefix(start).removeprefix(opening).removesuffix(tail) for text in said]


def prompt_texts(tokenizer, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
  """The text of each prompt, [n, P], without what the template puts around it.

  A conversation is given as the template writes its turns.
  """
  question = _unheard()
  sample, *written = _decode(tokenizer, [*prompt_ids(tokenizer, [question]), *_rows(tokens, mask)])
  before, _, after = sample.partition(question)
  return [text.removeprefix(before).removesuffix(after) for text in written]


def _decode(tokenizer, rows) -> list[str]:
  """As they are, with special tokens; ids beyond the vocabulary are left out."""
  return tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=False)


def _rows(tokens, mask) -> list[list[int]]:
  tokens, mask = (np.reshape(leaf, (-1, leaf.shape[-1])) for leaf in (tokens, mask))
  return [row[keep].tolist() for row, keep in zip(tokens, mask, strict=True)]
