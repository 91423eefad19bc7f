"""Policies with players trained beside them, on the embedded task: a follower, and a prompter.

python benchmarks/players.py [FOLDER] [toy]

Three seeds. `self_play` expects no answer; `leader` is trained with a follower that reads its
response, and `leader_payoff` is not paid the follower's KL. `prompted` plays against an opponent on
prompts that a prompter chooses, and `from_data` on the same pool of prompts, all equally often. All
learn from the oracle, which measures them too. Runs are kept in FOLDER, and resume there; with
`toy` each takes a minute, and nothing is written. Otherwise benchmarks/results/players.json gets
the win rates over SFT of the policies alone, those of each round of refinement over the first
response, and the mean and the worst win rate over the prompts of the pool.
"""

import json
import sys
from pathlib import Path

import environments

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import base  # noqa: E402
from nlhf_jax.experiments.start import start  # noqa: E402

RESULTS = ROOT / 'benchmarks' / 'results'
SEEDS, STEPS, TAU, ROUNDS, POOL = (0, 1, 2), 100, 0.06, 3, 64
AGAIN = '{prompt}'  # the instruction: the follower reads the post again, after the summary of it
PROMPTER_RATES = {'prompted': 0.05, 'from_data': 1e-9}


def make_policy():
  """Self-play under the oracle, which a section of an opponent changes."""
  return base.policy('self_play', tau=TAU, judge='oracle', steps=STEPS)


def make_config(seed: int, toy: bool):
  """All policies, each of `STEPS` updates."""
  policies = {'self_play': make_policy()}
  for name, reward in (('leader', 'regularised'), ('leader_payoff', 'payoff')):
    policies[name] = base.with_opponent(
      make_policy(), reads='response', tau=TAU, reward=reward, instruction=AGAIN
    )
  for name, rate in PROMPTER_RATES.items():
    row = base.with_opponent(make_policy(), reads='prompt', tau=TAU)
    policies[name] = base.with_prompter(row, pool=POOL, tau=0.05, learning_rate=rate)
  config = base.trains(**policies)()
  config.judges, config.seed = 'lengths', seed
  config.refinement.update(rounds=ROUNDS, instruction=AGAIN)
  if toy:
    config.data.update(posts=128, held_out=16)
    for row in (config.sft, *config.policies.values()):
      row.update(steps=3, batch=8, evaluate_every=3)
    config.tournament.prompts = config.curves.prompts = 16
  return config


def summarise(results: dict) -> dict:
  """What is kept of the results of a seed."""
  table = results['tables']['oracle']
  over_sft = {
    name: {field: table[field][row][0] for field in ('win_rate', 'low', 'high')}
    for row, name in enumerate(results['policies'])
    if row
  }
  worst = results['worst_prompts']
  return {
    'over_sft': over_sft,
    'refined': {name: found['oracle'] for name, found in results['refinement'].items()},
    'worst_prompts': {name: worst['win_rates'][name]['oracle'] for name in worst['win_rates']},
    'prompter_kl': {name: found['kl'] for name, found in worst['chosen'].items()},
    'quality': results['task']['quality'],
  }


def main() -> None:
  """Runs every seed, prints a line of each, and writes what was found."""
  toy = 'toy' in sys.argv[1:]
  folder = Path(next((word for word in sys.argv[1:] if word != 'toy'), 'runs/players'))
  runs = []
  for seed in SEEDS:
    work = folder / str(seed)
    start(make_config(seed, toy), 'players', work, folder / 'stages')
    runs.append({'seed': seed, **summarise(json.loads((work / 'results.json').read_text()))})
    print(seed, json.dumps(runs[-1]), flush=True)
    found = {'machine': environments.machine(), 'tau': TAU, 'pool': POOL, 'runs': runs}
    if not toy:
      (RESULTS / 'players.json').write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()
