"""Bodies of responses: answers in all shapes, servers' sentences, and malformed ones."""

import json
import random

import pytest

from nlhf_jax.judges.response_body import Failure, parse, server_sentence, status_failure
from nlhf_jax.judges.verdicts import Answer, read_label
from tests.judges.faults import completion

SENTENCE = 'the longest context is 4096 tokens and 9000 were asked for'


def as_bytes(body):
  return body.encode() if isinstance(body, str) else json.dumps(body).encode()


def test_field_answers_reach_the_user(shared):
  lines = (shared / 'field/judges/server_answers.jsonl').read_text().splitlines()
  assert len(lines) > 5
  for row in map(json.loads, lines):
    if row['status'] == 200:
      assert parse(as_bytes(row['body'])).text == '1'
    else:
      failure = status_failure(row['status'], as_bytes(row['body']), '')
      assert SENTENCE in failure.detail, row
      assert '\n' not in failure.detail
      assert not failure.fatal


@pytest.mark.parametrize(
  'body',
  [
    {'object': 'error', 'message': SENTENCE, 'code': 40303},
    {'type': 'error', 'error': {'type': 'invalid_request_error', 'message': SENTENCE}},
    {'statusCode': 400, 'message': [SENTENCE], 'error': 'Bad Request'},
    {'errors': [{'code': 7003, 'message': SENTENCE}], 'success': False},
    {'detail': {'error': {'message': SENTENCE}}},
    {'error': {'message': None, 'detail': SENTENCE}},
    {'fault': {'faultstring': SENTENCE}},
    {'Error': {'Message': SENTENCE}},
    json.dumps(SENTENCE),
    f'<!doctype html><style>a {{}}</style><title>400</title><p>{SENTENCE}</p>',
    f'<title>{SENTENCE}</title>',
  ],
)
def test_sentences_are_found_in_other_shapes(body):
  assert server_sentence(as_bytes(body)) == SENTENCE


def test_sentences_are_safe_to_print():
  assert server_sentence(b'') == 'an empty response'
  assert server_sentence(b'{"error": "a\\u001b[2J\\ud800"}') == 'a\\x1b[2J\ufffd'
  assert len(server_sentence(b'long ' * 10_000)) < 400
  secret = 'sk-0123456789/ab'
  for text in (secret, f'key={secret.replace("/", "%2F")}'):
    assert '0123' not in server_sentence(as_bytes({'error': text}), secret)


@pytest.mark.parametrize(
  ('status', 'body', 'fatal'),
  [
    (401, '', True),
    (402, {'error': 'no credit'}, True),
    (403, {'error': 'no'}, True),
    (404, {'error': 'no'}, True),
    (400, {'error': {'message': "The model 'm' does not exist", 'code': 'model_not_found'}}, True),
    (400, {'error': 'Invalid model name passed in model=m'}, True),
    (422, {'detail': 'm is not a valid model ID'}, True),
    (400, {'error': {'message': 'Model Not Exist'}}, True),
    (400, {'error': "This model's maximum context length is 4096 tokens."}, False),
    (400, {'error': SENTENCE}, False),
    (500, {'error': 'model not found on this worker'}, False),
  ],
)
def test_what_any_request_would_get_is_fatal(status, body, fatal):
  assert status_failure(status, as_bytes(body), '').fatal == fatal


def test_errors_with_status_200_are_failures():
  found = parse(as_bytes({'error': {'message': 'no credit left', 'code': 402}}))
  assert found == Failure('malformed', "no answer but 'no credit left'", fatal=True)
  assert not parse(as_bytes({'error': SENTENCE})).fatal


def with_message(message, **choice):
  body = completion('')
  body['choices'][0] |= {'message': message, **choice}
  return as_bytes(body)


@pytest.mark.parametrize(
  ('message', 'text'),
  [
    ({'content': ' 1\n'}, '1'),
    ({'content': [{'type': 'text', 'text': '1'}, {'type': 'text', 'text': '.'}]}, '1.'),
    ({'content': ['1', {'text': '.'}]}, '1.'),
    ({'content': [{'type': 'reasoning', 'text': '2'}, {'type': 'output_text', 'text': '1'}]}, '1'),
    ({'content': None, 'refusal': 'I must not.'}, 'I must not.'),
    ({'content': None, 'reasoning_content': '1'}, ''),
    ({}, ''),
    ({'content': 'a\ud83d'}, 'a\ufffd'),
  ],
)
def test_content_is_read_in_all_shapes(message, text):
  assert parse(with_message(message)).text == text


@pytest.mark.parametrize('reason', ['length', 'MAX_TOKENS', 'content_filter'])
def test_cut_answers_are_known(reason):
  assert parse(with_message({'content': '1'}, finish_reason=reason)).cut


@pytest.mark.parametrize('reason', ['stop', None, 7, ['length'], {}])
def test_whole_answers_are_known(reason):
  assert not parse(with_message({'content': '1'}, finish_reason=reason)).cut


JUNK = [
  None,
  True,
  -1,
  10**400,
  1e308,
  '',
  'a',
  '\x1b[2J',
  '\ud800',
  [],
  [None],
  [[]],
  {},
  {'a': 1},
]


def mutations():
  """Malformed bodies: junk in the place of each value of a good one, and cuts and flips of it."""
  place = {'token': '1', 'logprob': -0.1, 'top_logprobs': [{'token': '2', 'logprob': -3.0}]}
  good = completion('1', [place])
  whole = as_bytes(good)

  def paths(value, path=()):
    yield path
    if isinstance(value, dict | list):
      for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from paths(item, (*path, name))

  for path in list(paths(good))[1:]:
    for junk in JUNK:
      body = json.loads(whole)
      value = body
      for name in path[:-1]:
        value = value[name]
      value[path[-1]] = junk
      yield json.dumps(body).encode()
  chance = random.Random(0)
  for _ in range(60):
    cut = bytearray(whole[: chance.randrange(len(whole))])
    yield bytes(cut)
    flipped = bytearray(whole)
    flipped[chance.randrange(len(whole))] = chance.randrange(256)
    yield bytes(flipped)
  yield from (
    b'[' * 100_000,
    b'{"a":' * 100_000,
    b'NaN',
    b'9' * 5000,
    b'"\xff"',
    b'data: {"choices"',
  )
  yield whole.replace(b'-0.1', b'NaN')
  yield whole.replace(b'-0.1', b'-Infinity')


def test_malformed_bodies_are_failures_or_answers():
  bodies = list(mutations())
  assert len(bodies) > 300
  for body in bodies:
    found = parse(body)
    assert isinstance(found, Answer | Failure)
    if isinstance(found, Answer):
      assert read_label(found) in (None, 1.0, 0.0, 0.5) or 0 < read_label(found) < 1
      found.text.encode()
      assert 0 <= found.prompt_tokens < 10**9
    for status in (400, 500):
      status_failure(status, body, 'secret-key').detail.encode()
