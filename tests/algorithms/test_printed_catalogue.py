"""The printed catalogue describes every algorithm, and every algorithm has a config."""

import subprocess
import sys
from pathlib import Path

from nlhf_jax import command
from nlhf_jax.algorithms.catalogue import ALGORITHMS

ROOT = Path(__file__).parents[2]


def test_printed_catalogue_describes_every_algorithm():
  command = [sys.executable, '-m', 'nlhf_jax.algorithms']
  printed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
  blocks = {block.split('(')[0]: block for block in printed.strip().split('\n\n')}
  assert ALGORITHMS.keys() <= blocks.keys()
  assert all('  left ' in blocks[name] and '  loss ' in blocks[name] for name in ALGORITHMS)
  assert 'right       policy^0.875 reference^0.125' in blocks['nash_md_pg']
  assert 'reference frozen, average ema(0.02)' in blocks['nash_ema_pg']
  assert 'left        2 x policy^0.5' in blocks['egpo']
  assert 'step        extragradient' in blocks['egpo']


def test_every_policy_algorithm_has_a_config():
  trained = set()
  for path in ROOT.glob('configs/*.py'):
    if path.stem != 'base':
      config = command.load_config(str(path))
      trained |= {row.algorithm for row in config.get('policies', {}).values()}
  assert ALGORITHMS.keys() - trained == {'sft', 'preference_model', 'reward_model'}
