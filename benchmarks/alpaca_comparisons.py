"""AlpacaEval's judgements of short responses, as JSON lines that a run can learn from.

python benchmarks/alpaca_comparisons.py --alpaca-eval DIR --count 2000 --out FILE
python -m nlhf_jax.main --config=configs/nash_md.py:file --config.data.path=FILE \\
    --config.data.form=graded --config.data.skip_bad=True

The judge is GPT-4; the right side is always its own response. Left out: responses with no text, two
that are the same, and the two models that were made to fool the judge.
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from nlhf_jax import records

CHEATS = ('NullModel', 'gpt4_gamed')


def comparisons(folder: Path, count: int) -> list[dict]:
  """The `count` comparisons whose longest text is shortest.

  Args:
    folder: `baseline_gpt4_1106_preview.jsonl.gz`, with `instruction` and `output` on each line, and
      `models/*.jsonl.gz`, with `index` (of the instruction), `output` and `preference`, which is 1
      plus the probability that it beats the baseline.
    count: how many; there are some 8,000.

  Raises:
    ValueError: if there are fewer.
  """
  questions = list(_lines(folder / 'baseline_gpt4_1106_preview.jsonl.gz'))
  found = []
  for path in sorted(folder.glob('models/*.jsonl.gz')):
    if path.name.removesuffix('.jsonl.gz') in CHEATS:
      continue
    for judged in _lines(path):
      question = questions[judged['index']]
      sides = {'left': judged['output'], 'right': question['output']}
      if sides['left'] != sides['right'] and all(side.strip() for side in sides.values()):
        texts = {'prompt': question['instruction'], **sides}
        found.append(texts | {'preference': judged['preference'] - 1})
  if len(found) < count:
    raise ValueError(f'{folder} has {len(found)} comparisons, fewer than {count}')
  return sorted(found, key=longest)[:count]


def longest(comparison: dict) -> int:
  """Characters of the longest text of a comparison."""
  return max(len(comparison[field]) for field in ('prompt', 'left', 'right'))


def _lines(path: Path) -> Iterator[dict]:
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    yield from map(json.loads, file)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--alpaca-eval', type=Path, required=True, help='the folder of judgements')
  parser.add_argument('--count', type=int, required=True, help='how many comparisons to write')
  parser.add_argument('--out', type=Path, required=True, help='the file to write')
  arguments = parser.parse_args()
  lines = comparisons(arguments.alpaca_eval, arguments.count)
  records.write(arguments.out, lines)
  most = max(map(longest, lines))
  print(f'{arguments.out}: {len(lines)} comparisons, of texts of up to {most} characters')


if __name__ == '__main__':
  main()
