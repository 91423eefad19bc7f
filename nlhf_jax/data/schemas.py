"""Schemas of published data: one function for each, which turns a row into an `Example`.

A schema reads the fields that it names and ignores others. It raises a `Problem` for a row that it
cannot use; it guesses and rounds nothing. `SCHEMAS` has them by name.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from nlhf_jax.data.readers import Problem

ROLES = ('system', 'user', 'assistant')
MAX_TEXT = 2**20  # characters


class Message(NamedTuple):
  """One turn of a conversation; `role` is one of `ROLES`."""

  role: str
  content: str


Prompt = str | tuple[Message, ...]  # a question, or a conversation that is more than one question


class Example(NamedTuple):
  """A prompt, and what to learn from: a demonstration, or a comparison of two responses, or both.

  `preference` is that of left over right, in [0, 1]: 1 or 0 for a plain choice, 1/2 for a tie, else
  the probability or the share of votes as it is in the row. It is the mean of `votes` votes, where
  that number is known.
  """

  prompt: Prompt
  left: str | None = None
  right: str | None = None
  preference: float = 1.0
  votes: int | None = None
  demonstration: str | None = None


def messages(prompt: Prompt) -> tuple[Message, ...]:
  """The prompt as a conversation."""
  return (Message('user', prompt),) if isinstance(prompt, str) else prompt


# Schemas of this package.


def comparisons(row: Mapping) -> Example:
  """`{"prompt", "chosen", "rejected"}`, as in TRL.

  A field is text or a list of messages `{"role", "content"}`. A prompt has an optional system
  message, then user and assistant in turn, a user last. A response is the assistant's message alone
  or the whole conversation, the prompt and then that message; `"prompt"` may then be missing.
  """
  whole = row.get('chosen')
  if 'prompt' not in row and isinstance(whole, list) and len(whole) > 1:
    row = {**row, 'prompt': whole[:-1]}
  _require_fields(row, 'prompt', 'chosen', 'rejected')
  prompt = _prompt(row['prompt'])
  chosen, rejected = (_response(field, row[field], prompt) for field in ('chosen', 'rejected'))
  return _make_comparison(prompt, chosen, rejected, 1.0, names=('chosen', 'rejected'))


def graded(row: Mapping) -> Example:
  """`{"prompt", "left", "right", "preference"}` and, optionally, `"votes"`.

  The preference is that of left over right, in [0, 1]; prompt and responses as in `comparisons`.
  """
  _require_fields(row, 'prompt', 'left', 'right')
  prompt = _prompt(row['prompt'])
  sides = (_response(field, row[field], prompt) for field in ('left', 'right'))
  votes = None if row.get('votes') is None else int(_number(row, 'votes', 1, 1e9, whole=True))
  return _make_comparison(prompt, *sides, _number(row, 'preference', 0, 1), votes)


def demonstrations(row: Mapping) -> Example:
  """`{"prompt", "response"}`, as in `comparisons`."""
  _require_fields(row, 'prompt', 'response')
  prompt = _prompt(row['prompt'])
  return Example(prompt, demonstration=_response('response', row['response'], prompt))


def prompts(row: Mapping) -> Example:
  """`{"prompt"}` alone, as in `comparisons`; responses in the row are not read."""
  _require_fields(row, 'prompt')
  return Example(_prompt(row['prompt']))


# Published schemas.


def tldr_comparisons(row: Mapping) -> Example:
  """OpenAI's comparisons of summaries (arXiv 2009.01325), of Reddit posts and of news articles.

  `{"info": {"post", "title", "subreddit", "article", ...}, "summaries": [{"text"}, {"text"}],
  "choice"}`, the choice being 0 or 1.
  """
  _require_fields(row, 'info', 'summaries', 'choice')
  summaries = row['summaries']
  if not isinstance(summaries, list) or len(summaries) != 2:
    raise Problem("field 'summaries' is not a list of two")
  first, second = (
    _nested_text(one, 'text', f"'text' of summary {i}") for i, one in enumerate(summaries)
  )
  choice = _choice(row, 'choice', {0: 1.0, 1: 0.0})
  return _make_comparison(_summary_prompt(row['info']), first.strip(), second.strip(), choice)


def tldr_posts(row: Mapping) -> Example:
  """OpenAI's Reddit posts with the summaries of their authors: `{"subreddit", "title", "post",
  "summary"}`."""
  _require_fields(row, 'subreddit', 'title', 'post', 'summary')
  return Example(
    _summary_prompt(row), demonstration=_text("field 'summary'", row['summary']).strip()
  )


def _summary_prompt(info) -> str:
  """The prompt for a post or an article to summarise (arXiv 2009.01325, appendix B.1)."""
  if not isinstance(info, Mapping):
    raise Problem("field 'info' is not a JSON object", f' but {type(info).__name__}')
  if info.get('article') is not None:
    return f'Article:\n{_nested_text(info, "article")}\n\nTL;DR:'
  subreddit, title, post = (_nested_text(info, field) for field in ('subreddit', 'title', 'post'))
  return f'SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:'


_SPEAKER = re.compile(r'\n\n(Human|Assistant):')


def hh(row: Mapping) -> Example:
  """Anthropic's dialogues (arXiv 2204.05862): `{"chosen", "rejected"}`, each a whole transcript.

  The prompt is the conversation before the last answer, for models with a chat template. It must be
  the same in both fields.
  """
  _require_fields(row, 'chosen', 'rejected')
  conversations = {}
  for field in ('chosen', 'rejected'):
    start, *parts = _SPEAKER.split(_text(f"field '{field}'", row[field]))
    if start.strip() or not parts:
      raise Problem(f"field '{field}' does not begin with '\\n\\nHuman:'")
    roles = ({'Human': 'user', 'Assistant': 'assistant'}[name] for name in parts[::2])
    turns = zip(roles, parts[1::2], strict=True)
    conversations[field] = [{'role': role, 'content': text.strip()} for role, text in turns]
  if len(conversations['chosen']) < 2:
    raise Problem("field 'chosen' is not a question and an answer")
  return comparisons(conversations)


def hh_transcripts(row: Mapping) -> Example:
  """Like `hh`, with the transcript before the last answer as one text: for models without turns."""
  _require_fields(row, 'chosen', 'rejected')
  parts = {
    field: _text(f"field '{field}'", row[field]).rpartition('\n\nAssistant:')
    for field in ('chosen', 'rejected')
  }
  prompts = {before for before, _, _ in parts.values()}
  if '' in prompts:
    raise Problem("field 'chosen' or 'rejected' is not a question and an answer")
  if len(prompts) > 1:
    raise Problem("field 'rejected' has other messages than the prompt before its last")
  sides = (_text(f"the answer in '{field}'", part[2].strip()) for field, part in parts.items())
  return _make_comparison(f'{prompts.pop()}\n\nAssistant:', *sides, 1.0)


def ultrafeedback(row: Mapping) -> Example:
  """UltraFeedback binarized (arXiv 2310.01377, 2310.16944): `chosen` and `rejected` conversations.

  Where `score_chosen` equals `score_rejected`, the choice was random: that is a tie.
  """
  sides = {field: row[field] for field in ('chosen', 'rejected') if field in row}
  example = comparisons(sides)
  scores = [_number(row, f'score_{field}', -math.inf, math.inf) for field in sides]
  return example._replace(preference=0.5) if scores[0] == scores[1] else example


def alpaca_eval(row: Mapping) -> Example:
  """AlpacaEval's annotations: `{"instruction", "output_1", "output_2", "preference"}`.

  The preference is in [1, 2], 2 if the second output wins; older files have 0 for ties.
  """
  _require_fields(row, 'instruction', 'output_1', 'output_2', 'preference')
  given = row['preference']
  second = 0.5 if given == 0 and given is not False else _number(row, 'preference', 1, 2) - 1
  return _outputs(row, _text("field 'instruction'", row['instruction']), 1 - second)


def llmbar(row: Mapping) -> Example:
  """LLMBar (arXiv 2310.07641): `{"input", "output_1", "output_2", "label"}`, the label 1 or 2."""
  _require_fields(row, 'input', 'output_1', 'output_2', 'label')
  prompt = _text("field 'input'", row['input'])
  return _outputs(row, prompt, _choice(row, 'label', {1: 1.0, 2: 0.0}))


def _outputs(row, prompt, preference) -> Example:
  sides = [_text(f"field '{field}'", row[field]) for field in ('output_1', 'output_2')]
  return _make_comparison(prompt, *sides, preference, names=('output_1', 'output_2'))


def pandalm(row: Mapping) -> Example:
  """PandaLM's test set (arXiv 2306.05087), judged by three people: 1, 2, or 0 for a tie.

  `{"instruction", "input", "response1", "response2", "annotator1", "annotator2", "annotator3"}`.
  """
  _require_fields(row, 'instruction', 'input', 'response1', 'response2')
  prompt = _text("field 'instruction'", row['instruction'])
  if row['input'] != '':
    prompt += '\n\n' + _text("field 'input'", row['input'])
  sides = [_text(f"field '{field}'", row[field]) for field in ('response1', 'response2')]
  votes = [_choice(row, f'annotator{i}', {1: 1.0, 2: 0.0, 0: 0.5}) for i in (1, 2, 3)]
  return _make_comparison(prompt, *sides, sum(votes) / 3, 3, names=('response1', 'response2'))


def autoj(row: Mapping) -> Example:
  """Auto-J's test set (arXiv 2310.05470), judged by people: 0 the first, 1 the second, 2 a tie.

  `{"prompt", "response 1", "response 2", "label"}`.
  """
  _require_fields(row, 'prompt', 'response 1', 'response 2', 'label')
  prompt = _text("field 'prompt'", row['prompt'])
  sides = [_text(f"field '{field}'", row[field]) for field in ('response 1', 'response 2')]
  preference = _choice(row, 'label', {0: 1.0, 1: 0.0, 2: 0.5})
  return _make_comparison(prompt, *sides, preference, names=('response 1', 'response 2'))


def embedded(row: Mapping) -> Example:
  """The embedded task, as `nlhf_jax.tasks.summaries.tfds_posts` writes it."""
  fields = ('post', 'left', 'right', 'summary')
  _require_fields(row, *fields)
  post, left, right, summary = (_text(f"field '{field}'", row[field]) for field in fields)
  votes = _number(row, 'votes', 1, 1e9, whole=True)
  share = _number(row, 'votes_left', 0, votes, whole=True) / votes
  return Example(post, left, right, share, int(votes), summary)


SCHEMAS: Mapping[str, Callable[[Mapping], Example]] = {
  schema.__name__: schema
  for schema in (
    comparisons,
    graded,
    demonstrations,
    prompts,
    tldr_comparisons,
    tldr_posts,
    hh,
    hh_transcripts,
    ultrafeedback,
    alpaca_eval,
    llmbar,
    pandalm,
    autoj,
    embedded,
  )
}


# Values of fields.


def _require_fields(row, *fields) -> None:
  for field in fields:
    if field not in row:
      raise Problem(f"field '{field}' is missing", f'; it has {_names(row)}')


def _names(row) -> str:
  names = sorted(map(str, row))
  return ascii(names[:20] + ['...'] * (len(names) > 20))[:400]


def _make_comparison(
  prompt, left, right, preference, votes=None, names=('left', 'right')
) -> Example:
  if left == right:
    raise Problem("fields '{}' and '{}' are the same".format(*names))
  return Example(prompt, left, right, float(preference), votes)


def _prompt(value) -> Prompt:
  found = _messages('prompt', value)
  turns = [message.role for message in found if message.role != 'system']
  if turns != (['user', 'assistant'] * len(found))[: len(turns)] or len(turns) % 2 == 0:
    raise Problem("field 'prompt' is not user and assistant in turn, from a user to a user")
  if any(message.role == 'system' for message in found[1:]):
    raise Problem("field 'prompt' has a system message that is not the first")
  return found[0].content if len(found) == 1 else found


def _response(field, value, prompt) -> str:
  *before, last = _messages(field, value, role='assistant')
  if last.role != 'assistant':
    raise Problem(f"field '{field}' does not end with a message of the assistant")
  if before and tuple(before) != messages(prompt):
    raise Problem(f"field '{field}' has other messages than the prompt before its last")
  return last.content


def _messages(field, value, role='user') -> tuple[Message, ...]:
  """The messages of a field; text is one message of the given role."""
  if isinstance(value, str):
    return (Message(role, _text(f"field '{field}'", value)),)
  if not isinstance(value, list):
    detail = f' but {type(value).__name__}'
    raise Problem(f"field '{field}' is neither a string nor a list of messages", detail)
  if not value:
    raise Problem(f"field '{field}' is empty")
  return tuple(_message(f"a message of field '{field}'", message) for message in value)


def _message(name, value) -> Message:
  if not isinstance(value, Mapping):
    raise Problem(f'{name} is not a JSON object', f' but {type(value).__name__}')
  for key in Message._fields:
    if key not in value:
      raise Problem(f"{name} has no '{key}'", f'; it has {_names(value)}')
  role = value['role']
  if role not in ROLES:
    raise Problem(f'{name} has a role that is none of {", ".join(ROLES)}', f': {repr(role)[:80]}')
  return Message(role, _text(f"'content' in {name}", value['content']))


def _nested_text(value, field, name='') -> str:
  """The text of a field of a nested object."""
  name = name or f"field '{field}'"
  if not isinstance(value, Mapping) or field not in value:
    raise Problem(f'{name} is missing')
  return _text(name, value[field])


def _text(name, value) -> str:
  if not isinstance(value, str):
    raise Problem(f'{name} is not a string', f' but {type(value).__name__}')
  if not value.strip():
    raise Problem(f'{name} is empty')
  if len(value) > MAX_TEXT:
    raise Problem(f'{name} is longer than {MAX_TEXT:,} characters')
  if re.search('[\ud800-\udfff]', value):
    raise Problem(f'{name} holds half of a surrogate pair, which is no character')
  if '\0' in value:
    raise Problem(f'{name} holds a null character, which no text does')
  return value


def _number(row, field, least, most, whole=False) -> float:
  _require_fields(row, field)
  value = row[field]
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise Problem(f"field '{field}' is not a number", f' but {type(value).__name__}')
  if not (least <= value <= most and abs(value) < 1e300) or (whole and value != int(value)):
    limits = f' in [{least:g}, {most:g}]' if math.isfinite(most) else ''
    raise Problem(
      f"field '{field}' is not a {'whole ' if whole else ''}number{limits}", f': {repr(value)[:80]}'
    )
  return float(value)


def _choice(row, field, meanings: Mapping[int, float]) -> float:
  """The meaning of a field that holds one of a few numbers."""
  _require_fields(row, field)
  value = row[field]
  if isinstance(value, bool) or not isinstance(value, int) or value not in meanings:
    raise Problem(
      f"field '{field}' is none of {', '.join(map(str, meanings))}", f': {repr(value)[:80]}'
    )
  return meanings[value]
