"""Writes AlpacaEval's judgements as comparisons that a run can train on, in the form `graded`.

python benchmarks/alpaca_comparisons.py --alpaca-eval DIR --out FILE [--count 2000] [--prompts FILE]
python -m nlhf_jax.main --config=configs/preferences.py:file --config.data.path=FILE \\
    --config.data.schema=graded --config.data.skip_bad=True

The judge is GPT-4, whose probability is the preference; one side is always GPT-4's own response.
Empty responses are left out, and so are the two models that were made to fool the judge.
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from nlhf_jax.storage import json_lines

CHEATS = ('NullModel', 'gpt4_gamed')
BASELINE = 'baseline_gpt4_1106_preview.jsonl.gz'


def comparisons(folder: Path, count: int | None) -> list[dict]:
  """The `count` comparisons with the shortest longest text, or all.

  Args:
    folder: contains `baseline_gpt4_1106_preview.jsonl.gz`, with `instruction` and `output` on each
      line, and `models/*.jsonl.gz`, with `index` (of the instruction), `output` and `preference`: 1
      plus the probability that it beats the baseline.
    count: the number of comparisons; there are about 8,000.

  Raises:
    ValueError: if there are fewer.
  """
  questions = list(_lines(folder / BASELINE))
  found = []
  for path in sorted(folder.glob('models/*.jsonl.gz')):
    if path.name.removesuffix('.jsonl.gz') in CHEATS:
      continue
    for judged in _lines(path):
      question = questions[judged['index']]
      sides = {'left': judged['output'], 'right': question['output']}
      if all(side.strip() for side in sides.values()) and sides['left'] != sides['right']:
        probability = judged['preference'] - 1
        found.append({'prompt': question['instruction'], **sides, 'preference': probability})
  if count is not None and len(found) < count:
    raise ValueError(f'{folder} has {len(found)} comparisons, fewer than {count}')
  return sorted(found, key=longest)[:count]


def longest(row: dict) -> int:
  """The number of characters of the longest text."""
  return max(len(text) for text in row.values() if isinstance(text, str))


def _lines(path: Path) -> Iterator[dict]:
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    yield from map(json.loads, file)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--alpaca-eval', type=Path, required=True, help='folder of the judgements')
  parser.add_argument('--count', type=int, help='number of comparisons, shortest first')
  parser.add_argument('--out', type=Path, required=True, help='the file to write')
  parser.add_argument('--prompts', type=Path, help='a file for all instructions alone')
  arguments = parser.parse_args()
  rows = comparisons(arguments.alpaca_eval, arguments.count)
  json_lines.write(arguments.out, rows)
  if arguments.prompts:
    questions = _lines(arguments.alpaca_eval / BASELINE)
    json_lines.write(arguments.prompts, [{'prompt': row['instruction']} for row in questions])
  most = max(map(longest, rows))
  print(f'{arguments.out}: {len(rows)} comparisons, of texts of up to {most} characters')


if __name__ == '__main__':
  main()
