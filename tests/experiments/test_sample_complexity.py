"""The sample complexity experiment: from its command to its files, and its error messages."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax import command, main
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.sample_complexity.config import make_experiment
from nlhf_jax.sample_complexity.protocols import STRATEGIES
from tests import described_runs

CONFIG = 'configs/sample_complexity.py'


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  root = Path(__file__).parents[2]
  monkeypatch.chdir(root)
  monkeypatch.syspath_prepend(str(root))


@pytest.mark.slow
def test_a_small_run_writes_its_report(tmp_path, capsys):
  small = [
    *('seeds=4', 'offline.updates=3', 'online.rounds=3'),
    *(f'{part}.taus=0.1' for part in ('rates', 'offline', 'online')),
    *(f'{part}.votes=1e2,1e4' for part in ('rates', 'offline', 'rewards')),
  ]
  overrides = [f'--config.{text}' for text in small]
  assert main.main(['main', f'--config={CONFIG}', f'--workdir={tmp_path}', *overrides]) == 0
  results = json.loads((tmp_path / 'results.json').read_text(), parse_constant=pytest.fail)
  assert described_runs.undescribed(tmp_path, 'sample_complexity') == set()
  rates = results['rates']['curves']['τ = 0.1']
  assert rates['mean'][1] < rates['mean'][0] / 30
  assert rates['identity_error'] < 1e-15
  assert rates['predicted'][0] == pytest.approx(100 * rates['predicted'][1])
  assert len(results['offline']['panels']) == 2
  assert list(results['online']['panels']['τ = 0.1']) == list(STRATEGIES)
  # Three updates are too few for the version space, which is reported; Newton's games are solved.
  assert results['offline']['unsolved'].keys() == results['offline']['panels'].keys()
  for rows in results['offline']['unsolved'].values():
    assert rows.keys() == {'version space'}
    assert min(rows['version space']['left']) > 1e-9
  assert results['online']['unsolved'] == {}
  assert len(results['rewards']['curves']) == 4
  figures = {'rates.png', 'offline_1.png', 'offline_2.png', 'online_1.png', 'rewards.png'}
  others = {'.lock', 'config.json', 'results.json', 'report.html'}
  assert {path.name for path in tmp_path.iterdir()} == figures | others
  page = (tmp_path / 'report.html').read_text()
  assert page.count('class="plot"') == page.count('<figure id=') == len(figures)
  printed = capsys.readouterr().out
  for text in (page, printed):
    assert 'The inner games of version space were not solved to nine digits' in text
  assert 'self-play' in printed
  assert 'Means over 4 seeds.' in printed


@pytest.mark.parametrize('world', ['anything', 'star', 'bilinear', 'bradley_terry', 'listed'])
def test_every_world_can_be_built(world):
  with jax.enable_x64(True):
    experiment = make_experiment(command.load_config(f'{CONFIG}:{world}'), world)
    preference = np.asarray(experiment.online.world.draw(jax.random.key(0)))
  assert preference.shape == (1, 8, 8)
  np.testing.assert_allclose(preference + preference.swapaxes(1, 2), 1, rtol=1e-14)


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('rates.taus', '0.1, 0', r"config\.rates\.taus='0\.1, 0' must be finite numbers above 0"),
    ('offline.votes', '9, 3', r"config\.offline\.votes='9, 3' must increase"),
    ('payoff', 'odds', r"config\.payoff: there is no 'odds'"),
    ('seeds', 1, r'config\.seeds=1 must be at least 2'),
    ('online.world.name', 'moon', r"config\.online\.world\.name: there is no 'moon'"),
    ('rewards.world.name', 'anything', r"config\.rewards\.world\.name='anything' must be"),
  ],
)
def test_invalid_setting_is_named(field, value, words):
  config = command.load_config(CONFIG)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=words):
    make_experiment(config, 'wrong')
