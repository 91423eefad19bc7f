"""The claims of docs/results.md about the token game, on its command at full size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import OPTIMISED

ROOT = Path(__file__).parents[1]
MINUTES = 30  # for a machine that runs other tests beside it


@pytest.mark.full
@pytest.mark.slow
def test_all_methods_but_best_response_solve_the_game(tmp_path):
  arguments = [sys.executable, '-m', 'nlhf_jax.main', '--config=configs/token_game.py']
  process = subprocess.run(
    [*arguments, f'--workdir={tmp_path}'],
    cwd=ROOT,
    env=os.environ | OPTIMISED,
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
  # As many comparisons teach more as votes that are kept than as probabilities that are used once.
  for name in ('nash_md_pg', 'online_ipo'):
    from_oracle, from_votes = results['methods'][name], results['learners'][name]
    assert from_oracle['judged'][1] == from_votes['judged'][-1] == 16_000
    assert from_votes['gap'][-1] < from_oracle['gap'][1]
  assert results['learners']['oelhf']['gap'][-1] < results['reference']['gap'] / 5
  for figure in ('exploitability', 'tabular', 'votes'):
    assert (tmp_path / f'{figure}.png').stat().st_size > 10_000
