"""Iterated learning beside one-shot learning with the same number of votes.

python benchmarks/iterated.py [token_game|summaries] [SEED ...]

`token_game`, the default, measures the exploitability of online IPO on the games of
configs/token_game.py, one for each seed, with two numbers of votes: in ten rounds with each
enhancer, or all at the start. All learners make as many updates. `summaries` runs
configs/iterated.py, the embedded task, and measures win rates over SFT under its oracle; its runs
lie in .cache/iterated, so that it resumes. Seeds are 0 to 4 unless some are given. Writes
benchmarks/results/iterated.json, in which the other part stays as it is.
"""

import json
import sys
from pathlib import Path

import environments
import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import iterated  # noqa: E402
from nlhf_jax import compilation  # noqa: E402
from nlhf_jax.experiments.start import start  # noqa: E402
from nlhf_jax.experiments.token_game import run as token_game  # noqa: E402
from nlhf_jax.experiments.token_game.config import make_experiment  # noqa: E402
from nlhf_jax.storage import json_lines  # noqa: E402

RESULTS = ROOT / 'benchmarks' / 'results' / 'iterated.json'
CACHE = ROOT / '.cache' / 'iterated'
SEEDS = (0, 1, 2, 3, 4)
# Token game: updates in all and of a round, prompts of a batch, batches of votes of a round.
STEPS, ROUND, BATCH, BATCHES = 400, 40, 160, (2, 10)
TOTALS = (2_048, 8_192)  # votes on the embedded task


# --- The token game ---


def play_token_game(seed: int, batches: int, folder: Path) -> dict:
  """Learner -> its exploitability by votes, on the game of a seed."""
  config = iterated.get_config('token_game')
  config.seed, config.votes.batches = seed, batches
  for row in config.votes.learners.values():
    row.update(steps=STEPS, evaluate_every=ROUND, batch=BATCH)
  experiment = make_experiment(config, 'iterated', folder)
  params, listed = token_game.make_reference(experiment), token_game.make_list_log_probs(experiment)
  measured = token_game.make_solved_game(experiment, listed(params))
  start_gap = token_game.measure_policy(measured, listed(params))['gap']
  found = {}
  for label, learner in experiment.learners.items():
    token_game.train_learner(experiment, label, params, listed, measured)
    found[label] = token_game.course_of(learner, start_gap)
  return {'seed': seed, 'votes': found['one_shot']['judged'][-1], 'learners': found}


def measure_token_game(seeds: list[int]) -> dict:
  """The courses of all seeds and numbers of votes, and their last gaps as a table."""
  folder = CACHE / 'token_game'
  runs = [play_token_game(seed, batches, folder) for batches in BATCHES for seed in seeds]
  last = [
    {'votes': run['votes'], **{label: row['gap'][-1] for label, row in run['learners'].items()}}
    for run in runs
  ]
  return {'steps': STEPS, 'table': tabulate(last), 'runs': runs}


# --- The embedded task ---


def play_summaries(seed: int, total: int) -> dict:
  """Policy -> its win rate over SFT under the oracle, and its curve, with a number of votes."""
  config = iterated.get_config()
  config.seed, config.judges = seed, 'nlhf_jax.tasks.summaries.generator:preference'
  for row in config.policies.values():
    row.votes.total = total
  workdir = CACHE / f'summaries-{seed}-{total}'
  start(config, 'iterated', workdir, CACHE / 'stages')
  results = json.loads((workdir / 'results.json').read_text())
  table, entries = results['tables']['oracle'], results['policies']
  curves = json_lines.read(workdir / 'metrics.jsonl')
  metric = 'win_rate_against_reference_by_preference'
  policies = {
    name: {
      'win_rate': table['win_rate'][place][0],
      'over_one_shot': table['win_rate'][place][entries.index('one_shot')],
      'kl': results['kl_to_reference'][name],
      'quality': results['task']['quality'][name],
      'curve': [
        [row['step'], row[metric]] for row in curves if row['stage'] == name and metric in row
      ],
      **results['votes'][name],
    }
    for place, name in enumerate(entries)
    if name != 'sft'
  }
  return {'seed': seed, 'votes': total, 'policies': policies}


def measure_summaries(seeds: list[int]) -> dict:
  """The win rates of all seeds and numbers of votes, and a table of them."""
  runs = [play_summaries(seed, total) for total in TOTALS for seed in seeds]
  rates = [
    {'votes': run['votes'], **{name: row['win_rate'] for name, row in run['policies'].items()}}
    for run in runs
  ]
  return {'table': tabulate(rates), 'runs': runs}


# --- Both ---


def tabulate(runs: list[dict]) -> list[dict]:
  """Mean over the seeds of each value, and of its difference from one-shot learning on the same
  seed, with a 95 % Student interval; one row for each number of votes.
  """
  table = []
  for votes in sorted({run['votes'] for run in runs}):
    rows = [run for run in runs if run['votes'] == votes]
    shot, found = np.array([row['one_shot'] for row in rows]), {}
    for name in [name for name in rows[0] if name != 'votes']:
      values = np.array([row[name] for row in rows])
      found[name] = {'mean': values.mean(), 'values': values}
      if name != 'one_shot':
        found[name] |= {'less_one_shot': with_interval(values - shot)}
    table.append({'votes': votes, 'seeds': len(rows), **found})
  return json_lines.to_json(table)


def with_interval(values: np.ndarray) -> dict:
  """The mean and its 95 % Student interval; without one for a single value."""
  half = np.nan
  if len(values) > 1:
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
  return {'mean': values.mean(), 'low': values.mean() - half, 'high': values.mean() + half}


PARTS = {'token_game': measure_token_game, 'summaries': measure_summaries}


def main() -> None:
  """Measures one part, and writes it beside what is there of the other."""
  part, *seeds = sys.argv[1:] or ['token_game']
  if part not in PARTS:
    sys.exit(f"'{part}' must be one of {', '.join(PARTS)}.")
  compilation.keep_programs(CACHE / 'programs')
  measured = PARTS[part]([*map(int, seeds)] or list(SEEDS))
  found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  found[part] = {'machine': environments.machine(), **measured}
  RESULTS.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()
