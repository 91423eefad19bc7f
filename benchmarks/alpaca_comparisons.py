"""AlpacaEval's judgements as JSON lines that a run can learn from, in the schema `graded`.

python benchmarks/alpaca_comparisons.py --alpaca-eval DIR --out FILE [--count 2000]
python -m nlhf_jax.main --config=configs/preferences.py:file --config.data.path=FILE \\
    --config.data.schema=graded --config.data.skip_bad=True

The judge is GPT-4, of whose answer the probability is kept; one side is always its own response.
Left out: responses with no text, and the two models that were made to fool the judge.
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from nlhf_jax.storage import json_lines

CHEATS = ('NullModel', 'gpt4_gamed')


def comparisons(folder: Path, count: int | None) -> list[dict]:
  """The `count` comparisons whose longest text is shortest, or all.

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
      if all(side.strip() for side in sides.values()) and sides['left'] != sides['right']:
        chance = judged['preference'] - 1
        found.append({'prompt': question['instruction'], **sides, 'preference': chance})
  if count is not None and len(found) < count:
    raise ValueError(f'{folder} has {len(found)} comparisons, fewer than {count}')
  return sorted(found, key=longest)[:count]


def longest(row: dict) -> int:
  """Characters of the longest text."""
  return max(len(text) for text in row.values() if isinstance(text, str))


def _lines(path: Path) -> Iterator[dict]:
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    yield from map(json.loads, file)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--alpaca-eval', type=Path, required=True, help='the folder of judgements')
  parser.add_argument('--count', type=int, help='how many comparisons to write, shortest first')
  parser.add_argument('--out', type=Path, required=True, help='the file to write')
  arguments = parser.parse_args()
  rows = comparisons(arguments.alpaca_eval, arguments.count)
  json_lines.write(arguments.out, rows)
  most = max(map(longest, rows))
  print(f'{arguments.out}: {len(rows)} comparisons, of texts of up to {most} characters')


if __name__ == '__main__':
  main()
