"""Checks that the published code of AlpacaEval and MT-Bench reads the files written here.

python benchmarks/evaluation_files.py

Writes made-up model outputs, annotations (some of them ties or without a verdict) and judgements of
both modes of MT-Bench. Reads them with `alpaca_eval` and with FastChat's `show_result`, each in its
own environment, and prints the differences between their figures and ours.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import environments  # noqa: E402

from nlhf_jax.evaluation.benchmarks import alpaca_eval, mt_bench_judge, mt_bench_scores  # noqa: E402

PEERS = ROOT / '.cache' / 'peers'
ALPACA = ('alpaca_eval==0.6.6', 'scikit-learn>=1.5')
FASTCHAT = ('fschat==0.2.36', 'pandas>=2')

READ_ALPACA = """
import json, sys
from alpaca_eval import metrics, utils
outputs, annotations = map(utils.load_or_convert_to_dataframe, sys.argv[1:])
found = metrics.get_winrate(annotations)
found['avg_length'] = int(outputs['output'].str.len().mean())
print(json.dumps({name: float(value) for name, value in found.items()}))
"""


def alpaca(folder: Path) -> dict[str, float]:
  """Figure -> difference between `alpaca_eval`'s and ours."""
  random = np.random.default_rng(0)
  questions = [{'instruction': f'Say "{number}" ü.'} for number in range(200)]
  make = lambda policy: alpaca_eval.make_outputs(
    questions, ['word ' * length for length in random.integers(1, 50, len(questions))], policy
  )
  reference, own = make('reference'), make('mine')
  verdicts = random.choice([0.0, 0.2, 0.5, 0.9, 1.0, np.nan], size=len(questions))
  rows = alpaca_eval.annotate(lambda *texts: verdicts, reference, own, 'judge')
  alpaca_eval.write(folder / 'model_outputs.json', own)
  alpaca_eval.write(folder / 'annotations.json', rows)
  python = environments.make(PEERS / 'alpaca_eval', ALPACA)
  theirs = environments.run_json(
    [python, '-c', READ_ALPACA, folder / 'model_outputs.json', folder / 'annotations.json']
  )
  ours = alpaca_eval.summarise(rows)
  return {name: abs(theirs[name] - ours[name]) for name in theirs}


def fastchat(folder: Path) -> dict[str, float]:
  """Mode -> the largest difference between `show_result`'s figures and ours."""
  questions = [
    {'question_id': 81 + i, 'category': 'writing', 'turns': ['a', 'b']} for i in range(30)
  ]
  make_answer = lambda turns, policy: {
    'choices': [{'index': 0, 'turns': turns}],
    'model_id': policy,
  }
  answers = {
    policy: {row['question_id']: make_answer([policy, 'yes'], policy) for row in questions}
    for policy in ('one', 'two', 'three')
  }
  prompts = {
    f'{name}{turn}': {
      'name': f'{name}{turn}',
      'system_prompt': 'Judge.',
      'prompt_template': 'Which?',
      'output_format': '[[A]]' if name == 'pair-v2' else '[[rating]]',
    }
    for name in ('single-v1', 'pair-v2')
    for turn in ('', '-multi-turn')
  }
  materials = mt_bench_judge.Materials(questions, {}, prompts)
  random = np.random.default_rng(1)
  make_judge = lambda texts: lambda shown: random.choice(texts, size=len(shown)).tolist()
  scores = mt_bench_judge.grade(
    make_judge(['[[3]]', '[[7.5]]', '[9]', 'hm']), materials, answers, 'gpt-4'
  )
  pairs = mt_bench_judge.compare(
    make_judge(['[[A]]', '[[B]]', '[[C]]', 'hm']), materials, answers, 'gpt-4'
  )
  mt_bench_scores.write(folder / 'gpt-4_single.jsonl', scores)
  mt_bench_scores.write(folder / 'gpt-4_pair.jsonl', pairs)
  graded, won = mt_bench_scores.summarise(scores, questions), mt_bench_scores.count_wins(pairs)
  ours = {
    'single': {name: [row['average']] for name, row in graded.items()},
    'pair': {name: list(row.values()) for name, row in won.items()},
  }
  return {
    'single': difference(ours['single'], read_results(folder / 'gpt-4_single.jsonl', 'single')),
    'pair': difference(ours['pair'], read_results(folder / 'gpt-4_pair.jsonl', 'pairwise-all')),
  }


def read_results(path: Path, mode: str) -> dict[str, list[float]]:
  """The last table that `show_result` prints: policy -> figures."""
  python = environments.make(PEERS / 'fastchat', FASTCHAT)
  command = [python, '-m', 'fastchat.llm_judge.show_result', '--input-file', path, '--mode', mode]
  printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  last = printed.rpartition('##########')[2]
  rows = re.findall(r'^(one|two|three)((?:\s+[\d.]+)+)\s*$', last, flags=re.MULTILINE)
  return {name: [float(value) for value in values.split()] for name, values in rows}


def difference(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> float:
  """The largest difference; FastChat prints six digits."""
  if ours.keys() != theirs.keys():
    sys.exit(f'different policies: ours {sorted(ours)}, theirs {sorted(theirs)}')
  return float(max(np.max(np.abs(np.subtract(ours[name], theirs[name]))) for name in ours))


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    found = {**alpaca(Path(folder)), **fastchat(Path(folder))}
  for name, value in found.items():
    print(f'{name:20} {value:.1e}')
  if max(found.values()) > 1e-5:
    sys.exit('the figures of the published code differ')


if __name__ == '__main__':
  main()
