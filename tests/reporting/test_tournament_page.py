"""The page of a tournament holds its data, escaped, and needs nothing else."""

import json
import math

import numpy as np
import pytest

from nlhf_jax.reporting import tournament_page

NASTY = (
  '</script><script>alert("1")</script> <!-- \'"\\ & \u2028\u2029 {{ content }} caf\u00e9 \ud800'
)


def results():
  table = {'win_rate': [[0.5, 0.2], [0.8, 0.5]], 'low': [[0.5, 0.1], [0.7, 0.5]]}
  table['high'] = [[0.5, 0.3], [0.9, 0.5]]
  return {
    'name': 'nash_md',
    'policies': ['sft', 'nash_md'],
    'tables': {'oracle': table, 'learned': table},
    'kl_to_reference': {'sft': 0.0, 'nash_md': 2.7},
    'stages': {'sft': {'steps': 2, 'seconds': 1.5}},
  }


def metrics(count):
  return [{'stage': 'sft', 'step': step, 'loss': 1 / (step + 1)} for step in range(count)]


def samples(count, response='A boat.'):
  preferences = {'oracle': [[0.5, 0.2], [0.8, 0.5]]}
  return [
    {
      'prompt': f'Prompt {index}',
      'responses': {'sft': 'A tide.', 'nash_md': response},
      'preferences': preferences,
    }
    for index in range(count)
  ]


def embedded_data(page):
  start = '<script type="application/json" id="data">'
  assert page.count(start) == 1
  # As a browser reads it: the element ends at the first end tag, whatever the JSON says.
  return json.loads(page.split(start)[1].split('</script')[0])


def test_data_round_trips():
  data = embedded_data(tournament_page.render(results(), metrics(3), samples(2)))
  assert data['results'] == results()
  assert data['samples'] == samples(2)
  assert data['samples_total'] == 2
  assert data['curves'] == [
    {'stage': 'sft', 'metric': 'loss', 'points': 3, 'steps': [0, 1, 2], 'values': [1, 1 / 2, 1 / 3]}
  ]


def test_no_response_can_end_the_data(tmp_path):
  path = tmp_path / 'report.html'
  tournament_page.write(path, results(), [], samples(1, NASTY))
  page = path.read_text(encoding='utf-8')
  assert embedded_data(page)['samples'][0]['responses']['nash_md'] == NASTY
  plain = tournament_page.render(results(), [], samples(1))
  assert page.count('<script') == plain.count('<script')
  assert '\u2028' not in page
  assert '\u2029' not in page


@pytest.mark.parametrize('tables', [{}, {'learned': {'win_rate': [[0.5]]}}])
def test_optional_parts_may_be_missing(tables):
  data = embedded_data(tournament_page.render({'policies': ['sft'], 'tables': tables}, [], []))
  assert data == {
    'results': {'policies': ['sft'], 'tables': tables},
    'curves': [],
    'samples': [],
    'samples_total': 0,
  }


def test_nonfinite_numbers_become_null():
  rows = [
    {'stage': 'sft', 'step': 0, 'loss': math.nan},
    {'stage': 'sft', 'step': 1, 'loss': -math.inf},
    {'stage': 'sft', 'step': 2, 'loss': 1.5},
  ]
  page = tournament_page.render({**results(), 'judge': {'accuracy': math.inf}}, rows, [])
  assert embedded_data(page)['results']['judge'] == {'accuracy': None}
  assert embedded_data(page)['curves'][0]['values'] == [None, None, 1.5]


def test_arrays_and_scalars_become_numbers():
  win_rate = np.array([[0.5, np.nan], [0.75, 0.5]])
  given = {'policies': ('sft', 'nash_md'), 'tables': {'oracle': {'win_rate': win_rate}}}
  row = {'stage': 'sft', 'step': np.int32(7), 'loss': np.float32(0.5), 'kl': np.array(0.25)}
  data = embedded_data(tournament_page.render(given, [row], []))
  assert data['results']['tables']['oracle']['win_rate'] == [[0.5, None], [0.75, 0.5]]
  assert [(curve['steps'], curve['values']) for curve in data['curves']] == [
    ([7], [0.5]),
    ([7], [0.25]),
  ]


def test_only_numbers_become_curves():
  row = {'stage': 'sft', 'step': 1, 'loss': 1, 'note': 'slow', 'done': True, 'win_rate': None}
  data = embedded_data(tournament_page.render(results(), [row], []))
  assert [curve['metric'] for curve in data['curves']] == ['loss']


@pytest.mark.parametrize('count', [1, 399, 400, 401, 1000, 4321])
def test_thinning_keeps_both_ends(count):
  (curve,) = embedded_data(tournament_page.render(results(), metrics(count), []))['curves']
  assert (curve['steps'][0], curve['steps'][-1]) == (0, count - 1)
  assert curve['values'][-1] == 1 / count
  assert len(curve['steps']) == len(curve['values']) <= tournament_page.MAX_POINTS + 1
  assert curve['points'] == count
  if count <= tournament_page.MAX_POINTS:
    assert len(curve['steps']) == count


def test_thinning_keeps_rarely_logged_metrics():
  rows = metrics(2000)
  for row in rows[49::50]:
    row['win_rate'] = 0.6
  curves = embedded_data(tournament_page.render(results(), rows, []))['curves']
  (curve,) = [curve for curve in curves if curve['metric'] == 'win_rate']
  assert curve['steps'] == list(range(49, 2000, 50))


def test_samples_are_limited_and_counted():
  data = embedded_data(tournament_page.render(results(), [], samples(1024)))
  assert data['samples'] == samples(1024)
  long = samples(30, 'word ' * 60_000)
  data = embedded_data(tournament_page.render(results(), [], long))
  assert data['samples'] == long[:16]  # of 300 kB each
  assert data['samples_total'] == 30
  (whole,) = embedded_data(
    tournament_page.render(results(), [], samples(2, 'x' * tournament_page.MAX_SAMPLE_BYTES))
  )['samples']
  assert len(whole['responses']['nash_md']) == tournament_page.MAX_SAMPLE_BYTES
