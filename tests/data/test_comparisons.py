"""Comparisons in JSON lines: every line is read, or refused with its number and its field."""

import json

import pytest

from nlhf_jax.data import conversations, examples, readers, schemas
from nlhf_jax.errors import UserError

GOOD = {'prompt': 'Say hi.', 'chosen': 'Hi!', 'rejected': 'No.'}
BAD = {
  'not valid JSON (column 12: Expecting value)': b'{"prompt": oops}',
  'not valid JSON (column 12: Unterminated string starting at)': b'{"prompt": "cut sho',
  'not valid JSON (Exceeds the limit': b'{"prompt": ' + b'9' * 5000 + b'}',
  'not valid JSON (maximum recursion depth': b'[' * 100_000,
  'not UTF-8 (byte 13 of the line)': '{"prompt": "\u00e9"}'.encode('latin-1'),
  'not a JSON object but list': json.dumps([GOOD]).encode(),
  'not a JSON object but str': b'"text"',
  'not a JSON object but NoneType': b'null',
  "field 'rejected' is missing; it has ['chosen', 'prompt']": b'{"prompt": "a", "chosen": "b"}',
  "field 'prompt' is missing; it has []": b'{}',
  "field 'prompt' is neither a string nor a list of messages but int": json.dumps(
    {**GOOD, 'prompt': 3}
  ).encode(),
  "field 'rejected' is neither a string nor a list of messages but NoneType": json.dumps(
    {**GOOD, 'rejected': None}
  ).encode(),
  "field 'prompt' is empty": json.dumps({**GOOD, 'prompt': ''}).encode(),
  "field 'rejected' is empty": json.dumps({**GOOD, 'rejected': ' \t\n\u2003'}).encode(),
  "field 'chosen' holds half of a surrogate pair": json.dumps(
    {**GOOD, 'chosen': '\ud83d'}
  ).encode(),
  "fields 'chosen' and 'rejected' are the same": json.dumps({**GOOD, 'rejected': 'Hi!'}).encode(),
}


def system(content):
  return {'role': 'system', 'content': content}


def user(content):
  return {'role': 'user', 'content': content}


def assistant(content):
  return {'role': 'assistant', 'content': content}


TURNS = [system('Be kind.'), user('Hello?'), assistant('Yes?'), user('Say hi.')]
MESSAGES = tuple(conversations.Message(**message) for message in TURNS)
BAD_MESSAGES = {
  "field 'prompt' is empty": {'prompt': []},
  "a message of field 'prompt' is not a JSON object but str": {'prompt': ['Say hi.']},
  "a message of field 'prompt' has no 'role'; it has ['content']": {'prompt': [{'content': 'a'}]},
  "a message of field 'prompt' has no 'content'; it has ['role']": {'prompt': [{'role': 'user'}]},
  "a message of field 'prompt' has a role that is none of system, user, assistant: 'tool'": {
    'prompt': [user('a'), {'role': 'tool', 'content': 'b'}]
  },
  "a message of field 'prompt' has a role that is none of system, user, assistant: ['user']": {
    'prompt': [{'role': ['user'], 'content': 'b'}]
  },
  "'content' in a message of field 'prompt' has a part that is not text: 'a'": {
    'prompt': [user(['a'])]
  },
  "'content' in a message of field 'prompt' has a part that is not text: {'type': 'image'": {
    'prompt': [user([{'type': 'text', 'text': 'a'}, {'type': 'image', 'text': None}])]
  },
  "'content' in a message of field 'prompt' is empty": {'prompt': [user(' ')]},
  "'content' in a message of field 'chosen' holds half of a surrogate pair": {
    'chosen': [assistant('\ud83d')]
  },
  "field 'prompt' is not user and assistant in turn, from a user to a user": {
    'prompt': [user('a'), assistant('b')]
  },
  "field 'prompt' has a system message that is not the first": {
    'prompt': [user('a'), system('b'), assistant('c'), user('d')]
  },
  "field 'chosen' does not end with a message of the assistant": {'chosen': [user('Say hi.')]},
  "field 'rejected' has other messages than the prompt before its last": {
    'rejected': [user('Say bye.'), assistant('No.')]
  },
}
NO_TURNS = (
  [system('a')],
  [assistant('a')],
  [assistant('a'), user('b')],
  [user('a'), user('b')],
  [user('a'), assistant('b'), assistant('c'), user('d')],
)


@pytest.fixture
def write(tmp_path):
  """A function that writes lines to a file and gives its name."""

  def write(*lines, end=b'\n', start=b''):
    path = tmp_path / 'mine.jsonl'
    path.write_bytes(start + end.join(lines))
    return str(path)

  return write


def line(**fields):
  return json.dumps(GOOD | fields, ensure_ascii=False).encode()


def read(path, skip_bad=False):
  """(number, record) of every line that can be used."""
  records = list(examples.read_examples(path, 'comparisons', '', skip_bad))
  entries = examples.read_entries(examples.locate(path, 'comparisons', ''))
  found = [
    (number, example) for _, number, example in entries if isinstance(example, schemas.Example)
  ]
  assert [record for _, record in found] == records
  return found


@pytest.mark.parametrize(
  'last', [(), (b'',), (b'', b'  ', b'')], ids=['none', 'one', 'blank lines']
)
@pytest.mark.parametrize('end', [b'\n', b'\r\n'], ids=['Unix', 'Windows'])
@pytest.mark.parametrize('start', [b'', b'\xef\xbb\xbf'], ids=['plain', 'byte-order mark'])
def test_all_usual_line_and_file_endings_work(write, start, end, last):
  path = write(line(), b'', line(chosen='Hi\u2028there \U0001f389'), *last, start=start, end=end)
  assert read(path) == [
    (1, schemas.Example('Say hi.', 'Hi!', 'No.')),
    (3, schemas.Example('Say hi.', 'Hi\u2028there \U0001f389', 'No.')),
  ]


def test_escapes_are_decoded_and_other_fields_ignored(write):
  ((_, record),) = read(write(line(chosen='\U0001f389 \u00e9'), end=b''))
  assert record.left == '\U0001f389 \u00e9'
  escaped = json.dumps(GOOD | {'chosen': '\U0001f389 \u00e9', 'score': 0.5, 'x': None}).encode()
  assert b'\\ud83c\\udf89' in escaped
  assert read(write(escaped))[0][1] == record


@pytest.mark.parametrize(
  'content', [b'', b'\n', b'\r\n \t\r\n\n', b'\xef\xbb\xbf', b'\xef\xbb\xbf\n']
)
def test_blank_lines_give_no_examples(write, content):
  assert read(write(content)) == []


@pytest.mark.parametrize('problem', BAD)
def test_a_bad_line_is_refused_with_a_remedy(write, problem):
  path = write(line(), b'', BAD[problem], line())
  with pytest.raises(UserError) as refused:
    read(path)
  sentence = str(refused.value)
  assert sentence.startswith(f'{path}, line 3: {problem}')
  assert '--config.data.skip_bad=True' in sentence
  assert len(sentence.splitlines()) == 1


def test_skipped_bad_lines_are_counted_by_reason(write, capsys):
  path = write(line(), *BAD.values(), line(), *BAD.values())
  assert [number for number, _ in read(path, skip_bad=True)] == [1, len(BAD) + 2]
  printed = capsys.readouterr().out.splitlines()
  assert f'{path}: skipped 8 rows: not valid JSON.' in printed
  assert f"{path}: skipped 2 rows: field 'prompt' is empty." in printed
  assert sum(int(text.split()[2]) for text in printed) == 2 * len(BAD)


def test_nothing_is_printed_if_nothing_is_skipped(write, capsys):
  read(write(line()), skip_bad=True)
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize(('name', 'reason'), [('none.jsonl', 'No such file or directory')])
def test_the_error_names_an_unreadable_file(tmp_path, name, reason):
  path = str(tmp_path / name)
  with pytest.raises(UserError) as refused:
    read(path)
  assert str(refused.value) == (
    f"config.data.path: cannot read '{path}': {reason}; give a file, a folder of files, or the "
    'name of a dataset on the hub.'
  )


@pytest.mark.parametrize('prompt', ['Say hi.', TURNS], ids=['question', 'conversation'])
@pytest.mark.parametrize('whole', [False, True], ids=['the last message', 'all messages'])
def test_responses_may_be_messages_or_whole_conversations(write, prompt, whole):
  before = TURNS if prompt is TURNS else [user(prompt)]
  sides = {
    field: [*(before if whole else []), assistant(GOOD[field])] for field in ('chosen', 'rejected')
  }
  expected = schemas.Example(MESSAGES if prompt is TURNS else prompt, 'Hi!', 'No.')
  path = write(line(prompt=prompt, **sides), line(prompt=prompt), json.dumps(sides).encode())
  assert [record for _, record in read(path, skip_bad=True)] == [expected] * (2 + whole)


def test_a_question_equals_a_conversation_of_one_message(write):
  ((_, one), (_, other)) = read(write(line(), line(prompt=[user('Say hi.') | {'name': 'x'}])))
  assert one == other
  assert conversations.messages(one.prompt) == (conversations.Message('user', 'Say hi.'),)


def test_conversations_are_hashable(write):
  ((_, record),) = read(write(line(prompt=TURNS)))
  assert record.prompt == MESSAGES
  assert record.prompt in {MESSAGES}
  assert conversations.messages(record.prompt) == MESSAGES


@pytest.mark.parametrize('problem', BAD_MESSAGES)
def test_bad_messages_are_refused_with_the_problem(problem):
  with pytest.raises(readers.Problem) as refused:
    schemas.comparisons(GOOD | BAD_MESSAGES[problem])
  assert str(refused.value).startswith(problem)


@pytest.mark.parametrize('turns', NO_TURNS)
def test_turns_in_a_wrong_order_are_refused(turns):
  with pytest.raises(readers.Problem, match="field 'prompt' is not user and assistant in turn"):
    schemas.comparisons(GOOD | {'prompt': turns})


def test_a_missing_prompt_comes_from_both_conversations():
  row = {'chosen': [user('a'), assistant('b')], 'rejected': [user('A'), assistant('c')]}
  with pytest.raises(readers.Problem, match="field 'rejected' has other messages than the prompt"):
    schemas.comparisons(row)
  with pytest.raises(readers.Problem, match="field 'prompt' is missing"):
    schemas.comparisons(row | {'chosen': [assistant('b')]})
