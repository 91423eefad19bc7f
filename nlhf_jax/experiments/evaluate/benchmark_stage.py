"""Published benchmarks of players, in their own files, and tables of their figures for the page.

A table is `title`, `note`, `columns`, and `rows` that begin with a player's name.
"""

import csv
import functools
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import alpaca_eval, mt_bench, mt_bench_judge, radar
from nlhf_jax.evaluation.judgements import Ask, Question
from nlhf_jax.experiments.evaluate.config import AlpacaEval, EvaluateExperiment, Filed, digest
from nlhf_jax.experiments.evaluate.entries import Load, key_of, of_player
from nlhf_jax.judges.remote import Speaker
from nlhf_jax.storage import json_lines
from nlhf_jax.training import interrupts

LEADERBOARD = ('length_controlled_winrate', 'win_rate', 'standard_error', 'n_total', 'avg_length')


def alpaca(
  experiment: EvaluateExperiment,
  asked: Mapping[str, Ask],
  responses: Mapping[str, Sequence[str]],
  workdir: Path,
) -> list[dict]:
  """AlpacaEval: each player against the reference, by each judge and as it was published.

  Annotations go to `players/PLAYER/JUDGE/annotations.json`, and leaderboards beside the results.
  """
  setting = experiment.alpaca_eval
  if setting is None:
    return []
  boards: dict[str, dict[str, dict]] = {}
  for name, said in responses.items():
    player = experiment.players[name]
    if isinstance(player, Filed) and player.annotations:
      boards.setdefault('published', {})[name] = figures(setting, player.annotations)
    questions = [{'instruction': prompt} for prompt in experiment.prompts]
    own = alpaca_eval.make_outputs(questions, said, name)
    for judge, ask in asked.items():
      rows = alpaca_eval.annotate(as_alpaca(ask, name), setting.references, own, judge)
      alpaca_eval.write(workdir / 'players' / name / judge / 'annotations.json', rows)
      boards.setdefault(judge, {})[name] = figures(setting, rows)
  for judge, board in boards.items():
    write_board(workdir / f'leaderboard_{judge}.csv', board)
  reference = setting.references[0].get('generator', 'the reference')
  return [
    {
      'title': f'AlpacaEval 2.0 against {reference}, {judge} judge',
      'note': 'Percent, the higher the better; lengths are in characters.',
      'columns': [column for column in LEADERBOARD if column in next(iter(board.values()))],
      'rows': [[name, *(row[c] for c in LEADERBOARD if c in row)] for name, row in ranked(board)],
    }
    for judge, board in boards.items()
  ]


def as_alpaca(ask: Ask, name: str) -> alpaca_eval.Ask:
  """A judge that remembers, as AlpacaEval asks it; the other side is the reference's."""
  return lambda prompts, left, right: ask(
    [Question(*of_row, (name, 'reference')) for of_row in zip(prompts, left, right, strict=True)]
  )


def figures(setting: AlpacaEval, rows: Sequence[Mapping]) -> dict[str, float]:
  """The leaderboard's, with length control if it is set.

  Rows are as many as difficulties, which then belong to them in this order, or name instructions.
  """
  found, difficulty = alpaca_eval.summarise(rows), setting.difficulty
  if difficulty is None:
    return found
  if len(rows) != len(difficulty):
    place = {row['instruction']: number for number, row in enumerate(setting.references)}
    difficulty = difficulty[[place[row['instruction']] for row in rows]]
  weights = alpaca_eval.fit(rows, difficulty, setting.anchors)
  return found | alpaca_eval.length_controlled(rows, difficulty, weights)


def ranked(board: Mapping[str, Mapping]) -> list[tuple[str, Mapping]]:
  """Best first."""
  by = next(key for key in LEADERBOARD if key in next(iter(board.values())))
  return sorted(board.items(), key=lambda item: -item[1][by])


def write_board(path: Path, board: Mapping[str, Mapping]) -> None:
  """A leaderboard as AlpacaEval has it: a CSV file, the first column without a name."""
  text = io.StringIO()
  columns = list(next(iter(board.values())))
  table = csv.writer(text, lineterminator='\n')
  table.writerow(['', *columns])
  table.writerows([name, *(row[column] for column in columns)] for name, row in ranked(board))
  with json_lines.whole(path) as draft:
    draft.write_text(text.getvalue())


def answer(experiment: EvaluateExperiment, name: str, load: Load, workdir: Path) -> None:
  """A player's answers to MT-Bench's questions, in FastChat's file of its name."""
  if experiment.mt_bench:
    respond = of_player(experiment, name, load, workdir / 'players' / name)
    questions = experiment.mt_bench.bench.questions
    mt_bench.write(answers_of(name, workdir), mt_bench.answer(respond, questions, name))


def answers_of(name: str, workdir: Path) -> Path:
  """The file of a player's answers."""
  return workdir / 'mt_bench' / 'model_answer' / f'{name}.jsonl'


def judge_answers(
  experiment: EvaluateExperiment, judge: Speaker | None, workdir: Path
) -> list[dict]:
  """MT-Bench's judgements of all answers, in FastChat's files; the radar plot of those graded.

  Raises:
    UserError: if the judge cannot be asked, or says nothing of use.
  """
  setting = experiment.mt_bench
  if setting is None or judge is None:
    return []
  folder = workdir / 'mt_bench'
  answers = {
    name: mt_bench.read_answers(answers_of(name, workdir))
    for name, player in experiment.players.items()
    if not isinstance(player, Filed)
  }
  mt_bench.write(folder / 'question.jsonl', setting.bench.questions)
  judge_of = mt_bench_judge.grade if setting.mode == 'single' else mt_bench_judge.compare
  rows = judge_of(judge.speak, setting.bench, answers, setting.judge)
  path = folder / 'model_judgment' / f'{setting.judge.replace("/", "__")}_{setting.mode}.jsonl'
  mt_bench.write(path, rows)
  if all(map(mt_bench.failed, rows)):
    raise UserError(
      f"the judge '{setting.judge}' gave no verdict that can be read; what it said is in {path}."
    )
  title = f'MT-Bench, judged by {setting.judge}'
  if setting.mode == 'pair':
    return [of_pairs(title, mt_bench.count_wins(rows))]
  scores = mt_bench.summarise(rows, setting.bench.questions)
  categories = {name: of_player['categories'] for name, of_player in scores.items()}
  if len({frozenset(found) for found in categories.values()}) == 1 and all(
    len(found) > 2 for found in categories.values()
  ):
    with json_lines.whole(folder / 'radar.png') as draft:
      radar.draw(categories, title).savefig(draft, dpi=150, format='png')
  return [of_scores(title, scores)]


def of_pairs(title: str, wins: Mapping[str, Mapping]) -> dict:
  """The table of pairwise mode."""
  columns = ('win', 'tie', 'loss', 'win_rate_adjusted', 'failed')
  return {
    'title': title,
    'note': 'A win in one order only is a tie, and a tie is half a win. Comparisons of which the '
    'judge says nothing that can be read failed, and count for nobody.',
    'columns': list(columns),
    'rows': [[name, *(row[column] for column in columns)] for name, row in wins.items()],
  }


def of_scores(title: str, scores: Mapping[str, Mapping]) -> dict:
  """The table of single mode: by turn, and by category."""
  turns = sorted({turn for row in scores.values() for turn in row['turns']})
  names = sorted({name for row in scores.values() for name in row['categories']})
  none = float('nan')
  return {
    'title': title,
    'note': 'Mean scores out of 10; grades that cannot be read failed, and are in no mean.',
    'columns': ['average', *(f'turn {turn}' for turn in turns), *names, 'failed'],
    'rows': [
      [
        policy,
        row['average'],
        *(row['turns'].get(turn, none) for turn in turns),
        *(row['categories'].get(name, none) for name in names),
        row['failed'],
      ]
      for policy, row in scores.items()
    ],
  }


def find_tasks(experiment: EvaluateExperiment) -> tuple[Any, Sequence[Any]]:
  """Who knows the tasks of the lm-evaluation-harness, and its pieces; none if not asked for.

  Raises:
    UserError: if the harness is not installed, or has no such task.
  """
  if experiment.harness is None:
    return None, ()
  try:
    # With it comes PyTorch, if there is one: seconds.
    from nlhf_jax.evaluation.benchmarks import lm_tasks
  except ImportError as error:
    raise UserError(
      f'config.harness.tasks needs the lm-evaluation-harness ({error}); pip install '
      "'nlhf-jax[harness]'."
    ) from None
  return lm_tasks.find(experiment.harness.tasks)


def harness(
  experiment: EvaluateExperiment,
  tasks: tuple[Any, Sequence[Any]],
  name: str,
  load: Load,
  workdir: Path,
) -> dict[str, dict]:
  """What the lm-evaluation-harness says of a player, by its name; nothing if it is not asked for.

  Each piece of the tasks is kept, in a file of its own, as soon as it is finished.

  Raises:
    UserError: if one cannot be run, or two have tasks in common.
    Interrupted: if the user asked to stop; what is finished is kept.
  """
  manager, pieces = tasks
  if not pieces:
    return {}
  from nlhf_jax.evaluation.benchmarks import lm_harness, lm_tasks

  @functools.cache
  def policy():
    model = load()
    return lm_harness.Policy(
      model.decoder,
      model.params,
      model.tokenizer,
      longest=model.longest,
      name=name,
      batch=experiment.batch,
      seed=experiment.seed,
      between=lambda: interrupts.check(f'the lm-evaluation-harness with {name}'),
    )

  outcomes = []
  for piece in pieces:
    asked = digest(
      [key_of(experiment, experiment.players[name]), piece.settings, experiment.harness.limit]
    )
    path = workdir / 'harness' / name / f'{Path(piece.name).name}-{asked}.json'
    if not path.exists():
      json_lines.write_json(
        path, lm_tasks.evaluate(policy(), manager, piece, experiment.harness.limit)
      )
    outcomes.append(json_lines.read_json(path))
  return {name: lm_tasks.merged(outcomes)}


def tax(harnessed: Mapping[str, Mapping]) -> list[dict]:
  """What alignment costs on the harness's tasks: each player beside the first one."""
  if not harnessed:
    return []
  from nlhf_jax.evaluation.benchmarks import lm_tasks

  (first, before), *others = harnessed.items()
  columns = ('metric', 'score', 'error')
  alone = {
    'title': f'lm-evaluation-harness, {first}',
    'note': 'Errors are standard errors.' + cut_short(before),
    'columns': list(columns),
    'rows': [[row['task'], *(row[c] for c in columns)] for row in lm_tasks.scores(before)],
  }
  columns = ('metric', 'before', 'after', 'change', 'error')
  beside = [
    {
      'title': f'Alignment tax, {name} after {first}',
      'note': 'Scores of the lm-evaluation-harness; errors of the change as if each had answered '
      'other questions.' + cut_short(after),
      'columns': list(columns),
      'rows': [[row['task'], *(row[c] for c in columns)] for row in lm_tasks.tax(before, after)],
    }
    for name, after in others
  ]
  return beside or [alone]


def cut_short(outcome: Mapping) -> str:
  """A sentence, if prompts were longer than what the player reads."""
  if not outcome['cut']:
    return ''
  return (
    f' {outcome["cut"]} prompts have more tokens than the player reads; the first ones, of '
    'examples mostly, were cut off.'
  )
