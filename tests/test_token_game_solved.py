"""What the README says of the token game, on the command it names, at full size."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MINUTES = 30  # for a machine that runs other tests beside it


def test_five_methods_solve_the_game_and_best_response_does_not(tmp_path):
  command = [sys.executable, '-m', 'nlhf_jax.main', '--config=configs/token_game.py']
  process = subprocess.run(
    [*command, f'--workdir={tmp_path}'],
    cwd=ROOT,
    env=os.environ | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '0'},
    capture_output=True,
    text=True,
    check=False,
    timeout=60 * MINUTES,
  )
  assert process.returncode == 0, process.stdout + process.stderr
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results['equilibrium']['gap'] < 1e-12
  gaps = {label: row['gap'][-1] for label, row in results['methods'].items()}
  assert 2 * results['target'] < gaps.pop('best_response')
  assert gaps.keys() == {'nash_md_pg', 'online_ipo', 'inpo', 'egpo', 'nash_ema_pg'}
  assert max(gaps.values()) < results['target'] == 0.01, gaps
  # What votes have taught is worth more than as many probabilities that are used once.
  for name in ('nash_md_pg', 'online_ipo'):
    told, voted = results['methods'][name], results['learners'][name]
    assert told['judged'][1] == voted['judged'][-1] == 16_000
    assert voted['gap'][-1] < told['gap'][1]
  assert results['learners']['oelhf']['gap'][-1] < results['reference']['gap'] / 5
  for figure in ('exploitability', 'tabular', 'votes'):
    assert (tmp_path / f'{figure}.png').stat().st_size > 10_000
