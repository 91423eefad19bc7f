"""The whole group `openllm` of the harness, on made-up data in the published columns."""

import jax
import pytest

from nlhf_jax.data import tokenizers
from nlhf_jax.evaluation.generation import LoadedModel
from nlhf_jax.models import architectures
from nlhf_jax.models.transformer import make_decoder

pytest.importorskip('lm_eval', reason='the extra `harness` is not installed')

import datasets

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import lm_harness, lm_tasks

LETTERS = list('ABCD')
THINGS = ['a red boat', 'the river', 'an old clerk', 'rain']
MEMBERS = {
  'arc_challenge': 25,
  'hellaswag': 10,
  'truthfulqa_gen': 0,
  'truthfulqa_mc1': 0,
  'truthfulqa_mc2': 0,
  'mmlu': 5,
  'winogrande': 5,
  'gsm8k': 5,
}


def arc(n):
  choices = {'text': THINGS, 'label': LETTERS}
  asked = f'Which of these is number {n}?'
  return {'id': f'Q_{n}', 'question': asked, 'choices': choices, 'answerKey': LETTERS[n % 4]}


def hellaswag(n):
  start, end = f'[header] A man steps into boat {n}.', 'he'
  return {
    'ind': n,
    'activity_label': 'Rowing',
    'ctx_a': start,
    'ctx_b': end,
    'ctx': f'{start} {end}',
    'endings': [f'[step] sees {thing}.' for thing in THINGS],
    'source_id': f'activitynet~v_{n}',
    'split': 'train',
    'split_type': 'indomain',
    'label': str(n % 4),
  }


def truthful_choice(n):
  choices = {'choices': THINGS}
  return {
    'question': f'What is on river {n}?',
    'mc1_targets': choices | {'labels': [1, 0, 0, 0]},
    'mc2_targets': choices | {'labels': [1, 1, 0, 0]},
  }


def truthful_generation(n):
  return {
    'type': 'Adversarial',
    'category': 'Rivers',
    'question': f'What is on river {n}?',
    'best_answer': THINGS[0],
    'correct_answers': THINGS[:2],
    'incorrect_answers': THINGS[2:],
    'source': 'nowhere',
  }


def mmlu(n):
  return {'question': f'Pick {n}.', 'subject': 'any', 'choices': THINGS, 'answer': n % 4}


def winogrande(n):
  sentence = f'The boat did not fit under bridge {n} because the _ was too high.'
  return {'sentence': sentence, 'option1': 'boat', 'option2': 'river', 'answer': '12'[n % 2]}


def gsm8k(n):
  worked = f'There are {n} + 2 = <<{n}+2={n + 2}>>{n + 2} boats.\n#### {n + 2}'
  return {'question': f'{n} boats and 2 more; how many boats?', 'answer': worked}


# (path, name) -> a row, and the number of rows of each split; the name None matches any.
PUBLISHED = {
  ('allenai/ai2_arc', 'ARC-Challenge'): (arc, {'train': 30, 'validation': 3, 'test': 3}),
  ('Rowan/hellaswag', None): (hellaswag, {'train': 30, 'validation': 3, 'test': 3}),
  ('truthfulqa/truthful_qa', 'multiple_choice'): (truthful_choice, {'validation': 3}),
  ('truthfulqa/truthful_qa', 'generation'): (truthful_generation, {'validation': 3}),
  ('cais/mmlu', None): (mmlu, {'test': 3, 'validation': 2, 'dev': 5}),
  ('allenai/winogrande', 'winogrande_xl'): (
    winogrande,
    {'train': 30, 'validation': 3, 'test': 3},
  ),
  ('openai/gsm8k', 'main'): (gsm8k, {'train': 30, 'test': 3}),
}


def load_dataset(path, name=None, **options):
  """Small data sets in place of those of the hub."""
  assert not options
  row, splits = PUBLISHED.get((path, name)) or PUBLISHED[path, None]
  rows = lambda count: datasets.Dataset.from_list([row(n) for n in range(count)])
  return datasets.DatasetDict({split: rows(count) for split, count in splits.items()})


def policy(max_positions, **options):
  tokenizer = tokenizers.train([*THINGS, 'Question: Answer: boats river'], 320)
  sizes = architectures.small(
    len(tokenizer), 8, layers=1, heads=1, key_heads=1, head_size=8, hidden=8, rotary_base=1e4
  )
  decoder = make_decoder(sizes)
  params = decoder.init(jax.random.key(0))
  model = LoadedModel(decoder, params, tokenizer, max_positions)
  return lm_harness.HarnessModel(model, name='toy', **options)


@pytest.fixture
def offline(monkeypatch):
  monkeypatch.setattr(datasets, 'load_dataset', load_dataset)


@pytest.mark.slow
def test_all_tasks_and_57_subjects_have_scores(offline):
  manager, pieces = lm_tasks.find_tasks(['openllm'])
  assert [piece.name for piece in pieces] == [f'openllm/{member}' for member in MEMBERS]
  asked = policy(8192, batch=16)
  found = lm_tasks.merge([lm_tasks.evaluate(asked, manager, piece, 2) for piece in pieces])
  assert found['cut'] == 0
  subjects = [task for task in found['n-samples'] if task.startswith('mmlu_')]
  assert len(subjects) == 57
  assert found['n-samples'].keys() == {*MEMBERS, *subjects} - {'mmlu'}
  for task, samples in found['n-samples'].items():
    assert samples['effective'] == 2
    assert found['n-shot'][task] == MEMBERS[task.partition('_')[0] if task in subjects else task]
  scores = {}
  for row in lm_tasks.scores(found):
    scores.setdefault(row['task'], {})[row['metric']] = row['score']
    assert row['error'] >= 0
  assert scores.keys() == set(MEMBERS)  # subjects enter the score of `mmlu`
  likeliest = ['acc', 'acc_norm']
  assert sorted(scores['arc_challenge']) == sorted(scores['hellaswag']) == likeliest
  for task in ('truthfulqa_mc1', 'winogrande', 'mmlu'):
    assert list(scores[task]) == ['acc']
    assert 0 <= scores[task]['acc'] <= 1
  assert 0 < scores['truthfulqa_mc2']['acc'] < 1
  assert {'bleu_max', 'rouge1_acc', 'rougeL_diff'} < scores['truthfulqa_gen'].keys()
  assert set(scores['gsm8k']) == {
    'exact_match, strict-match',
    'exact_match, flexible-extract',
  }


@pytest.mark.slow
def test_truncated_prompts_are_counted(offline):
  manager, pieces = lm_tasks.find_tasks(['openllm'])
  piece = {piece.name.partition('/')[2]: piece for piece in pieces}
  asked = policy(300)
  ask = lambda task: lm_tasks.evaluate(asked, manager, piece[task], 1)
  assert ask('arc_challenge')['cut'] == 4  # 25 examples before each choice
  found = ask('gsm8k')
  assert found['cut'] == 1
  assert found['n-shot']['gsm8k'] == 5
  assert ask('truthfulqa_mc1')['cut'] == 4
  with pytest.raises(UserError, match=r"'openllm/gsm8k'.* 256 tokens, and 200 fit"):
    lm_tasks.evaluate(policy(200), manager, piece['gsm8k'], 1)
