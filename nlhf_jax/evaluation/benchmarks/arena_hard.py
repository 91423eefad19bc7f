"""Arena-Hard as a benchmark: policies answer its questions, a language model compares the answers.

Each answer is compared with that of the category's baseline in both orders. The files in the folder
`arena_hard` of the work directory have the published layout (`arena_hard_scores`). The prompts of
the judge are the user's: rows of a file like FastChat's `judge_prompts.jsonl`, whose `name` is the
category, or `default`, and whose template has the published fields {QUESTION}, {ANSWER_A} and
{ANSWER_B}.
"""

import functools
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import arena_hard_scores as scores
from nlhf_jax.evaluation.benchmarks.benchmark import (
  Benchmark,
  BenchmarkTable,
  EvaluatedPolicy,
  Judges,
  require_all,
  split_list,
)
from nlhf_jax.evaluation.benchmarks.mt_bench import file_name
from nlhf_jax.evaluation.benchmarks.mt_bench_judge import ChatJudge
from nlhf_jax.judges import judge_prompts
from nlhf_jax.judges.response_body import Failure
from nlhf_jax.storage import json_files
from nlhf_jax.storage.texts import printable

COLUMNS = ('score', 'low', 'high', 'judged', 'failed')
FIELDS = {'QUESTION', 'ANSWER_A', 'ANSWER_B'}
TEMPERATURE = 0.0  # of answers, as published
NOTE = (
  'Win rate over {baseline}, in percent, in both orders; a clear win counts three times. 90 % '
  'intervals by the bootstrap over battles. Questions that lack a verdict in one of the orders are '
  'counted as failed and enter no other figure.'
)


class ArenaHard(NamedTuple):
  """The files: questions, baseline of each category, judge's prompts, published judgements.

  `baselines` maps a category to the name of its baseline and its answers by `uid`.
  """

  questions: Sequence[Mapping]
  baselines: Mapping[str, tuple[str, Mapping[str, str]]]
  prompts: Mapping[str, Mapping]
  published: Sequence[Mapping]


def make(section: Mapping[str, str]) -> Benchmark | None:
  """The benchmark of the section `arena_hard`; None if it names no files.

  Args:
    section: paths of `questions`, `baselines` (FILE, or CATEGORY=FILE, separated by commas),
      `judge_prompts` and published `judgments`, separated by commas. Published judgements alone
      need no policy and no judge.

  Raises:
    UserError: if a setting or a file cannot be used.
  """
  published = [row for path in split_list(section['judgments']) for row in _read_published(path)]
  if not section['questions']:
    if not published:
      return None
    files = ArenaHard([], {}, {}, published)
    return Benchmark('arena_hard', functools.partial(run, files), needs_policies=False)
  require_all(
    'arena_hard', section, ('baselines', 'judge_prompts'), "give the path of Arena-Hard's file."
  )
  questions = scores.read_questions(section['questions'])
  categories = list(dict.fromkeys(row['category'] for row in questions))
  files = ArenaHard(
    questions,
    read_baselines(section['baselines'], categories, questions),
    read_prompts(section['judge_prompts'], categories),
    published,
  )
  return Benchmark(
    'arena_hard',
    run=functools.partial(run, files),
    answer=functools.partial(answer, files),
    min_generators=1,
    needs_chat_judge=True,
  )


def _read_published(path: str) -> list[dict]:
  """The judgements of a file, or of all files of a folder."""
  folder = Path(path)
  files = sorted(folder.rglob('*.jsonl')) if folder.is_dir() else [folder]
  if not files:
    raise UserError(f"config.arena_hard.judgments: '{path}' has no file *.jsonl; name another.")
  return [row for file in files for row in scores.read_judgements(file)]


def read_baselines(
  text: str, categories: Sequence[str], questions: Sequence[Mapping]
) -> dict[str, tuple[str, dict[str, str]]]:
  """Category -> the name of its baseline, and its answers.

  Raises:
    UserError: if a category has no baseline, or a question no answer of it.
  """
  items = split_list(text)
  pairs = [item.split('=', 1) for item in items if '=' in item and not Path(item).exists()]
  named = {category.strip(): path.strip() for category, path in pairs}
  whole = [item for item in items if '=' not in item or Path(item).exists()]
  if len(whole) > 1 or named.keys() - set(categories):
    raise UserError(
      f"config.arena_hard.baselines='{text}' must be one file, or CATEGORY=FILE for each of "
      f'{", ".join(categories)}.'
    )
  found = {}
  for category in categories:
    path = named.get(category, *whole) if whole else named.get(category)
    if path is None:
      raise UserError(
        f"config.arena_hard.baselines: the category '{category}' has none; add {category}=FILE."
      )
    name, answers = scores.read_answers(path)
    for row in questions:
      if row['category'] == category and row['uid'] not in answers:
        raise UserError(
          f'{path}: there is no answer to the question {row["uid"]!r:.60}; give a file of answers '
          'to all questions.'
        )
    found[category] = name, answers
  return found


def read_prompts(path: str, categories: Sequence[str]) -> dict[str, Mapping]:
  """Category -> the judge's prompt, by its name or `default`.

  Raises:
    UserError: if a category has none, or its template has other fields.
  """
  rows, found = judge_prompts.read_prompts(path), {}
  for category in categories:
    row = rows.get(category) or rows.get('default')
    if row is None:
      raise UserError(
        f"{path}: there is no prompt '{category}' and none named 'default'; there are "
        f'{", ".join(rows)}.'
      )
    fields = judge_prompts.template_fields(row['prompt_template'])
    if fields != FIELDS:
      raise UserError(
        f"{path}: the prompt '{row['name']}' has the fields {sorted(fields)}; it must have "
        f'{sorted(FIELDS)}.'
      )
    found[category] = row
  return found


def answer(files: ArenaHard, policy: EvaluatedPolicy, folder: Path) -> None:
  """Writes the policy's answers to all questions, decoded greedily.

  Raises:
    UserError: if a published judgement is of a model of the same name.
  """
  if any(row['model'] == policy.name for row in files.published):
    raise UserError(
      f"config.arena_hard.judgments: they have a model '{policy.name}', too; name the entry "
      'otherwise in config.entries.'
    )
  conversations = [[{'role': 'user', 'content': row['prompt']}] for row in files.questions]
  texts = policy.respond(conversations, TEMPERATURE, 0)
  rows = [
    {
      'uid': row['uid'],
      'ans_id': uuid.uuid5(uuid.NAMESPACE_OID, f'{policy.name}\n{row["uid"]}').hex,
      'model': policy.name,
      'messages': [*turns, {'role': 'assistant', 'content': {'answer': text}}],
      'tstamp': time.time(),
    }
    for row, turns, text in zip(files.questions, conversations, texts, strict=True)
  ]
  json_files.write_lines(answer_path(folder, policy.name), rows)


def answer_path(folder: Path, policy: str) -> Path:
  """The file of a policy's answers."""
  return folder / 'arena_hard' / 'model_answer' / f'{policy}.jsonl'


def run(
  files: ArenaHard, policies: Mapping[str, EvaluatedPolicy], judges: Judges, folder: Path
) -> list[BenchmarkTable]:
  """One leaderboard for each category, judge and baseline; judgements are written to the folder.

  Raises:
    UserError: if the judge gave no verdict at all.
  """
  rows, own = list(files.published), folder / 'arena_hard'
  if files.questions:
    json_files.write_lines(own / 'question.jsonl', files.questions)
  for name, policy in policies.items() if files.questions else ():
    if policy.respond:
      _, answers = scores.read_answers(answer_path(folder, name))
      judged = compare(judges.chat, files, name, answers, judges.chat_name)
      path = own / 'model_judgment' / file_name(judges.chat_name) / f'{name}.jsonl'
      json_files.write_lines(path, judged)
      if all(map(scores.failed, judged)):
        raise UserError(
          f"the judge '{printable(judges.chat_name)}' gave no verdicts such as [[A>B]] in both "
          f'orders of any question; its answers are in {path}.'
        )
      rows += judged
  return make_tables(rows)


def compare(
  judge: ChatJudge, files: ArenaHard, policy: str, answers: Mapping[str, str], name: str
) -> list[dict]:
  """Judgements of a policy's answers against the baselines, in the published layout.

  Args:
    judge: the language model.
    files: questions, baselines and prompts.
    policy: its name.
    answers: of the policy, by `uid`.
    name: of the judge.
  """
  shown = []
  for row in files.questions:
    sides = files.baselines[row['category']][1][row['uid']], answers[row['uid']]
    prompt = files.prompts[row['category']]
    for first, second in (sides, sides[::-1]):
      fields = {'QUESTION': row['prompt'], 'ANSWER_A': first, 'ANSWER_B': second}
      shown.append((prompt['system_prompt'], prompt['prompt_template'].format(**fields)))
  outcomes = judge(shown, lambda index, reply: scores.read_verdict(reply.text) is not None)
  games = [_make_game(*pair) for pair in zip(shown, outcomes, strict=True)]
  return [
    {
      'uid': row['uid'],
      'category': row['category'],
      'judge': name,
      'model': policy,
      'baseline': files.baselines[row['category']][0],
      'games': games[2 * number : 2 * number + 2],
    }
    for number, row in enumerate(files.questions)
  ]


def _make_game(sheet, outcome) -> dict:
  system, user = sheet
  lost = isinstance(outcome, Failure)
  text = f'$ERROR$ {outcome.detail}' if lost else outcome.text
  return {
    'score': None if lost else scores.read_verdict(text),
    'judgment': {'answer': text},
    'prompt': [{'role': 'system', 'content': system}, {'role': 'user', 'content': user}],
  }


def make_tables(rows: Sequence[Mapping]) -> list[BenchmarkTable]:
  """A leaderboard for each category, judge and baseline."""
  groups: dict[tuple[str, str, str], list[Mapping]] = {}
  for row in rows:
    groups.setdefault((row['category'], row['judge'], row['baseline']), []).append(row)
  tables = []
  for (category, judge, baseline), some in groups.items():
    board = scores.leaderboard(some, seed=0)
    cells = [[name, *(row[column] for column in COLUMNS)] for name, row in board.items()]
    title = f'Arena-Hard, {printable(category)}, judged by {printable(judge)}'
    note = NOTE.format(baseline=printable(baseline))
    tables.append(BenchmarkTable(title, note, list(COLUMNS), cells))
  return tables
