"""Chat templates: the text around a question and its answer, without injected special tokens.

A template is rendered with the texts of a prompt, which may spell out a special token such as
`<eos>`. Only special tokens that the template itself writes become special tokens. To tell the two
apart, those of the template are replaced by random names, which a copy of the tokenizer knows as
tokens; those of the texts are hidden from the template, and restored as plain text afterwards.
"""

import contextlib
import ctypes
import functools
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken

from nlhf_jax.data.readers import Problem
from nlhf_jax.errors import first_line

# Each text begins with a space, so that its first word is the same token as anywhere else.
SPACED = (
  '{% for message in messages %}'
  "{{ ' ' + message.content + (sep_token if message.role == 'user' else eos_token) }}"
  '{% endfor %}'
)
# The same for conversations, which other tokenizers that are trained here do not take.
SPACED_TURNS = '{# of conversations #}' + SPACED
PLAIN = (
  '{% for message in messages %}'
  "{{ message.content + ('' if message.role == 'user' else eos_token) }}"
  '{% endfor %}'
)
# Seconds that rendering may take, and those for each prompt of many: templates are third-party
# code, which may not end.
TIME_LIMIT, EACH = 10.0, 0.1
_OPEN_THOUGHTS = re.compile(r'<(think|thinking|thought|reasoning)>\s*$')


class Turn(NamedTuple):
  """The text that a template writes around a question and its answer."""

  before: str  # before the question
  lead: str  # after the question; it asks for the answer
  opening: str  # after that, before the answer; it closes a block of thoughts that the lead opens
  tail: str  # after the answer
  thoughts: str = ''  # the tag that closes such a block

  def split_answer(self, text: str) -> tuple[str, str]:
    """What the template writes before an answer, and what is left of the answer.

    Where the lead has opened a block of thoughts, an answer with thoughts of its own goes on in it,
    and any other begins after its end.
    """
    if not (self.thoughts and self.thoughts in text):
      return self.opening, text
    return '', text.removeprefix(self.thoughts.replace('/', ''))


def find_turn(tokenizer: Any) -> Turn:
  """Finds the parts of a turn by rendering the tokenizer's template with random words.

  Raises:
    Problem: if the template cannot be rendered, or leaves out the question or the answer.
  """
  question, answer = _random_word(), _random_word()
  messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
  with _time_limit(TIME_LIMIT):
    asked, answered = _render(tokenizer, messages[:1]), _render(tokenizer, messages)
  before, has_question, lead = asked.rpartition(question)
  after_question = answered.rpartition(question)[2]
  between, has_answer, tail = after_question.partition(answer)
  if not (has_question and has_answer):
    raise Problem('its chat template leaves messages out')
  # Some templates end a prompt with text that they omit if an answer follows.
  opening = between.removeprefix(lead) if between.startswith(lead) else ''
  thoughts = _OPEN_THOUGHTS.search(lead)
  if not thoughts:
    return Turn(before, lead, opening, tail)
  closed = f'</{thoughts[1]}>'
  return Turn(before, lead, opening if closed in opening else f'\n{closed}\n\n', tail, closed)


def find_reply(tokenizer: Any) -> tuple[str, str]:
  """The text that a template writes around a user's reply to an answer.

  The first begins after the stop token of the answer; the second asks for the next answer.

  Raises:
    Problem: if the template cannot be rendered, or leaves out the answer or the reply.
  """
  question, answer, reply = _random_word(), _random_word(), _random_word()
  roles = 'user', 'assistant', 'user'
  messages = [
    {'role': role, 'content': text}
    for role, text in zip(roles, (question, answer, reply), strict=True)
  ]
  with _time_limit(TIME_LIMIT):
    written = _render(tokenizer, messages)
  _, has_answer, rest = written.partition(answer)
  before, has_reply, after = rest.partition(reply)
  if not (has_answer and has_reply):
    raise Problem('its chat template leaves messages out')
  return before.removeprefix(make_codec(tokenizer).turn.tail), after


def match_any(words: Iterable[str]) -> re.Pattern:
  """A pattern that matches any of the words, the longest that fits."""
  return re.compile('|'.join(map(re.escape, sorted(words, key=len, reverse=True))))


class Codec(NamedTuple):
  """Encodes text in which special tokens are written as random names.

  `model` is a copy of the tokenizer. It has the names as tokens after all others, and splits text
  that spells a special token into pieces.
  """

  model: tokenizers.Tokenizer
  special: re.Pattern  # matches any special token
  ids: Mapping[str, int]  # special token -> its id
  names: Mapping[str, str]  # special token -> its name
  ids_of_names: Mapping[int, int]  # id of a name -> id of the special token
  hidden: str  # prefix of the placeholder for a special token that a text spells
  start: list[int]  # what the tokenizer itself puts before any text: a BOS token, or nothing
  turn: Turn  # its tail ends with the stop token

  def insert_names(self, text: str) -> str:
    """A template's text, in which names stand for the special tokens."""
    return self.special.sub(lambda token: self.names[token[0]], text)

  def encode(self, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of texts in which special tokens are written as names."""
    rows = self.model.encode_batch(list(texts), add_special_tokens=False)
    return [[self.ids_of_names.get(token, token) for token in row.ids] for row in rows]


@functools.lru_cache(maxsize=8)
def make_codec(tokenizer: Any) -> Codec:
  """The codec of a tokenizer.

  Raises:
    Problem: as `find_turn`.
  """
  added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
  special = [token for token, kind in added.items() if kind.special]
  special = list(dict.fromkeys([*special, *tokenizer.all_special_tokens]))
  ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special}
  names = {token: _random_word() for token in special}
  model = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
  model.no_truncation()
  model.no_padding()
  # The stop token may be an added token that is not marked as special.
  model.add_special_tokens([added[token] for token in special])
  model.encode_special_tokens = True  # encodes special tokens that texts spell as plain text
  model.add_tokens([_rename_token(added[token], name) for token, name in names.items()])
  turn = find_turn(tokenizer)
  before, stop, _ = turn.tail.partition(tokenizer.eos_token)
  return Codec(
    model=model,
    special=match_any(special),
    ids=ids,
    names=names,
    ids_of_names={model.token_to_id(name): ids[token] for token, name in names.items()},
    hidden=_random_word(),
    start=_start_ids(tokenizer),
    turn=turn._replace(tail=before + stop if stop else tokenizer.eos_token),
  )


def write_prompts(
  tokenizer: Any, prompts: Sequence[str | Sequence[Mapping[str, str]]]
) -> list[str]:
  """The prompts as the template writes them, with names for special tokens.

  Raises:
    Problem: if there is a conversation but no chat template, or the template refuses a prompt or
      takes too long.
  """
  codec = make_codec(tokenizer)
  with _time_limit(TIME_LIMIT + EACH * len(prompts)):
    return [_write_prompt(tokenizer, codec, prompt) for prompt in prompts]


def _write_prompt(tokenizer, codec, prompt) -> str:
  question = isinstance(prompt, str)
  if tokenizer.chat_template in (SPACED, PLAIN):
    if not question:
      raise Problem('there is no chat template for a conversation')
    return codec.insert_names(codec.turn.before) + prompt + codec.insert_names(codec.turn.lead)
  messages = [{'role': 'user', 'content': prompt}] if question else prompt
  # Most templates strip the texts, so only special tokens are replaced before rendering.
  hidden = [
    {**message, 'content': _hide_special(codec, message['content'])} for message in messages
  ]
  return _show_special(codec, codec.insert_names(_render(tokenizer, hidden)))


def _random_word() -> str:
  """A random word, which occurs in no text."""
  return secrets.token_hex(8)


class _OutOfTime(Exception):
  """A template takes longer than it may."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
  """Stops this thread's Python code after a while, wherever it is.

  Raises:
    Problem: if the time is over before the block ends.
  """
  thread, lock, done = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False

  def stop():
    with lock:  # so that nothing is raised once the block has ended
      if not done:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_OutOfTime))

  timer = threading.Timer(seconds, stop)
  timer.daemon = True
  timer.start()
  try:
    try:
      yield
    finally:
      with lock:
        done = True
      timer.cancel()
  except _OutOfTime:
    raise Problem('the chat template takes too long', f': over {seconds:g} s') from None


def _render(tokenizer, messages) -> str:
  try:
    return tokenizer.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=messages[-1]['role'] == 'user'
    )
  except _OutOfTime:
    raise
  except Exception as error:  # a template is third-party code, which may raise anything
    raise Problem('the chat template refuses the messages', f' ({first_line(error)})') from None


def _rename_token(token, name) -> AddedToken:
  flags = {flag: getattr(token, flag) for flag in ('single_word', 'lstrip', 'rstrip', 'normalized')}
  return AddedToken(name, special=False, **flags)


def _start_ids(tokenizer) -> list[int]:
  bare, whole = (tokenizer('a', add_special_tokens=adds)['input_ids'] for adds in (False, True))
  return whole[: whole.index(bare[0])]


def _hide_special(codec, text) -> str:
  """A user's text, in which hexadecimal digits replace the special tokens that it spells."""
  return codec.special.sub(lambda token: f'{codec.hidden}{token[0].encode().hex()};', text)


def _show_special(codec, text) -> str:
  """Undoes `_hide_special`."""
  return re.sub(f'{codec.hidden}(.*?);', lambda digits: bytes.fromhex(digits[1]).decode(), text)
