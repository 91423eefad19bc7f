"""What `make real` found, in brief: win rates of SmolLM2's policies under the judge held apart.

python benchmarks/smollm2.py runs/smollm2 [RUN ...]

Each RUN is the work directory of a finished run of configs/smollm2.py; the first is that of `make
real`, the others may differ in settings of the tournament. Writes benchmarks/results/smollm2.json:
by run its settings that differ from the config, and by judge and policy the win rate over the start
(`sft`), that at equal length, and each one's 95 % interval; KL, length and share of unfinished
responses; learning curves; seconds by stage.
"""

import argparse
import json
import sys
from pathlib import Path

import environments

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from nlhf_jax import command  # noqa: E402
from nlhf_jax.storage import json_lines  # noqa: E402

CONFIG = 'configs/smollm2.py'
RATES = ('win_rate', 'low', 'high')
MEANS = ('kl_to_reference', 'length', 'unfinished')
CURVES = ('step', 'kl_to_reference', 'response_length', 'unfinished')


def summarise(workdir: Path) -> dict:
  """The results of one run, without matrices of all pairs."""
  results = json_lines.read_json(workdir / 'results.json')
  policies = results['policies']
  rates = {
    judge: {
      policy: {
        'over_start': {field: table[field][row][0] for field in RATES},
        'at_equal_length': results['equal_length'][judge].get(policy),
      }
      for row, policy in enumerate(policies)
    }
    for judge, table in results['tables'].items()
  }
  head_to_head = {
    judge: {'policies': policies, **{field: table[field] for field in RATES}}
    for judge, table in results['tables'].items()
    if judge == 'held_apart'
  }
  return {
    'changed': changed(workdir),
    'prompts': results['comparisons'],
    'rates': rates,
    'head_to_head': head_to_head,
    **{field: results[field] for field in MEANS},
    'best_of': results.get('best_of', {}),
    'exploitability': results.get('exploitability', {}),
  }


def changed(workdir: Path) -> dict:
  """The settings of a run that differ from those of the config, by name."""
  of_run = flatten(json_lines.read_json(workdir / 'config.json'))
  of_config = flatten(json.loads(command.load_config(CONFIG).to_json_best_effort()))
  return {name: value for name, value in of_run.items() if of_config.get(name) != value}


def flatten(tree: dict, prefix: str = '') -> dict:
  """Dotted name -> value."""
  leaves = {}
  for name, value in tree.items():
    inner = isinstance(value, dict) and value
    leaves |= flatten(value, f'{prefix}{name}.') if inner else {prefix + name: value}
  return leaves


def read_curves(workdir: Path) -> dict[str, list[dict]]:
  """Stage -> its measurements in training."""
  curves = {}
  for record in json_lines.read(workdir / 'metrics.jsonl'):
    kept = {
      name: value
      for name, value in record.items()
      if name in CURVES or name.startswith(('win_rate_', 'held_out_'))
    }
    if any(name.startswith(('win_rate_', 'held_out_')) for name in kept):
      curves.setdefault(record['stage'], []).append(kept)
  return curves


def main(workdirs: list[Path]) -> None:
  """Writes the file."""
  found = {'machine': environments.machine(), 'config': CONFIG}
  found['runs'] = [summarise(workdir) for workdir in workdirs]
  found['curves'] = read_curves(workdirs[0])
  stages = [folder for folder in (workdirs[0], workdirs[0].parent) if (folder / 'stages').exists()]
  found['seconds'] = {
    path.parent.name.rsplit('-', 1)[0]: json_lines.read_json(path).get('seconds')
    for path in sorted((stages[0] / 'stages').glob('*/stage.json'))
  }
  path = ROOT / 'benchmarks' / 'results' / 'smollm2.json'
  path.write_text(json.dumps(found, indent=1) + '\n')
  print(f'wrote {path}')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
  parser.add_argument('workdirs', nargs='+', type=Path, metavar='RUN')
  main(parser.parse_args().workdirs)
