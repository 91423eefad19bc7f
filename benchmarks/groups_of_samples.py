"""Exploitability of Nash-MD with K responses against K opponents, by judged pairs and by seconds.

python benchmarks/groups_of_samples.py

The token game of configs/token_game.py, with K = 1, 2, 4 and 8. Every step samples as many
responses: the number of prompts in a batch is divided by K. Writes
benchmarks/results/groups_of_samples.json.
"""

import json
import sys
import tempfile
from pathlib import Path

import environments

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import token_game  # noqa: E402
from nlhf_jax.experiments.start import start  # noqa: E402

RESULTS = ROOT / 'benchmarks' / 'results'
SIZES = (1, 2, 4, 8)
STEPS = 500
BETA, TAU = 0.05, 0.05


def main() -> None:
  """Trains with every K, one after the other, and writes the curves."""
  config = token_game.get_config()
  del config.methods, config.votes.learners
  config.methods, config.votes.learners = {f'K = {size}': make_method(size) for size in SIZES}, {}
  with tempfile.TemporaryDirectory() as folder:
    workdir = Path(folder)
    start(config, 'groups_of_samples', workdir, workdir / 'stages')
    results = json.loads((workdir / 'results.json').read_text())
  curves = {
    label: {name: row[name] for name in ('at', 'judged', 'seconds', 'gap', 'solved')}
    for label, row in results['methods'].items()
  }
  found = {
    'machine': environments.machine(),
    'command': 'python benchmarks/groups_of_samples.py',
    'target': results['target'],
    'methods': curves,
  }
  (RESULTS / 'groups_of_samples.json').write_text(json.dumps(found, indent=1) + '\n')


def make_method(size: int) -> dict:
  """Nash-MD with K responses and K opponents; the tabular solver beside it is a formality."""
  arguments = dict(beta=BETA, tau=TAU, responses=size, opponents=size)
  method = token_game.method(
    'nash_md_group', 'nash_md', pull=BETA, updates=1, steps=STEPS, arguments=arguments
  )
  method['training']['batch'] //= size
  return method


if __name__ == '__main__':
  main()
