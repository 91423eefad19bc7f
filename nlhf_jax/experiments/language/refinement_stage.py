"""Refinement at inference: each entry of the tournament improves its own response, n times.

y_1 ~ pi(.|x) and y_{i+1} ~ omega(.|x, y_i, instruction): the follower of commit and answer. It is
the opponent that was trained beside the policy, or else the policy itself. Every judge compares
each y_{i+1} with y_1. On a cycle of preferences refinement rotates: a second round may lose what
the first won (arXiv 2512.16626).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from nlhf_jax.data import dialogue_texts, tokenizers
from nlhf_jax.data.batches import map_chunks, take
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.tournament import t_interval
from nlhf_jax.experiments.language.tournament_stage import make_interruptible
from nlhf_jax.experiments.refinement_config import PROMPT, WIDTHS
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.experiments.stages import make_rollout, respond
from nlhf_jax.judges.judge import Judge
from nlhf_jax.judges.unfinished import has_ended
from nlhf_jax.reporting import formatting
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Params, Prompts, Responses

ROUNDS = 1 << 30  # folded into the tournament's key, as numbers of entries are; these are smaller


class Refiner(NamedTuple):
  """What answers a response: its parameters, and the instruction that asks it to."""

  params: Params
  instruction: str


def refine(
  experiment: LanguageExperiment,
  entries: Mapping[str, Params],
  panel: Mapping[str, Judge],
  refiners: Mapping[str, Refiner],
) -> dict[str, dict[str, list]]:
  """Entry -> judge -> its win rate against the first response, after each round.

  Entries that have none of the `refiners` refine their own responses. The win rates are stored
  beside the tournament, and measured once.
  """
  stage = experiment.stages['tournament']
  path = stage.folder / experiment.refinement.file
  if json_lines.read_sealed(path) is None:
    found = {}
    for number, (name, params) in enumerate(entries.items(), start=ROUNDS):
      key = jax.random.fold_in(stage.key, number)
      refiner = refiners.get(name, Refiner(params, experiment.refinement.instruction))
      found[name] = measure_rounds(experiment, name, (params, refiner), panel, key)
    json_lines.write_sealed(path, found)
  return json_lines.read_sealed(path)


def measure_rounds(
  experiment: LanguageExperiment,
  name: str,
  pair: tuple[Params, Refiner],
  panel: Mapping[str, Judge],
  key: jax.Array,
) -> dict[str, list]:
  """Judge -> `win_rate`, and its 95 % interval `low` and `high`, of each round of one entry.

  `pair` has the entry, and what refines its responses.
  """
  tokenizer, (leader, refiner) = experiment.corpus.tokenizer, pair
  prompts = take(experiment.corpus.held_out.prompts, slice(experiment.tournament_prompts))
  rollout = make_rollout(experiment, [{'policy': 1.0}], filters=experiment.filters)
  label, found = f'refinement, {name}', {judge: [] for judge in panel}

  def sample(params, asked, number):
    round_key = jax.random.fold_in(key, number)
    batch = experiment.tournament_batch
    (side,) = respond(rollout, {'policy': params}, asked, round_key, label, batch)
    return side

  first = latest = sample(leader, prompts, 0)
  for number in range(1, experiment.refinement.rounds + 1):
    asked = ask_again(tokenizer, prompts, latest, refiner.instruction)
    latest = sample(refiner.params, asked, number)
    for judge, payoff in panel.items():
      wins = judge_rounds(make_interruptible(payoff, label), prompts, latest, first)
      if not len(wins):
        raise UserError(
          f"the judge '{judge}' has no verdict on any refined response of '{name}'; check its "
          'answers.'
        )
      (low,), (high,) = t_interval(wins[:, None])
      rates = {'win_rate': float(wins.mean()), 'low': float(low), 'high': float(high)}
      found[judge].append(rates)
  return found


def judge_rounds(judge: Judge, prompts: Prompts, latest: Responses, first: Responses) -> np.ndarray:
  """P(latest beats first) on the prompts that the judge has a verdict on."""
  payoff = map_chunks(lambda chunk, _: judge(chunk), Comparison(prompts, latest, first))[:, 0, 0]
  return payoff[~np.isnan(payoff)] + 0.5


def ask_again(tokenizer: Any, prompts: Prompts, side: Responses, instruction: str) -> Prompts:
  """Each prompt, its response, and the instruction as the user's next message, as one prompt.

  In the instruction, `{prompt}` stands for the text of the prompt. All rounds have the same width;
  with such an instruction, one of few.
  """
  ended = np.asarray(has_ended(side, tokenizer.eos_token_id))[:, 0]
  texts, width = [instruction] * len(ended), 0
  if PROMPT in instruction:
    asked_texts = tokenizers.prompt_texts(tokenizer, *prompts)
    texts = [instruction.replace(PROMPT, text) for text in asked_texts]
  else:
    width = max(map(len, dialogue_texts.reply_ids(tokenizer, texts[:1] * 2, [True, False])))
  replies = dialogue_texts.reply_ids(tokenizer, texts, (~ended).tolist())
  asked, responses = tokenizers.masked_rows(*prompts), tokenizers.masked_rows(*side[:2])
  rows = [
    [*prompt, *response, *reply]
    for prompt, response, reply in zip(asked, responses, replies, strict=True)
  ]
  # Each width is compiled on its own.
  width = width or -(-max(map(len, replies)) // WIDTHS) * WIDTHS
  return tokenizers.pad_prompts(
    tokenizer, rows, prompts.tokens.shape[1] + side.tokens.shape[2] + width
  )


def print_refinement(found: Mapping) -> None:
  """Prints win rates of refined responses against the first, by judge and round."""
  judges = {judge: len(rounds) for judge, rounds in next(iter(found.values())).items()}
  columns = [f'{judge}, round {n + 1}' for judge, count in judges.items() for n in range(count)]
  cells = [
    [
      f'{rate["win_rate"]:.3f} [{rate["low"]:.3f}, {rate["high"]:.3f}]'
      for rounds in by_judge.values()
      for rate in rounds
    ]
    for by_judge in found.values()
  ]
  title = '\nWin rate of a refined response against the first one, 95 %:'
  print(formatting.format_text(title, list(found), columns, cells))
