"""An endpoint that misbehaves: what is asked again, what is given up, and what is kept."""

import contextlib
import json
import logging
import sqlite3
import sys
import time
from collections import Counter

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.judges.endpoint import Endpoint, Failure, make_query, parse
from nlhf_jax.judges.verdicts import Answer
from tests.judges.faults import Reply, said, serve

pytest.importorskip('openai', reason='the remote judge needs the extra remote')

FINE = Reply(said('1'))
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
# What comes, what becomes of it, and how often it is asked for: with one retry, once or twice.
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
  'no choices': (always(Reply(said('1') | {'choices': []})), 'malformed', 1),
  'null': (always(Reply(said('1') | {'choices': None})), 'malformed', 1),
  'number': (always(Reply(said(7))), 'malformed', 1),
  'odd tokens': (always(Reply(said('1', [{}]))), 'malformed', 1),
  'nothing': (always(Reply(said(''))), '', 1),
  'no text': (always(Reply(said(None))), '', 1),
  'no usage': (always(Reply(said('1') | {'usage': None})), '1', 1),
  'likely': (always(Reply(said(' 1\n', LIKELY))), '1', 1),
  'fine': (always(FINE), '1', 1),
}


def behave(content, before):
  return FAULTS[content][0](before)


def request(content):
  return {'model': 'm', 'messages': [{'role': 'user', 'content': content}], 'temperature': 0.0}


def ask(endpoint, contents, ending=lambda: None):
  """content -> (outcome, kept); and the counts."""
  counts, told = Counter(), {}

  def tell(at, outcome, kept):
    assert contents[at] not in told
    told[contents[at]] = outcome, kept

  make_query(endpoint, counts)([request(content) for content in contents], tell, ending)
  return told, counts


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
    return endpoint(served, folder), *ask(endpoint(served, folder), list(FAULTS)), served.seen


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_is_asked_about_again_or_told(name, faulty):
  _, told, _, seen = faulty
  _, becomes, asked = FAULTS[name]
  outcome, was_kept = told[name]
  assert (outcome.text if isinstance(outcome, Answer) else outcome.reason) == becomes
  assert not was_kept
  assert sum(it.content == name for it in seen) == asked


def test_every_request_is_counted(faulty):
  _, _, counts, seen = faulty
  assert counts['requests'] == len(seen) == sum(asked for _, _, asked in FAULTS.values())


def test_it_waits_as_long_as_it_is_told_or_a_while(faulty):
  arrived = {name: [it.at for it in faulty[3] if it.content == name] for name in FAULTS}
  named, unnamed = (arrived[name][1] - arrived[name][0] for name in ('busy, with a time', 'busy'))
  assert named > 0.9
  assert unnamed > 0.3


def test_log_probabilities_are_those_of_the_first_word(faulty):
  answer, _ = faulty[1]['likely']
  assert answer == Answer('1', {' 1': -0.1, '2': -3.0}, 100, 2)
  assert faulty[1]['fine'][0].first == {}


def test_the_shape_of_these_answers_is_the_published_one():
  chat = pytest.importorskip('openai.types.chat')
  content = [place('\n', 0.0), place(' 1', -0.1, **{' 1': -0.1, '2': -3.0})]
  reply = said(' 1\n', content) | {'created': 0, 'model': 'm'}
  reply['usage']['total_tokens'] = 102
  chat.ChatCompletion.model_validate(reply, strict=True)
  assert parse(json.dumps(reply).encode()) == Answer('1', {' 1': -0.1, '2': -3.0}, 100, 2)


def test_answers_are_kept_and_failures_are_not(faulty):
  site, told, _, _ = faulty
  answered = [name for name, (outcome, _) in told.items() if isinstance(outcome, Answer)]
  assert kept(site.cache.parent) == len(answered)
  again, counts = ask(site, answered)  # no one serves any more
  assert counts['requests'] == 0
  assert {name: outcome for name, (outcome, _) in again.items()} == {
    name: told[name][0] for name in answered
  }
  assert all(was_kept for _, was_kept in again.values())


def test_what_matters_makes_it_another_question(tmp_path):
  with serve(lambda content, before: FINE) as served, serve(lambda content, before: FINE) as other:
    counts = Counter()
    here = make_query(endpoint(served, tmp_path), counts)
    there = make_query(endpoint(other, tmp_path), counts)
    one = request('x')
    for site, asked in (
      (here, one),
      (here, one | {'temperature': 1.0}),
      (here, one | {'model': 'n'}),
      (here, request('y')),
      (here, one | {'seed': 1}),
      (there, one),
    ):
      before = counts['requests']
      for _ in range(2):
        site([asked], lambda *told: None, lambda: None)
      assert counts['requests'] == before + 1


def test_no_more_are_on_their_way_than_allowed(tmp_path):
  with serve(lambda content, before: FINE._replace(delay=0.2)) as served:
    told, _ = ask(endpoint(served, tmp_path, concurrency=3), [str(i) for i in range(9)])
    assert len(told) == 9
    assert max(served.at_once) == 3


def test_no_more_are_sent_a_minute_than_allowed(tmp_path):
  def busy_once(content, before):
    return BUSY if content == '0' and before == 0 else FINE

  start = time.monotonic()
  with serve(busy_once) as served:
    told, _ = ask(endpoint(served, tmp_path, per_minute=240.0), ['0', '1', '2', '3'])
    assert all(isinstance(outcome, Answer) for outcome, _ in told.values())
    assert len(served.seen) == 5  # the retry has a turn of its own
    assert all(it.at - start > 0.25 * turn for turn, it in enumerate(served.seen))


KEY = 'sk-very-secret'


@pytest.fixture
def key(monkeypatch):
  monkeypatch.setenv('JUDGE_KEY', KEY)
  return {'key': 'JUDGE_KEY'}


def test_the_key_is_sent_and_appears_nowhere_else(key, tmp_path, caplog, capfd):
  caplog.set_level(logging.DEBUG)
  repeated = {'error': {'message': f'your key {KEY} is not good enough'}}

  def leaking(content, before):
    return Reply(repeated, 400) if content == 'leak' else FINE

  with serve(leaking) as served:
    site = endpoint(served, tmp_path)._replace(**key)
    told, _ = ask(site, ['leak', 'x'])
    assert {it.headers['authorization'] for it in served.seen} == {f'Bearer {KEY}'}
  assert 'is not good enough' in told['leak'][0].detail
  places = [
    repr(told),
    repr(site),
    caplog.text,
    ''.join(capfd.readouterr()),
    site.cache.read_bytes().decode('latin'),
  ]
  assert caplog.records
  assert not any(KEY in text for text in places)


@pytest.mark.parametrize('status', [401, 404])
def test_what_is_wrong_for_all_ends_it_at_once(status, key, tmp_path):
  repeated = {'error': {'message': f'{KEY}: not you'}}
  with serve(lambda content, before: Reply(repeated, status)) as served:
    site = endpoint(served, tmp_path, concurrency=2)._replace(**key)
    with pytest.raises(UserError, match=r"cannot be asked .*variable 'JUDGE_KEY'") as raised:
      ask(site, [str(i) for i in range(50)])
    assert len(served.seen) <= 4
  assert KEY not in str(raised.value)
  assert raised.value.__suppress_context__


@pytest.mark.parametrize(
  ('settings', 'sentence'),
  [
    ({'key': 'NO_SUCH_KEY'}, 'export NO_SUCH_KEY='),
    ({'key': 'ODD_KEY'}, "key='ODD_KEY' is no environment variable that holds a key"),
    ({'url': 'localhost:8000'}, "url='localhost:8000' must be as https://"),
    ({'url': 'http://x:y'}, "url='http://x:y' must be as https://"),
    ({'url': 'http://[x'}, r"url='http://\[x' must be as https://"),
    ({'url': f'http://{KEY}@x/v1'}, 'an address alone'),
    ({'url': f'http://x/v1?key={KEY}'}, 'an address alone'),
  ],
)
def test_a_setting_that_cannot_work_is_refused_first(settings, sentence, tmp_path, monkeypatch):
  monkeypatch.setenv('ODD_KEY', f'{KEY}€')
  site = Endpoint('http://127.0.0.1:9/v1', 'm', '', tmp_path / 'answers.sqlite')
  with pytest.raises(UserError, match=sentence) as raised:
    make_query(site._replace(**settings), Counter())
  assert KEY not in str(raised.value)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'openai', None)
  with pytest.raises(UserError, match=r"pip install 'nlhf-jax\[remote\]'"):
    make_query(Endpoint('http://127.0.0.1:9/v1', 'm', '', tmp_path / 'answers.sqlite'), Counter())


def test_a_file_that_is_no_cache_is_left_alone(tmp_path):
  path = tmp_path / 'answers.sqlite'
  path.write_text('something of the user, and longer than the header of a database. ' * 9)
  before = path.read_bytes()
  with serve(lambda content, before: FINE) as served:
    with pytest.raises(UserError, match=r"cannot keep the judge's answers in .*not a database"):
      ask(endpoint(served, tmp_path), ['x'])
    assert not served.seen
  assert path.read_bytes() == before


def test_no_one_there_is_a_failure_of_the_connection(tmp_path):
  site = Endpoint('http://127.0.0.1:9/v1', 'm', '', tmp_path / 'answers.sqlite', retries=0)
  told, _ = ask(site, ['x'])
  assert told['x'][0].reason == 'connection'
  assert isinstance(told['x'][0], Failure)
