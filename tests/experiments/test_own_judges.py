"""Functions of the user, combinations and groups as judges of whole runs and evaluations."""

import copy
import json
from functools import partial

import numpy as np
import pytest

from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.experiments.evaluate.run import run as evaluate
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.experiments.language.run import run
from nlhf_jax.experiments.start import make_experiment as make_any
from nlhf_jax.storage import json_lines

JUDGES = """
def words(prompts, responses):
  return [len(set(one.split())) / 4 for one in responses]


def vowels(prompts, left, right):
  count = lambda text: sum(text.count(letter) for letter in 'aeiou')
  return [1 / (1 + 2 ** (count(two) - count(one))) for one, two in zip(left, right)]
"""


@pytest.fixture
def judges(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(JUDGES)
  return path


def words(text):
  return len(set(text.split())) / 4


def vowels(text):
  return sum(map(text.count, 'aeiou'))


@pytest.mark.slow
def test_functions_and_combinations_judge_a_run(toy_run, judges, tmp_path, capsys):
  config, folder = toy_run.copy_to(tmp_path / 'copy')
  own = f'{judges}:words', f'{judges}:vowels'
  config.judges = (
    f'learned,{own[0]},{own[1]},mean({own[0]},{own[1]}),agree(learned,{own[1]},oracle)'
  )
  del config.policies.self_play
  config.policies.nash_md.judge = f'midrange({own[0]},learned)'
  config.policies.by_words = copy.deepcopy(config.policies.nash_md)
  config.policies.by_words.judge = own[0]
  experiment = make_experiment(config, 'own', folder / 'stages')
  names = [
    'oracle',
    'learned',
    'words',
    'vowels',
    'mean_words_vowels',
    'agree_learned_vowels_oracle',
  ]
  assert experiment.panel == names
  assert experiment.policies['nash_md'].judge == 'midrange_words_learned'
  results = run(experiment, tmp_path / 'run')
  assert list(results['tables']) == names
  for line in json_lines.read(tmp_path / 'run' / 'samples.jsonl'):
    matrix = {name: np.array(line['preferences'][name]) - 0.5 for name in names}
    first, second = (line['responses'][name] for name in ('sft', 'nash_md'))
    by_words = np.sign(words(first) - words(second)) / 2
    by_vowels = (1 / (1 + 2 ** float(vowels(second) - vowels(first))) - 0.5) * (first != second)
    assert matrix['words'][0, 1] == pytest.approx(by_words, abs=1e-6)
    assert matrix['vowels'][0, 1] == pytest.approx(by_vowels, abs=1e-6)
    np.testing.assert_allclose(
      matrix['mean_words_vowels'], (matrix['words'] + matrix['vowels']) / 2, atol=1e-6
    )
    three = [matrix[name] for name in ('learned', 'vowels', 'oracle')]
    agreed = np.maximum(np.min(three, axis=0), 0) + np.minimum(np.max(three, axis=0), 0)
    np.testing.assert_allclose(matrix['agree_learned_vowels_oracle'], agreed, atol=1e-6)
  usage = json_lines.read_sealed(tmp_path / 'run' / 'words.json')
  assert usage['about'] == own[0]
  assert usage['counts']['asked'] > 0
  assert f'The words judge is {own[0]}: ' in capsys.readouterr().out
  by_judge = results['by_judge']['nash_md']
  assert list(by_judge['judges']) == names
  table = results['tables']['words']
  assert by_judge['judges']['words']['win_rate'] == table['win_rate'][1][0]
  assert by_judge['worst'] == min(names, key=lambda name: by_judge['judges'][name]['win_rate'])
  # What is trained is found by the function, wherever its file is.
  moved = tmp_path / 'elsewhere.py'
  moved.write_text('# moved\n' + JUDGES)
  again = json.loads(config.to_json().replace(str(judges), str(moved)))
  config.update(again)
  assert make_experiment(config, 'own', folder / 'stages').stages.keys() == experiment.stages.keys()
  for name, stage in make_experiment(config, 'own', folder / 'stages').stages.items():
    assert stage.folder == experiment.stages[name].folder, name
  moved.write_text(JUDGES.replace('/ 4', '/ 3'))
  changed = make_experiment(config, 'own', folder / 'stages').stages
  same = {name for name, stage in changed.items() if stage.folder == experiment.stages[name].folder}
  assert same == {'sft', 'preference_model'}


def train_on_groups(config, judges, steps):
  """Leaves one policy, which two functions of a file judge as groups."""
  own = f'{judges}:words', f'{judges}:vowels'
  config.judges = ','.join(own)
  del config.policies.self_play
  policy = config.policies.nash_md
  policy.algorithm, policy.judge = 'best_response', f'maxmin({own[0]},{own[1]})'
  del policy.arguments['beta']
  policy.steps, policy.evaluate_every, config.combined.step = steps, 2, 2.0


def test_weights_of_groups_move(toy_run, judges, tmp_path):
  config, folder = toy_run.copy_to(tmp_path / 'copy')
  train_on_groups(config, judges, steps=4)
  experiment = make_experiment(config, 'groups', folder / 'stages')
  run(experiment, tmp_path / 'run')
  rows = [row for row in json_lines.read(tmp_path / 'run' / 'metrics.jsonl')]
  rows = [row for row in rows if row['stage'] == 'nash_md' and row['step']]
  for row in rows:
    assert row['weight_of_words'] + row['weight_of_vowels'] == pytest.approx(1)
    mixed = sum(row[f'weight_of_{name}'] * row[f'payoff_of_{name}'] for name in ('words', 'vowels'))
    assert row['payoff'] == pytest.approx(mixed, abs=0.05)  # means over two steps
  assert rows[0]['weight_of_words'] != rows[1]['weight_of_words']


@pytest.mark.slow
def test_a_run_on_groups_that_is_cut_ends_with_the_same_weights(config_named, judges, tmp_path):
  config = config_named('nash_md')
  train_on_groups(config, judges, steps=6)
  uncut = make_experiment(config, 'uncut', tmp_path / 'uncut')
  run(uncut, tmp_path / 'uncut')
  experiment = make_experiment(config, 'cut', tmp_path / 'cut')
  checks = iter([False] * 4 + [True] + [False] * 10_000)  # a stop within the training of the policy
  make = experiment.external['words']
  stopping = partial(make.func, *make.args[:-1], lambda: next(checks))
  cut = experiment._replace(external={**experiment.external, 'words': stopping})
  with pytest.raises(Interrupted):
    run(cut, tmp_path / 'cut')
  assert not json_lines.read_sealed(experiment.stages['nash_md'].folder / 'stage.json')['done']
  run(experiment, tmp_path / 'cut')
  names = ('weight_of_words', 'payoff_of_vowels', 'gradient_norm')
  ends = []
  for folder in ('uncut', 'cut'):
    rows = json_lines.read(tmp_path / folder / 'metrics.jsonl')
    last = [row for row in rows if row['stage'] == 'nash_md'][-1]
    ends.append([last[name] for name in names])
  assert ends[0] == ends[1]


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [
    ({'judges': 'learned,none.py:f'}, "'none.py' cannot be read"),
    ({'judges': 'mine.py:words,mine.py:words'}, "names 'words' twice"),
    (
      {'judges': 'mine.py:words,other.py:words'},
      "two judges are called 'words', 'mine.py:words' and",
    ),
    ({'judges': 'other.py:learned'}, "the function of 'other.py:learned' has a name that is taken"),
    ({'judges': 'other.py:results'}, "the function of 'other.py:results' has a name that is taken"),
    ({'judges': 'other.py:nash_md'}, "the function of 'other.py:nash_md' has a name that is taken"),
    ({'judges': 'other.py:model'}, "the function of 'other.py:model' has a name that is taken"),
    ({'judges': 'min(learned,gpm)'}, 'taken pair by pair are not antisymmetric'),
    ({'judges': 'median(learned,gpm)'}, "there is no 'median'; combine judges by mean, midrange"),
    ({'judges': 'mean(learned)'}, "'mean' needs at least two judges, each of them once"),
    ({'judges': 'mean(learned,learned)'}, "'mean' needs at least two judges, each of them once"),
    ({'judges': 'mean(learned,nobody)'}, "'nobody' cannot be combined"),
    ({'judges': 'mean(learned,agree(gpm,learned))'}, 'cannot be combined'),
    ({'judges': 'maxmin(learned,gpm)'}, "'maxmin' weighs groups while a policy trains"),
    ({'policies.nash_md.judge': 'maxmin(learned,gpm)'}, 'in self-play every group wins half'),
    ({'combined.spreads': -1.0}, 'config.combined.spreads=-1.0 must be at least 0'),
    ({'combined.step': 0.0}, 'config.combined.step=0.0 must be above 0'),
  ],
)
def test_judges_that_cannot_be_used_are_refused(
  changes, reason, config_named, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.py').write_text(JUDGES)
  (tmp_path / 'other.py').write_text(
    JUDGES
    + '\n'.join(f'def {name}(a, b): pass' for name in ('learned', 'results', 'nash_md', 'model'))
  )
  config = config_named('nash_md')
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError) as caught:
    make_experiment(config, 'own', tmp_path / 'stages')
  assert reason in str(caught.value)


def test_evaluations_use_functions_and_combinations(config_named, judges, tmp_path):
  responses = {'one': 'a b c d', 'two': 'eeee'}
  rows = [{'prompt': f'p {n}', 'responses': responses} for n in range(2)]
  json_lines.write(tmp_path / 'both.jsonl', rows)
  config = config_named('evaluate')
  config.entries = str(tmp_path / 'both.jsonl')
  own = f'{judges}:words', f'{judges}:vowels'
  config.judges = f'{own[0]},lengths,shrink({own[1]},lengths)'
  config.combined.spreads = 0.5
  results = evaluate(make_any(config, 'evaluate', tmp_path / 'stages'), tmp_path / 'run')
  tables = {name: np.array(table['win_rate']) for name, table in results['tables'].items()}
  assert list(tables) == ['words', 'lengths', 'shrink_vowels_lengths']
  assert tables['words'][0, 1] == 1
  payoffs = np.array([1 / (1 + 2**3) - 0.5, 0.5])
  expected = payoffs.mean() - 0.5 * payoffs.std()
  assert tables['shrink_vowels_lengths'][0, 1] == pytest.approx(0.5 + max(expected, 0), abs=1e-6)
  files = {path.name.partition('-')[0] for path in (tmp_path / 'run/judgements').iterdir()}
  assert files == {'words', 'lengths', 'vowels'}
