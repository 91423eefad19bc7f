"""Malformed files of questions, references and judge prompts: one sentence each, or a whole run."""

import copy
import gzip
import json
import random
from functools import partial

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import mt_bench
from nlhf_jax.evaluation.benchmarks.benchmark import EvaluatedPolicy, Judges
from nlhf_jax.judges.judge_prompts import pairwise_template
from nlhf_jax.judges.verdicts import Answer

QUESTIONS = [
  {'question_id': 1, 'category': 'writing', 'turns': ['Write.', 'More.']},
  {'question_id': 2, 'category': 'math', 'turns': ['1 + 1?']},
]
REFERENCES = [{'question_id': 2, 'choices': [{'index': 0, 'turns': ['2']}]}]
TEMPLATES = {
  'pair-v2': '{question}{answer_a}{answer_b}',
  'pair-v2-multi-turn': '{question_2}{answer_a_2}{answer_b_2}',
  'pair-math-v1': '{question}{answer_a}{answer_b}{ref_answer_1}',
}
PROMPTS = [
  {
    'name': name,
    'type': 'pairwise',
    'system_prompt': 'Judge.',
    'prompt_template': template,
    'output_format': '[[A]]',
  }
  for name, template in TEMPLATES.items()
]
GOOD = {'questions': QUESTIONS, 'references': REFERENCES, 'judge_prompts': PROMPTS}
JUNK = [
  *(None, True, 1.5, 10**400, '', ' ', 'a\0b', '\ud800', '\x1b[2J', '..', [], [None], [[]], {}),
  *([''], ['a', 'b', 'c'], ['a', 7], [{'turns': ['a']}], [{'turns': []}], [{}], {'turns': ['a']}),
  *(
    '{',
    '}',
    '{}',
    '{0}',
    '{question.__class__}',
    '{question[0]}',
    '{question!r}',
    '{a:>99999999}',
  ),
  *('{question}{persona}', '[[rating]]', '[[rating_a,rating_b]]', 'pair-v2', -1, 10**20),
]


def as_lines(rows):
  return b''.join(json.dumps(row).encode() + b'\n' for row in rows)


def rows_with_junk(rows):
  """The rows with junk in the place of a field, without a field, with a row twice or of junk."""
  for number, row in enumerate(rows):
    for name in row:
      changed = copy.deepcopy(rows)
      del changed[number][name]
      yield changed
      for junk in JUNK:
        changed = copy.deepcopy(rows)
        changed[number][name] = junk
        yield changed
    yield [*rows, row]
    yield rows[:number] + rows[number + 1 :]
  yield from ([*rows, junk] for junk in JUNK)


def damaged(content, chance):
  """The bytes cut, flipped, or in another encoding."""
  for _ in range(25):
    yield content[: chance.randrange(len(content))]
    flipped = bytearray(content)
    flipped[chance.randrange(len(content))] = chance.randrange(256)
    yield bytes(flipped)
  packed = gzip.compress(content)
  yield from (packed[:-9], packed[:12], packed + b'x', packed, content.decode().encode('utf-16'))
  yield from (b'\xef\xbb\xbf' + content, b'', b'\n\n', b'[' * 100_000, b'{"a":' * 100_000, b'\xff')


def malformed():
  """(name of the file, its content)."""
  chance = random.Random(0)
  for name, rows in GOOD.items():
    for changed in rows_with_junk(rows):
      yield name, as_lines(changed)
    for content in damaged(as_lines(rows), chance):
      yield name, content


@pytest.fixture
def section(tmp_path):
  """The section `mt_bench` of a config of good files."""
  paths = {name: tmp_path / f'{name}.jsonl' for name in GOOD}
  for name, path in paths.items():
    path.write_bytes(as_lines(GOOD[name]))
  return {name: str(path) for name, path in paths.items()} | {'mode': 'pair', 'reading': 'last'}


def judge(benchmark, folder):
  """Runs the benchmark; every verdict is for the first answer."""
  policies = {}
  for name in ('one', 'two'):
    respond = lambda conversations, temperature, seed: ['Yes.'] * len(conversations)
    policies[name] = EvaluatedPolicy(name, respond=respond)
    benchmark.answer(policies[name], folder)
  chat = lambda sheets, usable: [Answer('[[A]]')] * len(sheets)
  (table,) = benchmark.run(policies, Judges(chat=chat, chat_name='j'), folder)
  assert {row[0] for row in table.rows} == {'one', 'two'}


def sentence_of(work):
  """The sentence that refuses the work; empty if it is done."""
  try:
    work()
  except UserError as error:
    return str(error)
  return ''


@pytest.mark.parametrize('every', [8, pytest.param(1, marks=pytest.mark.slow)])
def test_malformed_files_are_refused_in_one_sentence(section, tmp_path, every):
  inputs = list(malformed())[::every]
  assert len(inputs) > 1000 / every
  refused, accepted = [], 0
  for name, content in inputs:
    path = tmp_path / f'{name}.jsonl'
    path.write_bytes(content)
    sentence = sentence_of(lambda: mt_bench.make(section).prepare())
    refused += [(name, sentence)] * bool(sentence)
    accepted += not sentence
    if not sentence and accepted % 12 == 0:  # each takes 30 ms
      # A prompt may ask for ratings, of which the answers have none.
      problem = sentence_of(lambda: judge(mt_bench.make(section), tmp_path))
      assert not problem or 'no verdict that can be parsed' in problem
    if name == 'judge_prompts':
      assert sentence_of(partial(pairwise_template, path, 'pair-v2')).isprintable()
    path.write_bytes(as_lines(GOOD[name]))
  assert len(refused) > 700 / every
  for name, sentence in refused:
    assert sentence.isprintable()
    # Other questions may need prompts or references that the good files lack.
    assert f'{name}.jsonl' in sentence or 'prompt' in sentence or name == 'questions'
