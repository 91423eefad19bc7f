"""MT-Bench's judgements: the prompts of the judge, and the rows of its verdicts.

The judge is a language model. Questions of mathematics, reasoning and coding are judged with
reference answers. The prompts are FastChat's `judge_prompts.jsonl`, and the judge's own reference
answers its `reference_answer/JUDGE.jsonl`; neither is part of this package. `judges.verdicts` reads
the judge's answers.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks.mt_bench_scores import FAILED, SWAPPED, Answers
from nlhf_jax.judges import verdicts
from nlhf_jax.judges.endpoint import Usable
from nlhf_jax.judges.response_body import Failure
from nlhf_jax.judges.verdicts import Answer, Read

# Names of prompts without and with a reference answer; `-multi-turn` is added for the second turn.
SINGLE, PAIR = ('single-v1', 'single-math-v1'), ('pair-v2', 'pair-math-v1')
WITH_REFERENCE = ('math', 'reasoning', 'coding', 'arena-hard-200')
WINNERS = {1.0: 'model_1', 0.0: 'model_2', 0.5: 'tie', None: 'error'}

# ((system prompt, user prompt) of each, whether an answer is usable) -> answers of the judge
ChatJudge = Callable[[Sequence[tuple[str, str]], Usable], Sequence[Answer | Failure]]


class Materials(NamedTuple):
  """The files of MT-Bench.

  `questions` are rows of `mt_bench_scores.read_questions`, `references` the reference answers of
  `mt_bench_scores.read_answers`, which messages call `reference_name`, and `prompts` those of
  `judge_prompts.read_prompts`. `readers`, one of `verdicts.READINGS`, read the judge's answers.
  """

  questions: Sequence[Mapping]
  references: Answers
  prompts: Mapping[str, Mapping]
  readers: Mapping[str, Read] = verdicts.READINGS['last']
  reference_name: str = 'the reference'


class FilledPrompt(NamedTuple):
  """A row of `judge_prompts.jsonl`, and its user prompt with all fields filled in."""

  prompt: Mapping[str, str]
  user: str


class Judgement(NamedTuple):
  """A judge's answer, or `$ERROR$` and the reason, and the verdict that it contains."""

  text: str
  verdict: int | float | None


def check_materials(materials: Materials, mode: str) -> None:
  """Refuses files with which not all questions can be judged, before anyone answers them.

  Args:
    materials: questions, references and prompts.
    mode: single or pair.

  Raises:
    UserError: if a reference answer or a prompt is missing, or a prompt cannot be filled.
  """
  names, sides = (SINGLE, ['answer']) if mode == 'single' else (PAIR, ['answer_a', 'answer_b'])
  for question, turn in _rounds(materials.questions):
    _fill(materials, names, question, turn, dict.fromkeys(sides, question['turns']))


def grade(
  judge: ChatJudge, materials: Materials, answers: Mapping[str, Answers], name: str
) -> list[dict]:
  """Single mode: a score for each turn of each policy's answers.

  Args:
    judge: the language model.
    materials: questions, references and prompts.
    answers: policy -> its answers, of `mt_bench_scores.read_answers`.
    name: of the judge.

  Raises:
    UserError: if an answer, a reference answer or a prompt is missing.
  """
  matches = [
    (question, turn, policy)
    for question, turn in _rounds(materials.questions)
    for policy in answers
  ]
  shown = [
    _fill(
      materials,
      SINGLE,
      question,
      turn,
      {'answer': _turns(answers[policy], policy, question)},
    )
    for question, turn, policy in matches
  ]
  judged = _judge(judge, shown, materials.readers)
  return [
    {
      'question_id': question['question_id'],
      'model': policy,
      'judge': [name, filled.prompt['name']],
      'user_prompt': filled.user,
      'judgment': judgement.text,
      'score': FAILED if judgement.verdict is None else judgement.verdict,
      'turn': turn,
      'tstamp': time.time(),
    }
    for (question, turn, policy), filled, judgement in zip(matches, shown, judged, strict=True)
  ]


def compare(
  judge: ChatJudge, materials: Materials, answers: Mapping[str, Answers], name: str
) -> list[dict]:
  """Pairwise mode: the better answer of each two policies, for each turn, in both orders.

  Args and errors are those of `grade`.
  """
  matches = [
    (question, turn, pair)
    for question, turn in _rounds(materials.questions)
    for pair in combinations(answers, 2)
  ]
  shown = [
    _fill(
      materials,
      PAIR,
      question,
      turn,
      {
        'answer_a': _turns(answers[first], first, question),
        'answer_b': _turns(answers[second], second, question),
      },
    )
    for question, turn, pair in matches
    for first, second in (pair, pair[::-1])
  ]
  judged = _judge(judge, shown, materials.readers)
  rows = []
  for i, (question, turn, pair) in enumerate(matches):
    (first, second), (one, other) = shown[2 * i : 2 * i + 2], judged[2 * i : 2 * i + 2]
    swapped = WINNERS[other.verdict]
    rows.append(
      {
        'question_id': question['question_id'],
        'model_1': pair[0],
        'model_2': pair[1],
        'g1_winner': WINNERS[one.verdict],
        'g2_winner': SWAPPED.get(swapped, swapped),
        'judge': [name, first.prompt['name']],
        'g1_user_prompt': first.user,
        'g1_judgment': one.text,
        'g2_user_prompt': second.user,
        'g2_judgment': other.text,
        'turn': turn,
        'tstamp': time.time(),
      }
    )
  return rows


def _judge(
  judge: ChatJudge, shown: Sequence[FilledPrompt], readers: Mapping[str, Read]
) -> list[Judgement]:
  """What the judge answers to each prompt, and the verdict in it."""
  reads = [readers[filled.prompt['output_format']] for filled in shown]
  outcomes = judge(
    [(filled.prompt['system_prompt'], filled.user) for filled in shown],
    lambda index, answer: reads[index](answer) is not None,
  )
  return [
    Judgement(f'$ERROR$ {outcome.detail}', None)
    if isinstance(outcome, Failure)
    else Judgement(outcome.text, read(outcome))
    for outcome, read in zip(outcomes, reads, strict=True)
  ]


def _rounds(questions) -> Iterator[tuple[Mapping, int]]:
  """Questions with the number of the judged turn: all first turns, then all second turns."""
  for turn in (1, 2):
    yield from ((question, turn) for question in questions if turn <= len(question['turns']))


def _turns(answers, name, question) -> list[str]:
  """The turns of an answer's first choice, at least as many as the question has."""
  number, count = question['question_id'], len(question['turns'])
  turns = answers[number]['choices'][0]['turns'] if number in answers else []
  if len(turns) < count:
    raise UserError(
      f"'{name}' has {len(turns)} of {count} answers to question {number}; add the missing one."
    )
  return turns


def _fill(materials, names, question, turn, sides) -> FilledPrompt:
  """The judge's prompt for one turn of a question."""
  needed = question['category'] in WITH_REFERENCE
  name = names[needed] + ('-multi-turn' if turn == 2 else '')
  if name not in materials.prompts:
    raise UserError(
      f"there is no prompt '{name}' for the judge; there are {sorted(materials.prompts)}."
    )
  prompt = materials.prompts[name]
  formats = verdicts.RATINGS if names == SINGLE else verdicts.CHOICES
  if prompt['output_format'] not in formats:
    raise UserError(
      f"the prompt '{name}' has output_format {prompt['output_format']!r:.60}; it must be "
      f'{" or ".join(formats)}.'
    )
  fields = {}
  if needed:
    reference = _turns(materials.references, materials.reference_name, question)
    fields |= {f'ref_answer_{i}': text for i, text in enumerate(reference, start=1)}
  for side, turns in {'question': question['turns'], **sides}.items():
    if turn == 1:
      fields[side] = turns[0]
    fields |= {f'{side}_{i}': text for i, text in enumerate(turns[:turn], start=1) if turn == 2}
  try:
    return FilledPrompt(prompt, prompt['prompt_template'].format(**fields))
  except KeyError as error:
    raise UserError(
      f"the prompt '{name}' has a field that cannot be filled ({error}); it may use "
      f'{", ".join(fields)}.'
    ) from None
