"""Exploitability against seconds, for several methods on the token game, in one plot.

python benchmarks/quality.py

The methods are those of configs/token_game.py that approach its equilibrium from pairs of
responses, and SPPO, whose equilibrium differs because it has no KL coefficient tau. Writes
benchmarks/results/quality.json and quality.png.
"""

import json
import sys
import tempfile
from pathlib import Path

import environments

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import token_game  # noqa: E402
from nlhf_jax.experiments.token_game import run as experiment  # noqa: E402

RESULTS = ROOT / 'benchmarks' / 'results'
METHODS = ('nash_md_pg', 'online_ipo', 'inpo', 'egpo')


def main() -> None:
  """Trains all methods, one after the other, and writes their curves."""
  config = token_game.get_config()
  rows = {label: config.methods[label] for label in METHODS}
  rows['sppo'] = token_game.method(
    'sppo', 'sppo', eta=1.0, updates=20, arguments=dict(eta=1.0, samples=5, every=50, log_z=0.5)
  )
  del config.methods, config.votes.learners
  config.methods, config.votes.learners = rows, {}
  with tempfile.TemporaryDirectory() as folder:
    workdir = Path(folder)
    experiment.start(config, 'quality', workdir, workdir / 'stages')
    results = json.loads((workdir / 'results.json').read_text())
    (RESULTS / 'quality.png').write_bytes((workdir / 'time.png').read_bytes())
  curves = {
    label: {name: row[name] for name in ('at', 'seconds', 'gap', 'solved')}
    for label, row in results['methods'].items()
  }
  found = {'machine': environments.machine(), 'target': results['target'], 'methods': curves}
  (RESULTS / 'quality.json').write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()
