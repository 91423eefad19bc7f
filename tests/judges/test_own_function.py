"""Functions of the user as judges: loading, calling, storing, and their mistakes."""

import textwrap

import numpy as np
import pytest

from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.judges import own_function
from nlhf_jax.judges.own_function import load_function, make_kind

PROMPTS, LEFT, RIGHT = ['1 + 1', '2 + 2', '3 + 3'], ['2', '5', 'six'], ['3', '4', '6']
CHECKER = """
  CALLS = []

  def right(prompts, responses):
    CALLS.append(list(zip(prompts, responses)))
    return [eval(one) == int(other) if other.isdigit() else None
            for one, other in zip(prompts, responses)]

  right.version = 3

  def shorter(prompts, left, right):
    CALLS.append(list(zip(prompts, left, right)))
    return [len(one) < len(other) for one, other in zip(left, right)]
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
  """A function that writes a module and returns its path."""
  monkeypatch.chdir(tmp_path)

  def write(text, name='mine.py'):
    (tmp_path / name).write_text(textwrap.dedent(text))
    return name

  return write


def judge_of(written, folder, stop=lambda: False):
  return make_kind(load_function(written)).make({}, folder, stop)


def test_rewards_are_compared_and_no_verdict_stays_one(write, tmp_path):
  judge = judge_of(f'{write(CHECKER)}:right', tmp_path)
  chances = judge.preference(PROMPTS, LEFT, RIGHT)
  np.testing.assert_array_equal(chances, [1, 0, np.nan])
  assert judge.preference(['1 + 1'], ['2'], ['2'])[0] == 0.5
  assert judge.make_rewards is not None


def test_numbers_are_stored_and_missing_verdicts_are_asked_again(write, tmp_path):
  written = f'{write(CHECKER)}:right'
  calls = load_function(written).call.__globals__['CALLS']
  first = judge_of(written, tmp_path)
  first.preference(PROMPTS, LEFT, RIGHT)
  assert [len(call) for call in calls] == [6]
  assert first.counts() == {'asked': 6, 'without_verdict': 1}
  again = judge_of(written, tmp_path)
  np.testing.assert_array_equal(
    again.preference(PROMPTS, LEFT, RIGHT), first.preference(PROMPTS, LEFT, RIGHT)
  )
  assert calls[1] == [('3 + 3', 'six')]
  assert again.counts() == {'asked': 1, 'cached': 5, 'without_verdict': 1}
  again.preference(PROMPTS[:1] * 2, LEFT[:1] * 2, RIGHT[:1] * 2)
  assert len(calls) == 3  # nothing new


def test_probabilities_are_of_the_left_response_and_equal_texts_tie(write, tmp_path):
  written = f'{write(CHECKER)}:shorter'
  judge = judge_of(written, tmp_path)
  assert judge.preference(['p', 'p', 'p'], ['a', 'aa', 'a'], ['aa', 'a', 'a']).tolist() == [
    1,
    0,
    0.5,
  ]
  assert load_function(written).call.__globals__['CALLS'][-1] == [
    ('p', 'a', 'aa'),
    ('p', 'aa', 'a'),
  ]
  assert judge.make_rewards is None


def test_questions_come_in_batches_and_a_stop_keeps_those_before(write, tmp_path, monkeypatch):
  monkeypatch.setattr(own_function, 'BATCH', 2)
  written = f'{write(CHECKER)}:shorter'
  calls = load_function(written).call.__globals__['CALLS']
  texts = ['a', 'b', 'c', 'd', 'e'], ['x'] * 5, ['yy'] * 5
  with pytest.raises(Interrupted, match="asking the judge 'shorter', 2 of 5 questions"):
    judge_of(written, tmp_path, lambda: len(calls) == 1).preference(*texts)
  assert judge_of(written, tmp_path).preference(*texts).tolist() == [1] * 5
  assert [len(call) for call in calls] == [2, 2, 1]


def test_source_and_version_identify_a_function(write, tmp_path):
  settings = load_function(f'{write(CHECKER)}:right').settings
  assert settings['version'] == 3
  assert settings['source'].startswith('def right(')
  assert 'shorter' not in settings['source']
  write(CHECKER.replace('CALLS', 'OTHERS', 1) + '  CALLS = OTHERS', 'other.py')
  moved = load_function('other.py:right')
  assert moved.settings == settings
  changed = CHECKER.replace('None', '0.5').replace('version = 3', 'version = 4')
  assert load_function(f'{write(changed)}:right').settings['source'] != settings['source']
  edited = make_kind(load_function('mine.py:right')).make({}, tmp_path, lambda: False)
  assert edited.preference(['1', '1'], ['x', 'x'], ['1', '2']).tolist() == [0, 1]


def test_functions_of_modules_and_wrapped_ones_are_found(write):
  write('from helper import same', 'package_of_mine.py')
  write(
    """
    import functools

    @functools.lru_cache
    def same(prompts, responses, weight=1.0):
      return [0.0 for _ in prompts]
    """,
    'helper.py',
  )
  found = load_function('package_of_mine:same')
  assert (found.name, found.rewards) == ('same', True)
  assert 'def same' in found.settings['source']


@pytest.mark.parametrize(
  ('text', 'written', 'reason'),
  [
    ('', 'mine.py', "'mine.py' must be written FILE.py:function or module:function."),
    ('', ':f', "':f' must be written FILE.py:function"),
    ('', 'mine.py:', "'mine.py:' must be written FILE.py:function"),
    ('', 'mine.txt:f x', "'mine.txt:f x' must be written FILE.py:function"),
    ('', 'a folder/x:f', "'a folder/x:f' must be written FILE.py:function"),
    ('', 'none.py:f', "'none.py:f': 'none.py' cannot be read (No such file or directory)."),
    ('', 'no_such.module:f', "cannot be imported (ModuleNotFoundError: No module named 'no_such'"),
    ('f = 1', 'mine.py:f', "'mine.py' has no function 'f'."),
    ('def g(a, b): pass', 'mine.py:f', "'mine.py' has no function 'f'."),
    ('def f(a, b:', 'mine.py:f', "'mine.py' cannot be imported (SyntaxError: "),
    ('x = 1\nopen("gone")', 'mine.py:f', 'cannot be imported (FileNotFoundError: [Errno 2]'),
    ('x = 1\n1 / 0', 'mine.py:f', 'ZeroDivisionError: division by zero, line 2 of mine.py'),
    ('raise SystemExit', 'mine.py:f', 'cannot be imported (SystemExit, line 1 of mine.py).'),
    ('def f(a): pass', 'mine.py:f', 'must be a plain function of (prompts, left, right)'),
    ('def f(a, b, c, d): pass', 'mine.py:f', 'must be a plain function of'),
    ('def f(*texts): pass', 'mine.py:f', 'must be a plain function of'),
    ('def f(a, b, *, scale): pass', 'mine.py:f', 'must be a plain function of'),
    ('async def f(a, b): pass', 'mine.py:f', 'must be a plain function of'),
    ('def f(a, b): pass\nf.version = [1]', 'mine.py:f', 'its `version` must be a text or a number'),
    (
      'import functools\nf = functools.partial(lambda a, b, c: a, 1)',
      'mine.py:f',
      "'mine.py:f' has no source text to tell it by; give it an attribute `version`.",
    ),
  ],
)
def test_functions_that_cannot_be_used_are_refused(text, written, reason, write):
  write(text)
  with pytest.raises(UserError) as caught:
    load_function(written)
  assert reason in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('body', 'reason'),
  [
    ('return [1, 2, 3] if len(a) > 1 else [1 / (b[0] != "5")]', 'array of shape (3,)'),
    (
      'return [1 / (x != "5") for x in b]',
      "failed on the prompt '2 + 2' and the response '5': ZeroDivisionError: division by zero, l",
    ),
    ('raise KeyError("gone") if len(a) > 1 else ValueError()', "'1 + 1' and the response '2': Val"),
    ('exit(3)', "failed on the prompt '1 + 1' and the response '2': SystemExit: 3"),
    (
      'return [float("inf")] * len(a)',
      "returned inf for the prompt '1 + 1' and the response '2'; a",
    ),
    ('return [1e39] * len(a)', 'a reward must be finite in float32.'),
    ('return 1.0', 'must return one reward for each of 6 responses, not an array of shape ().'),
    ('return ["0.5"] * len(a)', "must return 6 numbers, not ['0.5'"),
    ('return [1j] * len(a)', 'must return 6 numbers'),
    ('return (1 for _ in a)', 'must return 6 numbers, not <generator'),
    ('return {}', 'must return 6 numbers, not {}'),
  ],
)
def test_mistakes_in_a_function_name_it_and_the_texts(body, reason, write, tmp_path):
  judge = judge_of(f'{write(f"def f(a, b):{chr(10)}  {body}")}:f', tmp_path)
  with pytest.raises(UserError) as caught:
    judge.preference(PROMPTS, LEFT, RIGHT)
  assert str(caught.value).startswith("the judge 'f' ")
  assert reason in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_preference_out_of_range_names_both_responses(write, tmp_path):
  judge = judge_of(f'{write("def f(a, b, c): return [0.5, 0.5, 1.5][: len(a)]")}:f', tmp_path)
  with pytest.raises(UserError) as caught:
    judge.preference(PROMPTS, LEFT, RIGHT)
  assert str(caught.value) == (
    "the judge 'f' returned 1.5 for the prompt '3 + 3' and the responses 'six' and '6'; "
    'P(left > right) must be in [0, 1].'
  )
