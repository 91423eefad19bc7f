"""Agreement with human labels: published counts are reproduced, and a judge is scored."""

import gzip
import json

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import agreement
from nlhf_jax.evaluation.benchmarks.benchmark import Judges
from nlhf_jax.evaluation.judgements import make_cached_judge
from nlhf_jax.storage import json_files

SUBSETS = {'Natural': 'Natural', 'Neighbor': 'Adversarial/Neighbor'}


def section(**paths):
  return {'llmbar': '', 'pandalm': '', 'autoj': ''} | {
    name: str(path) for name, path in paths.items()
  }


def tabulate(benchmark, judges, folder):
  """Title -> name of a row -> column -> value."""
  tables = benchmark.run({}, judges, folder)
  return {
    table.title: {
      name: dict(zip(table.columns, values, strict=True)) for name, *values in table.rows
    }
    for table in tables
  }


def write_published(folder, shared, subset, judge, prompt):
  """A `result.json` in LLMBar's published layout, from our copy of its data."""
  source = shared / 'data' / 'llmbar'
  rows = json.loads(gzip.decompress((source / f'{subset}.json.gz').read_bytes()))
  winners = json_files.read(source / f'{subset}.{judge}.{prompt}.jsonl.gz')
  for row, found in zip(rows, winners, strict=True):
    row['results'] = [
      {'metrics': 'an earlier round'},
      {
        'swap = False': {'completion': ['', 'stop'], 'winner': found['winner_ab']},
        'swap = True': {'completion': ['', 'stop'], 'winner': found['winner_ba_mapped_back']},
      },
    ]
  path = folder / subset / 'evaluators' / judge / prompt / 'result.json'
  json_files.write_list(path, rows)
  return path


@pytest.mark.parametrize('subset', SUBSETS)
@pytest.mark.parametrize('judge', ['ChatGPT', 'GPT-4'])
@pytest.mark.parametrize('prompt', ['Swap', 'Vanilla_NoRules'])
def test_llmbars_counts_are_reproduced(subset, judge, prompt, shared, tmp_path):
  path = write_published(tmp_path, shared, subset, judge, prompt)
  benchmark = agreement.make(section(llmbar=path))
  ((title, rows),) = tabulate(benchmark, Judges(), tmp_path).items()
  (row,) = rows.values()
  assert list(rows) == [f'{judge}/{prompt}']
  assert f'LLMBar {subset},' in title
  names = {
    'correct_False': 'as filed',
    'correct_True': 'swapped',
    'correct_both': 'in both',
    'equal': 'consistency',
  }
  expected = json.loads((shared / 'data/llmbar/expected.json').read_text())[SUBSETS[subset]]
  for name, text in expected[f'{judge}/{prompt}']['published'].items():
    right, count = (int(word) for word in text.split()[:3:2])
    assert row[names[name]] == pytest.approx(right / count)


def test_pandalms_figures_are_reproduced(shared):
  folder = shared / 'data' / 'pandalm'
  (data,) = agreement.read_pandalm([folder / 'testset-v1.json.gz'])
  labels = data.labels
  expected = json.loads((folder / 'expected.json').read_text())
  for i, j, name in ((0, 1, 'kappa_12'), (0, 2, 'kappa_13'), (1, 2, 'kappa_23')):
    found = agreement.kappa(labels[:, i], labels[:, j])
    assert round(found, 2) == expected['published'][name]
    assert found == pytest.approx(expected['own_check'][name], abs=1e-12)
  verdicts, counts = np.unique(agreement.majority(labels), return_counts=True)
  found = {str(verdict): count for verdict, count in zip(verdicts, counts, strict=True)}
  assert found == expected['published']['majority_counts']
  people = agreement.scores_of_people(labels)
  assert people['kappa'] == pytest.approx(np.mean([0.85, 0.88, 0.86]), abs=0.005)
  assert 0.8 < people['accuracy'] < people['without ties'] < 1


def prefer_longer(prompts, left, right):
  return np.array([0.5 + np.sign(len(a) - len(b)) / 4 for a, b in zip(left, right, strict=True)])


def prefer_left(prompts, left, right):
  return np.full(len(left), 0.9)


def test_any_judge_is_scored_on_all_data(shared, tmp_path):
  data = shared / 'data'
  benchmark = agreement.make(
    section(
      llmbar=data / 'llmbar/Natural.json.gz',
      pandalm=data / 'pandalm/testset-v1.json.gz',
      autoj=data / 'autoj_pairs/pairs_a.jsonl.gz',
    )
  )
  assert not benchmark.needs_policies
  assert benchmark.needs_judges
  judges = {
    name: make_cached_judge(tmp_path / f'{name}.jsonl', judge)
    for name, judge in {'longer': prefer_longer, 'left': prefer_left}.items()
  }
  found = tabulate(benchmark, Judges(judges), tmp_path)
  assert [title.split(', ')[1:] for title in found] == [
    ['LLMBar Natural', '100 pairs'],
    ['PandaLM', '999 pairs'],
    ['Auto-J', '500 pairs'],
  ]
  for title, rows in found.items():
    longer, left = rows['longer'], rows['left']
    assert longer['consistency'] == 1
    assert longer['accuracy'] == longer['as filed'] == longer['swapped'] == longer['in both']
    assert 0.4 < longer['without ties'] < 0.8
    # A judge that always prefers the left response is undecided when both orders are combined.
    assert left['ties'] == 1 or left['ties'] == pytest.approx(1, abs=0.05)
    assert left['kappa'] == pytest.approx(0, abs=0.05)
    assert left['consistency'] < 0.1
    assert left['missing'] == 0
    assert ('people' in rows) == ('PandaLM' in title)
  pandalm = next(rows for title, rows in found.items() if 'PandaLM' in title)
  assert pandalm['people']['kappa'] > pandalm['longer']['kappa']
  assert np.isnan(pandalm['people']['consistency'])


def test_kappa_is_agreement_beyond_chance():
  one, other = np.array([1, 1, 2, 2, 1, 2]), np.array([1, 1, 2, 1, 2, 2])
  # 4 of 6 agree, and half would by chance.
  assert agreement.kappa(one, other) == pytest.approx((4 / 6 - 1 / 2) / (1 / 2))
  assert agreement.kappa(one, one) == 1
  assert agreement.kappa(one, 3 - one) == -1
  assert agreement.kappa(np.ones(3, int), np.ones(3, int)) == 1
  assert agreement.kappa(np.ones(3, int), np.array([1, 1, 2])) == 0


def test_no_majority_is_a_tie():
  labels = np.array([[1, 1, 2], [0, 2, 2], [0, 1, 2], [1, -1, -1], [-1, -1, -1]])
  assert agreement.majority(labels).tolist() == [1, 2, 0, 1, 0]


def test_scores_count_ties_and_missing_verdicts():
  ahead = np.array([0.9, 0.2, 0.5, np.nan, 0.8, 0.1])
  behind = 1 - ahead
  labels = np.array([1, 2, 1, 2, 2, 0])
  found = agreement.scores(ahead, behind, labels, np.ones(6, bool))
  assert found['accuracy'] == found['as filed'] == found['swapped'] == pytest.approx(2 / 6)
  assert found['without ties'] == pytest.approx(2 / 3)
  assert found['ties'] == pytest.approx(1 / 6)
  assert found['missing'] == 1
  assert found['consistency'] == 1
  tied = agreement.scores(np.full(2, 0.5), np.full(2, 0.5), np.ones(2, int), np.zeros(2, bool))
  assert np.isnan(tied['consistency'])
  assert np.isnan(tied['without ties'])


def test_winners_may_be_ties_or_missing(tmp_path):
  winners = [('1', 'TIE'), (None, 2)]
  rows = [
    {
      **{'input': 'i', 'output_1': 'a', 'output_2': 'b', 'label': 1},
      'results': [{'swap = False': {'winner': one}, 'swap = True': {'winner': other}}],
    }
    for one, other in winners
  ]
  json_files.write_list(tmp_path / 'result.json', rows)
  (verdicts,) = agreement.read_llmbar(tmp_path / 'result.json').published.values()
  assert verdicts.tolist() == [[1, 0], [-1, 2]]


@pytest.mark.parametrize('winner', ['3', 'a', 1.0, True, [1]])
def test_bad_winner_is_named(tmp_path, winner):
  row = {'input': 'i', 'output_1': 'a', 'output_2': 'b', 'label': 1}
  row['results'] = [{'swap = False': {'winner': winner}, 'swap = True': {'winner': '1'}}]
  json_files.write_list(tmp_path / 'result.json', [row])
  with pytest.raises(UserError, match="row 1: field 'winner' is"):
    agreement.read_llmbar(tmp_path / 'result.json')


def test_results_need_both_orders(tmp_path):
  row = {'input': 'i', 'output_1': 'a', 'output_2': 'b', 'label': 1, 'results': []}
  json_files.write_list(tmp_path / 'result.json', [row])
  with pytest.raises(UserError, match="row 1: the last of 'results' has no 'swap = False'"):
    agreement.read_llmbar(tmp_path / 'result.json')


def test_label_of_llmbar_is_never_a_tie(tmp_path):
  json_files.write_list(
    tmp_path / 'rows.json', [{'input': 'i', 'output_1': 'a', 'output_2': 'b', 'label': 0}]
  )
  with pytest.raises(UserError, match="row 1: field 'label' is 0; it must be one of 1, 2"):
    agreement.read_llmbar(tmp_path / 'rows.json')


PAIRS = [
  {
    **{'idx': n, 'instruction': 'Add.', 'input': f'{n}, 1', 'response1': '3', 'response2': '4'},
    **{'annotator1': label, 'annotator2': label, 'annotator3': 0},
  }
  for n, label in enumerate([1, 2, 2, 0])
]


def write_pandalm(folder, results):
  json_files.write_list(folder / 'testset.json', PAIRS)
  json_files.write_list(folder / 'gpt-testset.json', results)
  return agreement.make(section(pandalm=f'{folder}/testset.json,{folder}/gpt-testset.json'))


def test_pandalms_files_of_verdicts_are_matched_by_index(tmp_path):
  verdicts = {3: 'garbage', 0: '1', 2: 'Tie', 1: 2}
  results = [{'idx': n, 'gpt_result': verdict} for n, verdict in verdicts.items()]
  benchmark = write_pandalm(tmp_path, results)
  assert benchmark.has_verdicts
  ((_, rows),) = tabulate(benchmark, Judges(), tmp_path).items()
  found = rows['gpt-testset (1 unreadable, counted as ties)']
  assert found['accuracy'] == found['as filed'] == 3 / 4
  assert found['ties'] == 2 / 4
  assert np.isnan(found['swapped'])
  assert 'people' in rows


@pytest.mark.parametrize(
  ('results', 'message'),
  [
    ([{'idx': n, 'gpt_result': 1} for n in range(3)], r'idx \[3\] occur in one of them only'),
    ([{'idx': 0, 'gpt_result': 1}] * 2, 'row 2: idx 0 is that of an earlier row'),
    ([{'idx': 0, 'gpt_result': 'first'}], "row 1: field 'gpt_result' is 'first'"),
    ([{'idx': '0', 'gpt_result': 1}], "row 1: field 'idx' is '0'; it must be a whole number"),
  ],
)
def test_verdicts_of_other_pairs_are_refused(results, message, tmp_path):
  with pytest.raises(UserError, match=message):
    write_pandalm(tmp_path, results)


def test_verdicts_need_their_test_set(tmp_path):
  json_files.write_list(tmp_path / 'gpt.json', [{'idx': 0, 'gpt_result': 1}])
  with pytest.raises(UserError, match='name one test set beside it'):
    agreement.make(section(pandalm=tmp_path / 'gpt.json'))


def test_equal_responses_do_not_count_for_consistency(tmp_path):
  rows = [
    {'input': f'q{n}', 'output_1': one, 'output_2': 'b', 'label': 1}
    for n, one in enumerate(['a', 'b', 'b'])
  ]
  json_files.write_list(tmp_path / 'rows.json', rows)
  judge = make_cached_judge(tmp_path / 'left.jsonl', prefer_left)
  benchmark = agreement.make(section(llmbar=tmp_path / 'rows.json'))
  ((_, found),) = tabulate(benchmark, Judges({'left': judge}), tmp_path).items()
  assert found['left']['consistency'] == 0


def test_nothing_configured_is_no_benchmark():
  assert agreement.make(section()) is None
