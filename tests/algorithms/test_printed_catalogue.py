"""The printed catalogue shows every row as it is, and every row has a config that trains it."""

import inspect
import subprocess
import sys
from pathlib import Path

from nlhf_jax import command
from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import Algorithm

ROOT = Path(__file__).parents[2]
ROWS = {
  name: member
  for name, member in inspect.getmembers(catalogue, inspect.isfunction)
  if inspect.signature(member).return_annotation is Algorithm
}


def test_it_prints_left_right_loss_and_references_of_every_row():
  command = [sys.executable, '-m', 'nlhf_jax.algorithms']
  printed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
  blocks = {block.split('(')[0]: block for block in printed.strip().split('\n\n')}
  assert ROWS.keys() <= blocks.keys()
  assert all('  left ' in blocks[name] and '  loss ' in blocks[name] for name in ROWS)
  assert 'right       policy^0.875 reference^0.125' in blocks['nash_md_pg']
  assert 'reference frozen, average ema(0.02)' in blocks['nash_ema_pg']
  assert 'left        2 x policy^0.5' in blocks['egpo']
  assert 'step        extragradient' in blocks['egpo']


def test_every_row_that_trains_a_policy_has_a_config():
  trained = set()
  for path in ROOT.glob('configs/*.py'):
    if path.stem != 'base':
      config = command.load_config(str(path))
      trained |= {row.algorithm for row in config.get('policies', {}).values()}
  assert ROWS.keys() - trained == {'sft', 'preference_model', 'reward_model'}
