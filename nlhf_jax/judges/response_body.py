"""The bodies of responses of OpenAI-compatible servers: answers, and the reasons of failures."""

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nlhf_jax.judges.keys import redact
from nlhf_jax.judges.verdicts import Answer, strip_token
from nlhf_jax.storage.texts import clean_text, printable

# Reasons for which the endpoint stopped the model.
CUT = ('length', 'max_tokens', 'model_length', 'content_filter')
# Statuses that any request would get: wrong key, no credit, no access, wrong address or model.
FATAL = (401, 402, 403, 404)
UNKNOWN_MODEL = re.compile(
  r'model_not_found|invalid_model|insufficient_quota|\bmodel\b.{0,100}\b(?:not found|not exist|'
  r'unknown)|\b(?:unknown|invalid|no such|not a valid|unsupported)\b.{0,20}\bmodel\b',
  re.IGNORECASE | re.DOTALL,
)
# Where servers put their sentence, the most telling field first.
SENTENCE_FIELDS = (
  *('message', 'msg', 'detail', 'error_description', 'error_message', 'error_msg', 'errmsg'),
  *('error', 'errors', 'fault', 'faultstring', 'raw', 'reason', 'title'),
)
MAX_SENTENCE = 300  # characters of a server's sentence that a message repeats
MAX_DEPTH = 8
MAX_TOKENS = 10**9


class Failure(NamedTuple):
  """Why a request has no answer; failures of the same kind have the same `reason`.

  `fatal` tells whether every other request would fail in the same way.
  """

  reason: str
  detail: str
  fatal: bool = False


def parse(body: bytes, secret: str = '') -> Answer | Failure:
  """The answer in the body of a response; `secret`, the key, appears in neither outcome."""
  try:
    reply = json.loads(body, parse_constant=_refuse_constant)
    choice = reply['choices'][0]
    usage = reply.get('usage') or {}
    content = (choice.get('logprobs') or {}).get('content') or []
    return Answer(
      redact(secret, clean_text(_message_text(choice['message']).strip())),
      {redact(secret, token): value for token, value in _first_token_log_probs(content)},
      *(_count(usage.get(name)) for name in ('prompt_tokens', 'completion_tokens')),
      cut=str(choice.get('finish_reason')).lower() in CUT,
    )
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
    return _error_in_answer(body, secret)


def _refuse_constant(name: str) -> None:
  raise ValueError(f'{name} is not JSON')


def _message_text(message: Mapping[str, Any]) -> str:
  """The text of a message, whose content may be null or a list of parts; or its refusal."""
  content = message['content'] if message.get('content') is not None else message.get('refusal')
  if isinstance(content, list):
    content = ''.join(_part_text(part) for part in content)
  if content is not None and not isinstance(content, str):
    raise TypeError('the content is no text')
  return content or ''


def _part_text(part: str | Mapping[str, Any]) -> str:
  """The text of a part; parts of other types, such as thinking, are no part of the answer."""
  if isinstance(part, str):
    return part
  return part['text'] if part.get('type', 'text') in ('text', 'output_text') else ''


def _first_token_log_probs(content: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
  """Tokens and log-probabilities at the first position whose token has a letter or digit."""
  for position in content:
    if strip_token(position['token']):
      for token in (position, *(position.get('top_logprobs') or ())):
        if token['logprob'] is not None:  # JSON has no minus infinity
          yield clean_text(token['token']), min(float(token['logprob']), 0.0)
      return


def _count(tokens: Any) -> int:
  """A number of tokens, which only the account needs: 0 where the server gives none."""
  return int(tokens) if isinstance(tokens, int | float) and 0 <= tokens < MAX_TOKENS else 0


# --- Failures ---


def status_failure(status: int, body: bytes, secret: str) -> Failure:
  """The failure that a status other than 200 means, with the server's sentence."""
  fatal = status in FATAL or (status < 500 and bool(UNKNOWN_MODEL.search(_excerpt(body))))
  return Failure(f'status_{status}', f'HTTP {status} - {server_sentence(body, secret)}', fatal)


def _error_in_answer(body: bytes, secret: str) -> Failure:
  """The failure of a body without an answer, which may be an error in spite of its status."""
  try:
    error = json.loads(body)['error']
  except (ValueError, LookupError, TypeError, RecursionError):
    return Failure('malformed', f'no answer in {server_sentence(body, secret)!r}')
  code = error.get('code') if isinstance(error, dict) else None
  fatal = str(code) in map(str, FATAL) or bool(UNKNOWN_MODEL.search(_excerpt(body)))
  return Failure('malformed', f'no answer but {server_sentence(body, secret)!r}', fatal)


def server_sentence(body: bytes, secret: str = '') -> str:
  """What the server says about an error, in one line, from JSON, HTML or plain text."""
  text = _excerpt(body)
  try:
    found = _find_sentence(json.loads(body), 0)
  except (ValueError, RecursionError):
    found = _page_text(text) if text.lstrip().startswith('<') else ''
  sentence = ' '.join(redact(secret, found or text).split()) or 'an empty response'
  return printable(clean_text(_shorten(sentence)))


def _excerpt(body: bytes) -> str:
  return body[:20_000].decode(errors='replace')


def _shorten(text: str) -> str:
  return text if len(text) <= MAX_SENTENCE else text[:MAX_SENTENCE] + '...'


def _find_sentence(value: Any, depth: int) -> str:
  """The first sentence in a JSON value, empty if there is none."""
  if isinstance(value, str):
    return value.strip()
  if depth > MAX_DEPTH:
    return ''
  if isinstance(value, list):
    return '; '.join(filter(None, (_find_sentence(item, depth + 1) for item in value[:3])))
  if not isinstance(value, dict):
    return ''
  fields = {str(name).lower(): item for name, item in value.items()}
  for name in SENTENCE_FIELDS:
    found = _find_sentence(fields.get(name), depth + 1)
    if found:
      place = fields.get('loc')
      return f'{found} ({".".join(map(str, place))})' if isinstance(place, list) else found
  return ''


def _page_text(page: str) -> str:
  """The text of an HTML page; its title, if it has no other."""
  page = re.sub(r'(?is)<(style|script)\b.*?</\1\s*>', ' ', page)
  body = re.sub(r'(?is)<(head|title)\b.*?</\1\s*>', ' ', page)
  texts = (re.sub(r'<[^<>]*>', ' ', part) for part in (body, page))
  return html.unescape(next((text for text in texts if text.strip()), ''))
