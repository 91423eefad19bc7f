"""A language model as a judge: verdicts, unusable answers, both orders, cost, interruptions."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax import progress
from nlhf_jax.data import tokenizers
from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.judges import remote
from nlhf_jax.judges.endpoint import Endpoint
from nlhf_jax.judges.judge import judge_from_texts, vote, with_feedback
from nlhf_jax.judges.judge_prompts import SUMMARIES
from nlhf_jax.judges.remote import make_remote_judge
from nlhf_jax.structs import Comparison, Responses
from nlhf_jax.training import interrupts
from tests.judges.faults import Reply, completion, serve

pytest.importorskip('openai', reason='the remote judge needs the extra remote')

ROOT = Path(__file__).parents[2]
LIMIT = 300  # seconds
REFUSED = Reply({'error': {'message': 'the text is too long'}}, 400)


def shown(content):
  """The left and the right text of a question."""
  lines = content.split('\n\n')
  return lines[2].removeprefix('Summary 1 - '), lines[3].removeprefix('Summary 2 - ')


def prefer_longer(content, before):
  left, right = shown(content)
  return Reply(completion('1' if len(left) > len(right) else '2'))


def make(served, folder, template=SUMMARIES, concurrency=8, **settings):
  site = Endpoint(
    served.url, 'm', '', folder / 'answers.sqlite', concurrency=concurrency, timeout=30.0, retries=0
  )
  return make_remote_judge(site, template, **settings)


def kept(folder):
  with contextlib.closing(sqlite3.connect(folder / 'answers.sqlite')) as connection:
    return connection.execute('SELECT count(*) FROM answers').fetchone()[0]


def test_equal_questions_are_sent_once(tmp_path):
  with serve(prefer_longer) as served:
    judge = make(served, tmp_path)
    chance = judge.preference(['p'] * 5, ['xxx', 'x', 'xx', 'xxx', 'x'], ['xx'] * 5)
    np.testing.assert_array_equal(chance, [1, 0, 0.5, 1, 0])
    assert len(served.seen) == 2  # the third pair has equal texts
    judge.preference(['p'], ['xxx'], ['xx'])
  assert judge.counts() == {
    'requests': 2,
    'asked': 2,
    'cached': 1,
    'prompt_tokens': 200,
    'response_tokens': 4,
  }


def test_unusable_answers_are_nan_and_counted(tmp_path):
  def behave(content, before):
    left, _ = shown(content)
    return {
      'refuse': REFUSED,
      'shrug': Reply(completion('Hard to say.')),
      'tie': Reply(completion('tie')),
    }[left]

  with serve(behave) as served:
    judge = make(served, tmp_path)
    for _ in range(2):
      chance = judge.preference(['p'] * 3, ['refuse', 'shrug', 'tie'], ['x'] * 3)
      np.testing.assert_array_equal(chance, [np.nan, np.nan, 0.5])
    assert len(served.seen) == 5  # only the tie is stored
  counts = judge.counts()
  assert {name: counts[name] for name in ('unusable', 'status_400', 'unreadable')} == {
    'unusable': 4,
    'status_400': 2,
    'unreadable': 2,
  }
  assert 'the text is too long' in judge.last_failure() or 'Hard to say.' in judge.last_failure()


def test_unreadable_answers_are_requested_again(tmp_path):
  """A run that stopped because of them goes on once the judge answers well."""

  def behave(content, before):
    return Reply(completion('1' if before else 'Hm.'))

  few = (['p'] * 5, list('abcde'), ['x'] * 5)
  with serve(behave) as served:
    with pytest.raises(UserError, match=r"The last one: unreadable, the answer 'Hm\.'"):
      make(served, tmp_path, concurrency=1, tolerated=0.04).preference(*few)
    assert kept(tmp_path) == 0
    again = make(served, tmp_path, concurrency=1, tolerated=1.0)
    chance = again.preference(*few)
  assert np.isfinite(chance).sum() == 5
  assert again.last_failure() == ''


def test_answers_cut_by_the_length_limit_are_unusable(tmp_path):
  def behave(content, before):
    reply = completion('Summary 1 is better, or so it seems at first. But')
    reply['choices'][0]['finish_reason'] = 'length'
    return Reply(reply)

  with serve(behave) as served:
    judge = make(served, tmp_path)
    assert np.isnan(judge.preference(['p'], ['a'], ['b'])).all()
  assert judge.counts()['cut_off'] == 1
  assert 'max_tokens' in judge.last_failure()


def test_halves_of_characters_are_judged(tmp_path):
  with serve(prefer_longer) as served:
    chance = make(served, tmp_path).preference(['p\0'], ['cut \ud83d'], ['x'])
    assert chance == [1.0]
    assert shown(served.seen[0].content)[0] == 'cut \ufffd'


def test_too_many_unusable_answers_end_the_run(tmp_path):
  def behave(content, before):
    return REFUSED if 'bad' in content else Reply(completion('1'))

  with serve(behave) as served:
    judge = make(served, tmp_path, concurrency=4, tolerated=0.1)
    fine = [f'fine {i}' for i in range(30)]
    bad = [f'bad {i}' for i in range(60)]
    judge.preference(['p'] * 40, fine + bad[:10], ['x'] * 40)  # as many as are tolerated
    with pytest.raises(
      UserError,
      match=r'1[1-4] of the last 4\d questions; more than 10 of 100 .*400 - the text is too long',
    ):
      judge.preference(['p'] * 60, bad, ['x'] * 60)
    assert len(served.seen) <= 40 + 4 + 1
    assert kept(tmp_path) == 30


def test_disagreeing_orders_are_counted(tmp_path):
  def behave(content, before):
    first, second = shown(content)
    if 'b' in (first, second):
      return Reply(completion('1'))  # whatever is first
    return REFUSED if first == 'c' else Reply(completion('1' if first == 'a' else '2'))

  with serve(behave) as served:
    judge = make(served, tmp_path)
    judge.preference(['p'] * 3, ['a', 'b', 'c'], ['x', 'y', 'z'])
    assert 'in_both_orders' not in judge.counts()
    judge.preference(['p'] * 3, ['x', 'y', 'z'], ['a', 'b', 'c'])
  counts = judge.counts()
  assert (counts['in_both_orders'], counts['disagree']) == (2, 1)


def test_cost_is_of_requests_sent(tmp_path):
  with serve(lambda content, before: Reply(completion('1', tokens=(1000, 3)))) as served:
    judge = make(served, tmp_path, prices=(2.0, 10.0))
    for _ in range(2):
      judge.preference(['p'] * 4, list('abcd'), ['x'] * 4)
  counts = judge.counts()
  assert (counts['prompt_tokens'], counts['response_tokens']) == (4000, 12)
  assert counts['cost'] == pytest.approx((4000 * 2.0 + 12 * 10.0) / 1e6, rel=1e-12)


def test_request_fields_can_be_changed_and_removed(tmp_path):
  with serve(prefer_longer) as served:
    judge = make(served, tmp_path, sampling={'max_tokens': None, 'seed': 3, 'top_k': 1})
    judge.preference(['p'], ['xx'], ['x'])
  (request,) = served.seen
  assert set(request.body) == {
    'model',
    'messages',
    'temperature',
    'logprobs',
    'top_logprobs',
    'seed',
    'top_k',
  }


TEXTS = ['a', 'a b', 'a b c']
TOKENIZER = tokenizers.train(['a b c d'] * 3, 300)


def compared():
  """Three responses to one prompt, compared with themselves."""
  ids = tokenizers.prompt_ids(TOKENIZER, ['d'])
  prompts = tokenizers.pad_prompts(TOKENIZER, ids, len(ids[0]))
  ids = tokenizers.response_ids(TOKENIZER, TEXTS)
  padded = tokenizers.pad_responses(TOKENIZER, ids, max(map(len, ids)))
  left = Responses(*(leaf.reshape(1, 3, -1) for leaf in padded[:2]))
  return Comparison(prompts, left, left)


def test_one_failed_order_spoils_only_its_pair(tmp_path):
  def behave(content, before):
    return REFUSED if shown(content) == ('a', 'a b c') else prefer_longer(content, before)

  with serve(behave) as served:
    payoff = judge_from_texts(make(served, tmp_path).preference, TOKENIZER)(compared())
    assert len(served.seen) == 6  # no response is compared with itself
  nan = np.nan
  np.testing.assert_array_equal(payoff, [[[0, -0.5, nan], [0.5, 0, -0.5], [nan, 0.5, 0]]])
  feedback = with_feedback(lambda comparison: payoff, vote)
  votes = np.array(feedback(compared(), jax.random.key(0)))
  np.testing.assert_array_equal(votes, payoff)


SCRIPT = """
import sys
from pathlib import Path
from nlhf_jax.judges.endpoint import Endpoint
from nlhf_jax.judges.remote import make_remote_judge
from nlhf_jax.judges.judge_prompts import SUMMARIES
url, cache = sys.argv[1:]
judge = make_remote_judge(Endpoint(url, 'm', '', Path(cache), concurrency=3, retries=0), SUMMARIES)
judge.preference(['p'] * 40, ['x' * i for i in range(1, 41)], ['y'] * 40)
"""
MANY = (['p'] * 40, ['x' * i for i in range(1, 41)], ['y'] * 40)


def test_killed_process_loses_no_stored_answer(tmp_path):
  """Two processes send the same questions; one is killed after about a dozen answers."""

  def behave(content, before):
    return prefer_longer(content, before)._replace(delay=0.1)

  cache = tmp_path / 'answers.sqlite'
  with serve(behave) as served:
    process = subprocess.Popen([sys.executable, '-c', SCRIPT, served.url, str(cache)], cwd=ROOT)
    deadline = time.monotonic() + LIMIT
    while len(served.seen) < 6:
      assert process.poll() is None
      assert time.monotonic() < deadline
      time.sleep(0.01)
    judge = make(served, tmp_path, concurrency=1)
    answers = []
    other = threading.Thread(target=lambda: answers.append(judge.preference(*MANY)))
    other.start()
    while len(served.seen) < 16:
      time.sleep(0.01)
    process.kill()
    process.wait()
    other.join()
    # Requests in flight were lost, and those that both sent at the same time were sent twice.
    assert len(served.seen) < 40 + 20
    assert judge.counts()['cached'] >= 3
    assert kept(tmp_path) == 40
    asked = len(served.seen)
    again = make(served, tmp_path)
    np.testing.assert_array_equal(again.preference(*MANY), answers[0])
    np.testing.assert_array_equal(answers[0], np.arange(1, 41) > 1)
    assert len(served.seen) == asked
    assert again.counts() == {'cached': 40}


def signalling(number, at):
  """Answers with a delay; the `at`-th request sends this process a signal."""
  came = []

  def behave(content, before):
    came.append(content)
    if len(came) == at:
      os.kill(os.getpid(), number)
    return prefer_longer(content, before)._replace(delay=0.2)

  return behave


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_waits_for_requests_in_flight(number, tmp_path):
  with serve(signalling(number, 6)) as served:
    judge = make(served, tmp_path, concurrency=3, stop=interrupts.requested)
    with (
      interrupts.deferred(),
      pytest.raises(Interrupted, match=r"querying the judge 'm', \d of 40 questions"),
    ):
      judge.preference(*MANY)
    stopped_at = len(served.seen)
    assert stopped_at <= 6 + 3
    assert kept(tmp_path) == stopped_at
    judge.preference(*MANY)
    assert len(served.seen) == 40


def test_interruption_waits_only_briefly(tmp_path, monkeypatch):
  monkeypatch.setattr(remote, 'GRACE', 0.3)
  never = Reply(completion('1'), delay=LIMIT)
  with serve(lambda content, before: never) as served:
    judge = make(served, tmp_path, stop=lambda: bool(served.seen))
    start = time.monotonic()
    with pytest.raises(Interrupted, match='0 of 40 questions'):
      judge.preference(*MANY)
    assert time.monotonic() - start < 20
    assert len(served.seen) <= 8


def test_slow_queries_show_a_progress_bar(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(remote, 'BAR_DELAY', 0.0)
  monkeypatch.setattr(progress, 'is_on_terminal', lambda: True)
  with serve(prefer_longer) as served:
    make(served, tmp_path).preference(*MANY)
  assert 'm:   0%' in capsys.readouterr().err


def test_ctrl_c_outside_a_run_stops_at_once(tmp_path):
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  with contextlib.ExitStack() as stack, serve(signalling(signal.SIGINT, 6)) as served:
    stack.callback(signal.signal, signal.SIGINT, before)
    judge = make(served, tmp_path, concurrency=3)
    with pytest.raises(KeyboardInterrupt):
      judge.preference(*MANY)
    judge.preference(*MANY)  # waits for the abandoned work to end
    assert kept(tmp_path) == 40
    assert len(served.seen) <= 40 + 3
