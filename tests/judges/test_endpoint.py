"""Faults of an endpoint: what is retried, what is given up, and what is stored."""

import contextlib
import gzip
import json
import logging
import sqlite3
import sys
import time
from collections import Counter

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.judges import endpoint as endpoint_module
from nlhf_jax.judges.endpoint import Endpoint, make_query
from nlhf_jax.judges.response_body import Failure, parse
from nlhf_jax.judges.verdicts import Answer
from tests.judges.faults import Reply, completion, serve

pytest.importorskip('openai', reason='the remote judge needs the extra remote')

FINE = Reply(completion('1'))
ERROR = {'error': {'message': 'no luck', 'type': 'x'}}
TIMEOUT = 2.0
SLOW = FINE._replace(delay=20.0)
BUSY = Reply(ERROR, 429)


def once(reply):
  return lambda before: reply if before == 0 else FINE


def always(reply):
  return lambda before: reply


def place(token, log_prob, **top):
  alternatives = [{'token': name, 'logprob': value} for name, value in top.items()]
  return {'token': token, 'logprob': log_prob, 'bytes': None, 'top_logprobs': alternatives}


LIKELY = [place('\n', 0.0), place(' 1', -0.1, **{' 1': -0.1, '2': -3.0, 'x': None})]
# Fault -> (responses, text of the answer or reason of the failure, requests with one retry).
FAULTS = {
  'busy, with a time': (once(BUSY._replace(headers={'Retry-After': '1'})), '1', 2),
  'busy': (once(BUSY), '1', 2),
  'broken once': (once(Reply(ERROR, 500)), '1', 2),
  'slow once': (once(SLOW), '1', 2),
  'cut once': (once(Reply(cut=True)), '1', 2),
  'broken': (always(Reply(ERROR, 503)), 'status_503', 2),
  'broken page': (always(Reply(b'<html>', 502, {'Content-Type': 'text/html'})), 'status_502', 2),
  'always busy': (always(BUSY), 'status_429', 2),
  'busy for an hour': (always(BUSY._replace(headers={'Retry-After': '3600'})), 'status_429', 1),
  'slow': (always(SLOW), 'timeout', 2),
  'cut': (always(Reply(cut=True)), 'connection', 2),
  'too long': (always(Reply(ERROR, 400)), 'status_400', 1),
  'half': (always(Reply(b'{"choices": [')), 'malformed', 1),
  'page': (always(Reply(b'<html>', 200, {'Content-Type': 'text/html'})), 'malformed', 1),
  'latin': (always(Reply(b'"\xff"')), 'malformed', 1),
  'list': (always(Reply([1])), 'malformed', 1),
  'error': (always(Reply(ERROR)), 'malformed', 1),
  'no choices': (always(Reply(completion('1') | {'choices': []})), 'malformed', 1),
  'null': (always(Reply(completion('1') | {'choices': None})), 'malformed', 1),
  'number': (always(Reply(completion(7))), 'malformed', 1),
  'odd tokens': (always(Reply(completion('1', [{}]))), 'malformed', 1),
  'nothing': (always(Reply(completion(''))), '', 1),
  'no text': (always(Reply(completion(None))), '', 1),
  'no usage': (always(Reply(completion('1') | {'usage': None})), '1', 1),
  'likely': (always(Reply(completion(' 1\n', LIKELY))), '1', 1),
  'fine': (always(FINE), '1', 1),
}


def behave(content, before):
  return FAULTS[content][0](before)


def request(content):
  return {'model': 'm', 'messages': [{'role': 'user', 'content': content}], 'temperature': 0.0}


def any_answer(index, answer):
  return True


def query(endpoint, contents, ending=lambda: None, usable=any_answer):
  """content -> (outcome, cached); and the counts."""
  counts, found = Counter(), {}

  def receive(index, outcome, cached):
    assert contents[index] not in found
    found[contents[index]] = outcome, cached

  requests = [request(content) for content in contents]
  make_query(endpoint, counts)(requests, usable, receive, ending)
  return found, counts


def endpoint(served, folder, **settings):
  defaults = {'concurrency': 64, 'timeout': TIMEOUT, 'retries': 1}
  return Endpoint(served.url, 'm', '', folder / 'answers.sqlite', **(defaults | settings))


def kept(folder):
  with contextlib.closing(sqlite3.connect(folder / 'answers.sqlite')) as connection:
    return connection.execute('SELECT count(*) FROM answers').fetchone()[0]


@pytest.fixture(scope='module')
def faulty(tmp_path_factory):
  folder = tmp_path_factory.mktemp('answers')
  with serve(behave) as served:
    return endpoint(served, folder), *query(endpoint(served, folder), list(FAULTS)), served.seen


@pytest.mark.parametrize('name', FAULTS)
def test_faults_are_retried_or_reported(name, faulty):
  _, found, _, seen = faulty
  _, expected, sent = FAULTS[name]
  outcome, cached = found[name]
  assert (outcome.text if isinstance(outcome, Answer) else outcome.reason) == expected
  assert not cached
  assert sum(it.content == name for it in seen) == sent


def test_every_request_is_counted(faulty):
  _, _, counts, seen = faulty
  assert counts['requests'] == len(seen) == sum(sent for _, _, sent in FAULTS.values())


def test_retries_wait_as_requested(faulty):
  arrived = {name: [it.at for it in faulty[3] if it.content == name] for name in FAULTS}
  requested, default = (
    arrived[name][1] - arrived[name][0] for name in ('busy, with a time', 'busy')
  )
  assert requested > 0.9
  assert default > 0.3


def test_log_probabilities_are_of_the_first_word(faulty):
  answer, _ = faulty[1]['likely']
  assert answer == Answer('1', {' 1': -0.1, '2': -3.0}, 100, 2)
  assert faulty[1]['fine'][0].first == {}


def test_responses_have_the_published_schema():
  chat = pytest.importorskip('openai.types.chat')
  content = [place('\n', 0.0), place(' 1', -0.1, **{' 1': -0.1, '2': -3.0})]
  reply = completion(' 1\n', content) | {'created': 0, 'model': 'm'}
  reply['usage']['total_tokens'] = 102
  chat.ChatCompletion.model_validate(reply, strict=True)
  assert parse(json.dumps(reply).encode()) == Answer('1', {' 1': -0.1, '2': -3.0}, 100, 2)


def test_answers_are_stored_and_failures_are_not(faulty):
  site, found, _, _ = faulty
  answered = [name for name, (outcome, _) in found.items() if isinstance(outcome, Answer)]
  assert kept(site.cache.parent) == len(answered)
  again, counts = query(site, answered)  # the endpoint has stopped
  assert counts['requests'] == 0
  assert {name: outcome for name, (outcome, _) in again.items()} == {
    name: found[name][0] for name in answered
  }
  assert all(cached for _, cached in again.values())


def test_each_field_distinguishes_requests(tmp_path):
  with serve(lambda content, before: FINE) as served, serve(lambda content, before: FINE) as other:
    counts = Counter()
    here = make_query(endpoint(served, tmp_path), counts)
    there = make_query(endpoint(other, tmp_path), counts)
    one = request('x')
    for site, sent in (
      (here, one),
      (here, one | {'temperature': 1.0}),
      (here, one | {'model': 'n'}),
      (here, request('y')),
      (here, one | {'seed': 1}),
      (there, one),
    ):
      before = counts['requests']
      for _ in range(2):
        site([sent], any_answer, lambda *outcome: None, lambda: None)
      assert counts['requests'] == before + 1


def test_concurrency_is_limited(tmp_path):
  with serve(lambda content, before: FINE._replace(delay=0.2)) as served:
    found, _ = query(endpoint(served, tmp_path, concurrency=3), [str(i) for i in range(9)])
    assert len(found) == 9
    assert max(served.at_once) == 3


def test_requests_per_minute_are_limited(tmp_path):
  def busy_once(content, before):
    return BUSY if content == '0' and before == 0 else FINE

  start = time.monotonic()
  with serve(busy_once) as served:
    found, _ = query(endpoint(served, tmp_path, per_minute=240.0), ['0', '1', '2', '3'])
    assert all(isinstance(outcome, Answer) for outcome, _ in found.values())
    assert len(served.seen) == 5  # one of them is a retry
    assert all(it.at - start > 0.25 * turn for turn, it in enumerate(served.seen))


KEY = 'sk-very-secret'


@pytest.fixture
def key(monkeypatch):
  monkeypatch.setenv('JUDGE_KEY', KEY)
  return {'key': 'JUDGE_KEY'}


def test_key_appears_only_in_requests(key, tmp_path, caplog, capfd):
  caplog.set_level(logging.DEBUG)
  repeated = {'error': {'message': f'your key {KEY} is not good enough'}}

  def leaking(content, before):
    return Reply(repeated, 400) if content == 'leak' else FINE

  with serve(leaking) as served:
    site = endpoint(served, tmp_path)._replace(**key)
    found, _ = query(site, ['leak', 'x'])
    assert {it.headers['authorization'] for it in served.seen} == {f'Bearer {KEY}'}
  assert 'is not good enough' in found['leak'][0].detail
  places = [
    repr(found),
    repr(site),
    caplog.text,
    ''.join(capfd.readouterr()),
    site.cache.read_bytes().decode('latin'),
  ]
  assert caplog.records
  assert not any(KEY in text for text in places)


@pytest.mark.parametrize('status', [401, 404])
def test_fatal_status_ends_at_once(status, key, tmp_path):
  repeated = {'error': {'message': f'{KEY}: not you'}}
  with serve(lambda content, before: Reply(repeated, status)) as served:
    site = endpoint(served, tmp_path, concurrency=2)._replace(**key)
    with pytest.raises(UserError, match=r"cannot be queried .*variable 'JUDGE_KEY'") as raised:
      query(site, [str(i) for i in range(50)])
    assert len(served.seen) <= 4
  assert KEY not in str(raised.value)
  assert raised.value.__suppress_context__


@pytest.mark.parametrize(
  ('settings', 'sentence'),
  [
    ({'key': 'NO_SUCH_KEY'}, 'export NO_SUCH_KEY='),
    ({'key': 'ODD_KEY'}, "key='ODD_KEY' is not an environment variable that holds a key"),
    ({'url': 'localhost:8000'}, "url='localhost:8000' must be like https://"),
    ({'url': 'http://x:y'}, "url='http://x:y' must be like https://"),
    ({'url': 'http://[x'}, r"url='http://\[x' must be like https://"),
    ({'url': 'http://x y/v1'}, "url='http://x y/v1' must be like https://"),
    ({'url': 'http://\u2603/v1'}, 'must be like https://'),
    ({'url': 'http://x/\x1b[2J'}, r"url='http://x/\\x1b\[2J' must be like https://"),
    ({'url': 'http://[v1.x]/v1'}, 'must be like https://'),
    ({'url': f'http://{KEY}@x/v1'}, 'no user, no password and no query'),
    ({'url': f'http://x/v1?key={KEY}'}, 'no user, no password and no query'),
  ],
)
def test_invalid_settings_are_refused_first(settings, sentence, tmp_path, monkeypatch):
  monkeypatch.setenv('ODD_KEY', f'{KEY}€')
  site = Endpoint('http://127.0.0.1:9/v1', 'm', '', tmp_path / 'answers.sqlite')
  with pytest.raises(UserError, match=sentence) as raised:
    make_query(site._replace(**settings), Counter())
  assert KEY not in str(raised.value)


def test_missing_package_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'openai', None)
  with pytest.raises(UserError, match=r"pip install '\.\[remote\]'"):
    make_query(Endpoint('http://127.0.0.1:9/v1', 'm', '', tmp_path / 'answers.sqlite'), Counter())


def test_other_files_are_not_overwritten(tmp_path):
  path = tmp_path / 'answers.sqlite'
  path.write_text('something of the user, and longer than the header of a database. ' * 9)
  before = path.read_bytes()
  with serve(lambda content, before: FINE) as served:
    with pytest.raises(UserError, match=r"cannot store the judge's answers in .*not a database"):
      query(endpoint(served, tmp_path), ['x'])
    assert not served.seen
  assert path.read_bytes() == before


def test_unreachable_endpoint_is_a_connection_failure(tmp_path):
  site = Endpoint('http://127.0.0.1:9/v1', 'm', '', tmp_path / 'answers.sqlite', retries=0)
  found, _ = query(site, ['x'])
  assert found['x'][0].reason == 'connection'
  assert isinstance(found['x'][0], Failure)


def test_unusable_answers_are_requested_again(tmp_path):
  with serve(lambda content, before: FINE) as served:
    site = endpoint(served, tmp_path)
    query(site, ['x'], usable=lambda index, answer: False)
    assert kept(tmp_path) == 0
    query(site, ['x'])
    assert kept(tmp_path) == 1
    query(site, ['x'], usable=lambda index, answer: False)  # another reader
    assert len(served.seen) == 3


def test_damaged_answers_are_requested_again(tmp_path):
  with serve(lambda content, before: FINE) as served:
    site = endpoint(served, tmp_path)
    before, _ = query(site, ['a', 'b', 'c', 'd'])
    with contextlib.closing(sqlite3.connect(site.cache)) as connection, connection:
      names = [name for (name,) in connection.execute('SELECT name FROM answers')]
      changes = [('["1"', '["2"'), ('"1"', 'x'), ('{', '\ud7ff')]
      for name, change in zip(names, changes, strict=False):
        row = (*change, name)
        connection.execute('UPDATE answers SET answer = replace(answer, ?, ?) WHERE name = ?', row)
    after, counts = query(site, ['a', 'b', 'c', 'd'])
    assert counts == {'damaged_in_cache': 3, 'requests': 3}
    assert {name: outcome for name, (outcome, _) in after.items()} == {
      name: outcome for name, (outcome, _) in before.items()
    }


def test_redirects_are_refused(tmp_path):
  with serve(lambda content, before: FINE) as other:
    place = {'Location': f'{other.url}/chat/completions'}
    with (
      serve(lambda content, before: Reply(b'', 307, place)) as served,
      pytest.raises(UserError, match=r'redirects \(307\) to http://.*; redirects are not followed'),
    ):
      query(endpoint(served, tmp_path), ['x'])
    assert not other.seen


def test_long_responses_are_not_read_to_the_end(tmp_path, monkeypatch):
  monkeypatch.setattr(endpoint_module, 'MAX_BODY', 2**20)
  bomb = gzip.compress(bytes(2**25))
  packed = Reply(bomb, 200, {'Content-Encoding': 'gzip'})

  def behave(content, before):
    return packed if content == 'packed' else Reply(completion('x' * 2**21))

  with serve(behave) as served:
    found, _ = query(endpoint(served, tmp_path), ['packed', 'plain'])
    assert {outcome.reason for outcome, _ in found.values()} == {'too_large'}
    assert len(served.seen) == 2
