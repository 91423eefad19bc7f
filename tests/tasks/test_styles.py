"""The embedded task's annotations of a tournament, on records made by hand."""

import numpy as np
import pytest

from nlhf_jax.tasks.summaries import generator, styles

POST = 'well the baker so sold um clock at harbour around noon okay'
PERFECT = dict(zip(generator.STYLES, styles.perfect_summaries(POST), strict=True))


def record(response, other):
  """A record of a tournament of one policy, annotated."""
  line = {'prompt': POST, 'responses': {'sft': response}}
  matrix = [[0.5, 0.7, 0.3], [0.3, 0.5, 0.7], [0.7, 0.3, 0.5]]
  return line | styles.annotate(line, {'sft': other}) | {'perfect': {'oracle': matrix}}


def test_perfect_summaries_are_perfect_in_each_style():
  for style, summary in PERFECT.items():
    assert generator.find_style(summary) == style
    assert generator.quality(POST, summary) == 1


def test_a_response_has_its_style_and_quality():
  line = record('key points baker ; stole', PERFECT['list'])
  assert line['style'] == {'sft': 'list'}
  assert line['quality'] == {'sft': 0}


@pytest.mark.parametrize(
  ('style', 'counter'), [('report', 'question'), ('list', 'report'), ('question', 'list')]
)
def test_the_best_counter_style_beats_the_style(style, counter):
  line = record(PERFECT[style], PERFECT['report'])
  chances = line['counter']['sft']
  assert max(chances, key=chances.get) == counter
  assert chances[counter] > 0.55
  assert chances[style] == pytest.approx(0.5)


def test_the_counter_style_restyles_the_other_sample():
  line = record(PERFECT['list'], 'key points nurse ; stole')
  assert max(line['counter']['sft'].values()) < 0.05


def test_summaries_of_records_have_means_and_counters():
  lines = [
    record(PERFECT['list'], PERFECT['list']),
    record(PERFECT['list'], PERFECT['list']),
    record('key points baker', 'key points baker'),
    record('baker', 'baker'),
  ]
  summary = styles.summarise(lines)
  assert summary['shares'] == {'sft': {'report': 0, 'list': 0.75, 'question': 0, 'none': 0.25}}
  assert summary['quality']['sft'] == pytest.approx((1 + 1 + 0.2 + 0.2) / 4)
  mean = np.mean([line['counter']['sft']['report'] for line in lines])
  assert summary['counter']['sft'] == {'style': 'report', 'win_rate': pytest.approx(mean)}
  assert summary['judge_matrix'] == {'oracle': lines[0]['perfect']['oracle']}


def test_the_weakest_edge_distinguishes_cycles_from_orders():
  cycle = [[0.5, 0.7, 0.3], [0.3, 0.5, 0.6], [0.7, 0.4, 0.5]]
  assert styles.weakest_edge(cycle) == 0.6
  order = [[0.5, 0.7, 0.8], [0.3, 0.5, 0.6], [0.2, 0.4, 0.5]]
  assert styles.weakest_edge(order) == 0.2
