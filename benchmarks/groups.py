"""MaxMin over the raters of the embedded task beside their mean: who pays, and how much.

python benchmarks/groups.py [SEED ...]

Each of the three raters is a group, whose judge is a function of this file. Two policies start from
the same SFT policy and play against it: `by_mean` under the mean of the groups, `by_maxmin` under
weights that move towards the group it serves worst. Writes benchmarks/results/groups.json: win
rates over SFT by group on held-out posts, the least of them, and their mean, each with a 95 %
bootstrap interval over posts, and the differences between the two policies.
"""

import json
import sys
import tempfile
from pathlib import Path

import environments
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import base  # noqa: E402
from nlhf_jax.experiments.start import start  # noqa: E402
from nlhf_jax.storage import json_lines  # noqa: E402
from nlhf_jax.tasks.summaries import generator  # noqa: E402

RESULTS = ROOT / 'benchmarks' / 'results'
GROUPS = ('first', 'second', 'third')
TAU = 0.02
RESAMPLES = 2_000


def first(posts, left, right):
  """P(left > right) of the first rater, who likes reports best, then lists, then questions."""
  return generator.rater_preferences(posts, left, right)[:, 0]


def second(posts, left, right):
  """That of the second rater: lists, questions, reports."""
  return generator.rater_preferences(posts, left, right)[:, 1]


def third(posts, left, right):
  """That of the third rater: questions, reports, lists."""
  return generator.rater_preferences(posts, left, right)[:, 2]


def make_config(seed: int):
  """Both policies, each of 300 updates on the embedded task."""
  groups = ','.join(f'{__file__}:{name}' for name in GROUPS)
  judges = {'by_mean': f'mean({groups})', 'by_maxmin': f'maxmin({groups})'}
  policies = {
    name: base.policy('best_response', tau=TAU, judge=judge) for name, judge in judges.items()
  }
  config = base.trains(**policies)()
  config.judges, config.seed = groups, seed
  return config


def measure(lines: list[dict], weights: dict[str, float], seed: int) -> dict:
  """Win rates over SFT from the records of the tournament, with intervals over posts."""
  policies = list(lines[0]['responses'])
  wins = np.array(
    [[np.array(line['preferences'][group])[1:, 0] for group in GROUPS] for line in lines]
  )  # [posts, groups, policies]
  drawn = np.random.default_rng(seed).integers(len(wins), size=(RESAMPLES, len(wins)))
  means = np.concatenate([wins.mean(axis=0)[None], [wins[rows].mean(axis=0) for rows in drawn]])
  figures = {group: means[:, place] for place, group in enumerate(GROUPS)}
  figures |= {'worst_off': means.min(axis=1), 'mean': means.mean(axis=1)}

  def with_interval(values):
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return {'value': float(values[0]), 'low': float(low), 'high': float(high)}

  found = {
    policy: {name: with_interval(values[:, place]) for name, values in figures.items()}
    for place, policy in enumerate(policies[1:])
  }
  found['maxmin_less_mean'] = {
    name: with_interval(values[:, 1] - values[:, 0]) for name, values in figures.items()
  }
  return {'seed': seed, 'posts': len(wins), 'weights': weights, **found}


def main() -> None:
  """Trains and measures both policies for each seed, and writes what was found."""
  seeds = [*map(int, sys.argv[1:])] or [0]
  runs = []
  for seed in seeds:
    with tempfile.TemporaryDirectory() as folder:
      workdir = Path(folder)
      start(make_config(seed), 'groups', workdir, workdir / 'stages')
      curve = json_lines.read(workdir / 'metrics.jsonl')
      last = [row for row in curve if row['stage'] == 'by_maxmin'][-1]
      weights = {group: last[f'weight_of_{group}'] for group in GROUPS}
      runs.append(measure(json_lines.read(workdir / 'samples.jsonl'), weights, seed))
    found = {'machine': environments.machine(), 'tau': TAU, 'runs': runs}
    (RESULTS / 'groups.json').write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()
