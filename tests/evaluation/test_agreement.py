"""Agreement with labels: the published counts, and figures of a few verdicts."""

import json

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import agreement
from nlhf_jax.storage import json_files

SUBSETS = {'Natural': 'Natural', 'Neighbor': 'Adversarial/Neighbor'}


@pytest.mark.parametrize('subset', SUBSETS)
@pytest.mark.parametrize('judge', ['ChatGPT', 'GPT-4'])
@pytest.mark.parametrize('prompt', ['Swap', 'Vanilla_NoRules'])
def test_llmbars_counts_are_reproduced(subset, judge, prompt, shared):
  folder = shared / 'data' / 'llmbar'
  rows = agreement.read_llmbar(folder / f'{subset}.json.gz')
  labels = np.array([row['label'] for row in rows])
  verdicts = agreement.read_llmbar_verdicts(folder / f'{subset}.{judge}.{prompt}.jsonl.gz')
  counts = agreement.in_both_orders(verdicts, labels)
  published = json.loads((folder / 'expected.json').read_text())[SUBSETS[subset]]
  for name, text in published[f'{judge}/{prompt}']['published'].items():
    assert [counts[name], counts['n']] == [int(word) for word in text.split()[:3:2]]


def test_pandalms_figures_are_reproduced(shared):
  folder = shared / 'data' / 'pandalm'
  rows = agreement.read_pandalm(folder / 'testset-v1.json.gz')
  labels = agreement.pandalm_labels(rows)
  expected = json.loads((folder / 'expected.json').read_text())
  kappas = agreement.kappas(labels)
  for pair, name in (((0, 1), 'kappa_12'), ((0, 2), 'kappa_13'), ((1, 2), 'kappa_23')):
    assert round(kappas[pair], 2) == expected['published'][name]
    assert kappas[pair] == pytest.approx(expected['own_check'][name], abs=1e-12)
  verdicts, counts = np.unique(agreement.majority(labels), return_counts=True)
  found = {str(verdict): count for verdict, count in zip(verdicts, counts, strict=True)}
  assert found == expected['published']['majority_counts']
  assert {type(row['response1']) for row in rows} == {str}


def test_kappa_is_agreement_beyond_chance():
  one, other = np.array([1, 1, 2, 2, 1, 2]), np.array([1, 1, 2, 1, 2, 2])
  # 4 of 6 agree, and half would by chance.
  assert agreement.kappa(one, other) == pytest.approx((4 / 6 - 1 / 2) / (1 / 2))
  assert agreement.kappa(one, one) == 1
  assert agreement.kappa(one, 3 - one) == -1
  assert agreement.kappa(np.ones(3, int), np.ones(3, int)) == 1
  assert agreement.kappa(np.ones(3, int), np.array([1, 1, 2])) == 0


def test_most_judges_decide_and_without_a_majority_it_is_a_tie():
  labels = np.array([[1, 1, 2], [0, 2, 2], [0, 1, 2], [1, -1, -1], [-1, -1, -1]])
  assert agreement.majority(labels).tolist() == [1, 2, 0, 1, 0]


def test_scores_of_a_judge():
  verdicts, labels = np.array([1, 2, 0, -1, 1, 2]), np.array([1, 2, 1, 2, 2, 0])
  found = agreement.scores(verdicts, labels)
  assert found['accuracy'] == pytest.approx(2 / 6)
  assert found['decided'] == pytest.approx(2 / 3)
  assert found['ties'] == found['none'] == pytest.approx(1 / 6)
  assert np.isnan(agreement.scores(np.zeros(2, int), np.ones(2, int))['decided'])


def test_verdicts_may_be_ties_or_missing(tmp_path):
  rows = [
    {'winner_ab': '1', 'winner_ba_mapped_back': 'TIE'},
    {'winner_ab': None, 'winner_ba_mapped_back': 2},
  ]
  json_files.write_lines(tmp_path / 'rows.jsonl', rows)
  assert agreement.read_llmbar_verdicts(tmp_path / 'rows.jsonl').tolist() == [[1, 0], [-1, 2]]


@pytest.mark.parametrize('winner', ['3', 'a', 1.0, True, [1]])
def test_a_verdict_that_is_none_is_named(tmp_path, winner):
  rows = [{'winner_ab': winner, 'winner_ba_mapped_back': '1'}]
  json_files.write_lines(tmp_path / 'rows.jsonl', rows)
  with pytest.raises(UserError, match="row 1: field 'winner_ab' is"):
    agreement.read_llmbar_verdicts(tmp_path / 'rows.jsonl')


def test_a_label_must_choose(tmp_path):
  json_files.write_list(
    tmp_path / 'rows.json', [{'input': 'i', 'output_1': 'a', 'output_2': 'b', 'label': 0}]
  )
  with pytest.raises(UserError, match="row 1: field 'label' is 0; it must be of 1, 2"):
    agreement.read_llmbar(tmp_path / 'rows.json')
