"""Schemas of published data: one function for each, which turns a row into an `Example`.

A schema reads the fields that it names and ignores others. It raises a `Problem` for a row that it
cannot use; it guesses and rounds nothing. `SCHEMAS` has them by name.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from nlhf_jax.data.conversations import Prompt, read_opening, read_prompt, read_responses
from nlhf_jax.data.readers import Problem
from nlhf_jax.data.row_fields import (
  check_text,
  nested_text,
  read_choice,
  read_number,
  require_fields,
)


class Example(NamedTuple):
  """A prompt, and what to learn from: a demonstration, or a comparison of two responses, or both.

  `preference` is that of left over right, in [0, 1]: 1 or 0 for a plain choice, 1/2 for a tie, else
  the probability or the share of votes as it is in the row. It is the mean of `votes` votes, where
  that number is known. An unpaired response is a left one without a right one; its preference is 1
  if it is good, and 0 if it is bad. A left or right side that is a conversation has its turns: the
  policy's, the user's, the policy's and so on; only judges learn from it. `replies` are what the
  user wrote in later turns of a conversation that the prompt opens, whatever was answered.
  """

  prompt: Prompt
  left: str | tuple[str, ...] | None = None
  right: str | tuple[str, ...] | None = None
  preference: float = 1.0
  votes: int | None = None
  demonstration: str | None = None
  replies: tuple[str, ...] = ()


Schema = Callable[[Mapping], Example]
SCHEMAS: dict[str, Schema] = {}


def reads(*fields: str) -> Callable[[Schema], Schema]:
  """Registers a schema; its attribute `fields` has the fields that it reads, others are left."""

  def register(schema):
    schema.fields = fields
    SCHEMAS[schema.__name__] = schema
    return schema

  return register


# Schemas of this package.


@reads('prompt', 'chosen', 'rejected')
def comparisons(row: Mapping) -> Example:
  """`{"prompt", "chosen", "rejected"}`, as in TRL.

  A field is text or a list of messages `{"role", "content"}`. A prompt has an optional system
  message, then user and assistant in turn, a user last. A response is the assistant's message alone
  or the whole conversation, the prompt and then that message; `"prompt"` may then be missing.
  """
  sides = {field: row[field] for field in ('chosen', 'rejected') if field in row}
  if 'prompt' not in row and len(sides) == 2 and all(isinstance(v, str) for v in sides.values()):
    raise Problem(
      "field 'prompt' is missing",
      '; if the common start of both texts is the prompt, set config.data.schema=implicit_prompt',
    )
  prompt, (chosen, rejected) = _read_answers(row, 'chosen', 'rejected')
  return _make_comparison(prompt, chosen, rejected, 1.0, names=('chosen', 'rejected'))


@reads('prompt', 'left', 'right', 'preference', 'votes')
def graded(row: Mapping) -> Example:
  """`{"prompt", "left", "right", "preference"}` and, optionally, `"votes"`.

  The preference is that of left over right, in [0, 1]; prompt and responses as in `comparisons`.
  """
  prompt, sides = _read_answers(row, 'left', 'right')
  votes = None if row.get('votes') is None else int(read_number(row, 'votes', 1, 1e9, whole=True))
  return _make_comparison(prompt, *sides, read_number(row, 'preference', 0, 1), votes)


@reads('prompt', 'response', 'completion', 'messages', 'label')
def demonstrations(row: Mapping) -> Example:
  """`{"prompt", "response"}`, as in `comparisons`; also `"completion"` in place of `"response"`.

  Or `{"messages"}`, a conversation, of which the last message is the response. A completion with a
  label may be a bad one, and is refused.
  """
  field = next((name for name in ('response', 'completion', 'messages') if name in row), 'response')
  if field == 'messages':
    row = {'messages': row['messages']}  # what else the row has is a part of the conversation
  if field == 'completion' and row.get('label') is not None:
    raise Problem(
      "field 'label' tells good completions from bad ones, and demonstrations are all good",
      '; set config.data.schema=unpaired',
    )
  prompt, (response,) = _read_answers(row, field)
  return Example(prompt, demonstration=response)


@reads('prompt')
def prompts(row: Mapping) -> Example:
  """`{"prompt"}` alone, as in `comparisons`; responses in the row are not read."""
  require_fields(row, 'prompt')
  return Example(read_prompt(row['prompt']))


@reads('messages')
def dialogues(row: Mapping) -> Example:
  """`{"messages"}`: the opening of a conversation, for policies that converse.

  The first question is the prompt, with a system message before it, and its answer, if there is
  one, a demonstration. Later messages of the user are what `config.dialogue.user=data` replies;
  later answers are not read.
  """
  require_fields(row, 'messages')
  prompt, answer, replies = read_opening('messages', row['messages'])
  return Example(prompt, demonstration=answer, replies=replies)


@reads('prompt', 'completion', 'label')
def unpaired(row: Mapping) -> Example:
  """`{"prompt", "completion", "label"}`, as in TRL: one response, good (true) or bad (false).

  Prompt and completion as in `comparisons`. Only `kto` learns from bad responses.
  """
  prompt, (completion,) = _read_answers(row, 'completion')
  require_fields(row, 'label')
  label = row['label']
  if not isinstance(label, int) or label not in (0, 1):
    raise Problem("field 'label' is neither true nor false", f': {repr(label)[:80]}')
  return Example(prompt, completion, preference=float(label))


@reads('chosen', 'rejected')
def implicit_prompt(row: Mapping) -> Example:
  """`{"chosen", "rejected"}`, texts whose common start is the prompt, as in TRL.

  The prompt ends before the first word that differs; a space before that word goes with it.
  """
  require_fields(row, 'chosen', 'rejected')
  sides = [check_text(f"field '{field}'", row[field]) for field in ('chosen', 'rejected')]
  if sides[0] == sides[1]:
    raise Problem("fields 'chosen' and 'rejected' are the same")
  pairs = zip(*sides, strict=False)
  alike = next((i for i, (one, other) in enumerate(pairs) if one != other), min(map(len, sides)))
  end = max((i + 1 for i in range(alike) if sides[0][i].isspace()), default=0)
  end -= sides[0][:end].endswith(' ')
  if not sides[0][:end].strip():
    raise Problem("fields 'chosen' and 'rejected' do not begin with the same words")
  ends = [check_text('a response after the common start', side[end:]) for side in sides]
  return _make_comparison(sides[0][:end], *ends, 1.0, names=('chosen', 'rejected'))


def _read_answers(row: Mapping, *fields: str) -> tuple[Prompt, list[str]]:
  """The prompt of a row, and the responses in some fields.

  Where there is no prompt, and the first field is a conversation, the prompt is all but its last
  message.
  """
  whole = row.get(fields[0])
  if 'prompt' not in row and isinstance(whole, list) and len(whole) > 1:
    row = {**row, 'prompt': whole[:-1]}
  require_fields(row, 'prompt', *fields)
  return read_responses(row['prompt'], {field: row[field] for field in fields})


# Published schemas.


@reads('info', 'summaries', 'choice')
def tldr_comparisons(row: Mapping) -> Example:
  """OpenAI's comparisons of summaries (arXiv 2009.01325), of Reddit posts and of news articles.

  `{"info": {"post", "title", "subreddit", "article", ...}, "summaries": [{"text"}, {"text"}],
  "choice"}`, the choice being 0 or 1.
  """
  require_fields(row, 'info', 'summaries', 'choice')
  summaries = row['summaries']
  if not isinstance(summaries, list) or len(summaries) != 2:
    raise Problem("field 'summaries' is not a list of two")
  first, second = (
    nested_text(one, 'text', f"'text' of summary {i}") for i, one in enumerate(summaries)
  )
  choice = read_choice(row, 'choice', {0: 1.0, 1: 0.0})
  return _make_comparison(_summary_prompt(row['info']), first.strip(), second.strip(), choice)


@reads('subreddit', 'title', 'post', 'summary', 'article')
def tldr_posts(row: Mapping) -> Example:
  """OpenAI's Reddit posts with the summaries of their authors: `{"subreddit", "title", "post",
  "summary"}`."""
  require_fields(row, 'subreddit', 'title', 'post', 'summary')
  return Example(
    _summary_prompt(row), demonstration=check_text("field 'summary'", row['summary']).strip()
  )


def _summary_prompt(info) -> str:
  """The prompt for a post or an article to summarise (arXiv 2009.01325, appendix B.1)."""
  if not isinstance(info, Mapping):
    raise Problem("field 'info' is not a JSON object", f' but {type(info).__name__}')
  if info.get('article') is not None:
    return f'Article:\n{nested_text(info, "article")}\n\nTL;DR:'
  subreddit, title, post = (nested_text(info, field) for field in ('subreddit', 'title', 'post'))
  return f'SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:'


_SPEAKER = re.compile(r'\n\n(Human|Assistant):')


@reads('chosen', 'rejected')
def hh(row: Mapping) -> Example:
  """Anthropic's dialogues (arXiv 2204.05862): `{"chosen", "rejected"}`, each a whole transcript.

  The prompt is the conversation before the last answer, for models with a chat template. It must be
  the same in both fields.
  """
  require_fields(row, 'chosen', 'rejected')
  conversations = {field: _split_transcript(row, field) for field in ('chosen', 'rejected')}
  if len(conversations['chosen']) < 2:
    raise Problem("field 'chosen' is not a question and an answer")
  return comparisons(conversations)


@reads('chosen')
def hh_dialogues(row: Mapping) -> Example:
  """Like `hh`, but the opening of `chosen` alone, as in `dialogues`: for policies that converse."""
  require_fields(row, 'chosen')
  return dialogues({'messages': _split_transcript(row, 'chosen')})


def _split_transcript(row: Mapping, field: str) -> list[dict[str, str]]:
  """The messages of a transcript."""
  start, *parts = _SPEAKER.split(check_text(f"field '{field}'", row[field]))
  if start.strip() or not parts:
    raise Problem(f"field '{field}' does not begin with '\\n\\nHuman:'")
  roles = ({'Human': 'user', 'Assistant': 'assistant'}[name] for name in parts[::2])
  turns = zip(roles, parts[1::2], strict=True)
  return [{'role': role, 'content': text.strip()} for role, text in turns]


@reads('chosen', 'rejected')
def hh_transcripts(row: Mapping) -> Example:
  """Like `hh`, with the transcript before the last answer as one text: for models without turns."""
  require_fields(row, 'chosen', 'rejected')
  parts = {
    field: check_text(f"field '{field}'", row[field]).rpartition('\n\nAssistant:')
    for field in ('chosen', 'rejected')
  }
  prompts = {before for before, _, _ in parts.values()}
  if '' in prompts:
    raise Problem("field 'chosen' or 'rejected' is not a question and an answer")
  if len(prompts) > 1:
    raise Problem("field 'rejected' has other messages than the prompt before its last")
  sides = (check_text(f"the answer in '{field}'", part[2].strip()) for field, part in parts.items())
  return _make_comparison(f'{prompts.pop()}\n\nAssistant:', *sides, 1.0)


@reads('turns', 'prompt')
def mt_bench(row: Mapping) -> Example:
  """MT-Bench's questions (arXiv 2306.05685): `{"turns": [first, second]}`.

  On the hub the field is called `"prompt"`. The first question is the prompt; the others are what
  `config.dialogue.user=data` replies.
  """
  field = 'turns' if 'turns' in row else 'prompt'
  require_fields(row, field)
  questions = row[field]
  if not isinstance(questions, list) or not questions:
    raise Problem(f"field '{field}' is not a list of questions")
  first, *others = (check_text(f"a question of field '{field}'", text) for text in questions)
  return Example(first, replies=tuple(others))


@reads('chosen', 'rejected', 'score_chosen', 'score_rejected')
def ultrafeedback(row: Mapping) -> Example:
  """UltraFeedback binarized (arXiv 2310.01377, 2310.16944): `chosen` and `rejected` conversations.

  Where `score_chosen` equals `score_rejected`, the choice was random: that is a tie.
  """
  sides = {field: row[field] for field in ('chosen', 'rejected') if field in row}
  example = comparisons(sides)
  scores = [read_number(row, f'score_{field}', -math.inf, math.inf) for field in sides]
  return example._replace(preference=0.5) if scores[0] == scores[1] else example


@reads('instruction', 'output_1', 'output_2', 'preference')
def alpaca_eval(row: Mapping) -> Example:
  """AlpacaEval's annotations: `{"instruction", "output_1", "output_2", "preference"}`.

  The preference is in [1, 2], 2 if the second output wins; older files have 0 for ties.
  """
  require_fields(row, 'instruction', 'output_1', 'output_2', 'preference')
  given = row['preference']
  second = 0.5 if given == 0 and given is not False else read_number(row, 'preference', 1, 2) - 1
  return _outputs(row, check_text("field 'instruction'", row['instruction']), 1 - second)


@reads('input', 'output_1', 'output_2', 'label')
def llmbar(row: Mapping) -> Example:
  """LLMBar (arXiv 2310.07641): `{"input", "output_1", "output_2", "label"}`, the label 1 or 2."""
  require_fields(row, 'input', 'output_1', 'output_2', 'label')
  prompt = check_text("field 'input'", row['input'])
  return _outputs(row, prompt, read_choice(row, 'label', {1: 1.0, 2: 0.0}))


def _outputs(row, prompt, preference) -> Example:
  sides = [check_text(f"field '{field}'", row[field]) for field in ('output_1', 'output_2')]
  return _make_comparison(prompt, *sides, preference, names=('output_1', 'output_2'))


@reads('instruction', 'input', 'response1', 'response2', 'annotator1', 'annotator2', 'annotator3')
def pandalm(row: Mapping) -> Example:
  """PandaLM's test set (arXiv 2306.05087), judged by three people: 1, 2, or 0 for a tie.

  `{"instruction", "input", "response1", "response2", "annotator1", "annotator2", "annotator3"}`.
  """
  require_fields(row, 'instruction', 'input', 'response1', 'response2')
  prompt = check_text("field 'instruction'", row['instruction'])
  if row['input'] != '':
    prompt += '\n\n' + check_text("field 'input'", row['input'])
  sides = [check_text(f"field '{field}'", row[field]) for field in ('response1', 'response2')]
  votes = [read_choice(row, f'annotator{i}', {1: 1.0, 2: 0.0, 0: 0.5}) for i in (1, 2, 3)]
  return _make_comparison(prompt, *sides, sum(votes) / 3, 3, names=('response1', 'response2'))


@reads('prompt', 'response 1', 'response 2', 'label')
def autoj(row: Mapping) -> Example:
  """Auto-J's test set (arXiv 2310.05470), judged by people: 0 the first, 1 the second, 2 a tie.

  `{"prompt", "response 1", "response 2", "label"}`.
  """
  require_fields(row, 'prompt', 'response 1', 'response 2', 'label')
  prompt = check_text("field 'prompt'", row['prompt'])
  sides = [check_text(f"field '{field}'", row[field]) for field in ('response 1', 'response 2')]
  preference = read_choice(row, 'label', {0: 1.0, 1: 0.0, 2: 0.5})
  return _make_comparison(prompt, *sides, preference, names=('response 1', 'response 2'))


@reads('post', 'left', 'right', 'summary', 'votes', 'votes_left')
def embedded(row: Mapping) -> Example:
  """The embedded task, as `nlhf_jax.tasks.summaries.tfds_posts` writes it."""
  fields = ('post', 'left', 'right', 'summary')
  require_fields(row, *fields)
  post, left, right, summary = (check_text(f"field '{field}'", row[field]) for field in fields)
  votes = read_number(row, 'votes', 1, 1e9, whole=True)
  share = read_number(row, 'votes_left', 0, votes, whole=True) / votes
  return Example(post, left, right, share, int(votes), summary)


def _make_comparison(
  prompt, left, right, preference, votes=None, names=('left', 'right')
) -> Example:
  if left == right:
    raise Problem("fields '{}' and '{}' are the same".format(*names))
  return Example(prompt, left, right, float(preference), votes)
