"""MT-Bench as a benchmark: policies answer its questions, a language model grades the answers.

All files are FastChat's: `question.jsonl`, `model_answer/POLICY.jsonl` and
`model_judgment/JUDGE_MODE.jsonl` in the folder `mt_bench` of the work directory.
"""

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import mt_bench_judge, mt_bench_scores, radar
from nlhf_jax.evaluation.benchmarks.benchmark import (
  Benchmark,
  BenchmarkTable,
  EvaluatedPolicy,
  Judges,
  require_all,
)
from nlhf_jax.evaluation.benchmarks.mt_bench_judge import Materials
from nlhf_jax.judges import judge_prompts, verdicts
from nlhf_jax.storage import json_lines
from nlhf_jax.storage.texts import printable

EXCERPT = 160  # characters of an answer that a message repeats
PAIR_COLUMNS = ('win', 'tie', 'loss', 'win_rate_adjusted', 'failed')


def make(section: Mapping[str, str]) -> Benchmark | None:
  """The benchmark of the section `mt_bench`; None if it names no questions.

  Args:
    section: paths of FastChat's files in `questions`, `references` and `judge_prompts`; `mode`,
      single or pair; and `reading`, one of `verdicts.READINGS`.

  Raises:
    UserError: if a setting or a file cannot be used.
  """
  if not section['questions']:
    return None
  mode = section['mode']
  if mode not in ('single', 'pair'):
    raise UserError(f"config.mt_bench.mode='{mode}' must be single or pair.")
  if section['reading'] not in verdicts.READINGS:
    raise UserError(
      f"config.mt_bench.reading='{section['reading']}' must be {' or '.join(verdicts.READINGS)}."
    )
  require_all(
    'mt_bench', section, ('references', 'judge_prompts'), "give the path of FastChat's file."
  )
  materials = Materials(
    mt_bench_scores.read_questions(section['questions']),
    mt_bench_scores.read_answers(section['references']),
    judge_prompts.read_prompts(section['judge_prompts']),
    verdicts.READINGS[section['reading']],
    section['references'],
  )
  return Benchmark(
    'mt_bench',
    run=functools.partial(run, materials, mode),
    answer=functools.partial(answer, materials),
    prepare=functools.partial(mt_bench_judge.check_materials, materials, mode),
    min_generators=2 if mode == 'pair' else 1,
    needs_chat_judge=True,
  )


def answer(materials: Materials, policy: EvaluatedPolicy, folder: Path) -> None:
  """Writes the policy's answers to all questions."""
  rows = mt_bench_scores.answer(policy.respond, materials.questions, policy.name)
  mt_bench_scores.write(answer_path(folder, policy.name), rows)


def answer_path(folder: Path, policy: str) -> Path:
  """The file of a policy's answers."""
  return folder / 'mt_bench' / 'model_answer' / f'{policy}.jsonl'


def run(
  materials: Materials,
  mode: str,
  policies: Mapping[str, EvaluatedPolicy],
  judges: Judges,
  folder: Path,
) -> list[BenchmarkTable]:
  """Grades or compares all answers, writes the judgements and, in single mode, the radar plot.

  Raises:
    UserError: if the judge cannot be reached, or none of its responses can be parsed.
  """
  own = folder / 'mt_bench'
  answers = {
    name: mt_bench_scores.read_answers(answer_path(folder, name))
    for name, policy in policies.items()
    if policy.respond
  }
  mt_bench_scores.write(own / 'question.jsonl', materials.questions)
  judge = mt_bench_judge.grade if mode == 'single' else mt_bench_judge.compare
  rows = judge(judges.chat, materials, answers, judges.chat_name)
  path = own / 'model_judgment' / f'{file_name(judges.chat_name)}_{mode}.jsonl'
  mt_bench_scores.write(path, rows)
  failures = [row for row in rows if mt_bench_scores.failed(row)]
  if len(failures) == len(rows):
    raise UserError(
      f"the judge '{printable(judges.chat_name)}' gave no verdict that can be parsed (the last "
      f'answer: {excerpt(failures[-1])}); all are in {path}.'
    )
  title = f'MT-Bench, judged by {printable(judges.chat_name)}'
  if materials.readers is verdicts.FIRST_MATCH:
    title += ", verdicts read as FastChat does: the first match in the judge's whole text"
  if mode == 'pair':
    table = pair_table(title, mt_bench_scores.count_wins(rows))
  else:
    scores = mt_bench_scores.summarise(rows, materials.questions)
    draw_radar(title, scores, own / 'radar.png')
    table = score_table(title, scores)
  if failures:
    table = table._replace(note=f'{table.note} The last of them: {excerpt(failures[-1])}.')
  return [table]


def file_name(model: str) -> str:
  """The name of a model as part of the name of a file."""
  return re.sub(r'[^A-Za-z0-9_.-]', '_', model.replace('/', '__'))[:100]


def excerpt(judgement: Mapping) -> str:
  """The end of the judge's answer without a verdict, for messages."""
  if 'score' in judgement:
    text = judgement['judgment']
  else:
    text = judgement['g2_judgment' if judgement['g2_winner'] == 'error' else 'g1_judgment']
  text = printable(' '.join(text.split()))
  return repr(text if len(text) <= EXCERPT else f'...{text[-EXCERPT:]}')


def draw_radar(title: str, scores: Mapping[str, Mapping], path: Path) -> None:
  """Draws the scores by category, if all policies have the same three or more categories."""
  categories = {name: row['categories'] for name, row in scores.items()}
  same = len({frozenset(found) for found in categories.values()}) == 1
  if same and all(len(found) > 2 for found in categories.values()):
    with json_lines.atomic_write(path) as draft:
      radar.draw(categories, title).savefig(draft, dpi=150, format='png')


def pair_table(title: str, wins: Mapping[str, Mapping]) -> BenchmarkTable:
  """The table of pairwise mode."""
  return BenchmarkTable(
    title,
    'A win in only one of the two orders counts as a tie, and a tie as half a win. Comparisons for '
    'which no verdict can be parsed are counted as failed and enter no other figure.',
    list(PAIR_COLUMNS),
    [[name, *(row[column] for column in PAIR_COLUMNS)] for name, row in wins.items()],
  )


def score_table(title: str, scores: Mapping[str, Mapping]) -> BenchmarkTable:
  """The table of single mode, by turn and by category."""
  turns = sorted({turn for row in scores.values() for turn in row['turns']})
  names = sorted({name for row in scores.values() for name in row['categories']})
  return BenchmarkTable(
    title,
    'Mean scores out of 10. Grades that cannot be parsed are counted as failed and enter no mean.',
    ['average', *(f'turn {turn}' for turn in turns), *names, 'failed'],
    [
      [
        policy,
        row['average'],
        *(row['turns'].get(turn, math.nan) for turn in turns),
        *(row['categories'].get(name, math.nan) for name in names),
        row['failed'],
      ]
      for policy, row in scores.items()
    ],
  )
