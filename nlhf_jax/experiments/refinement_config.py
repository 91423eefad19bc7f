"""Reads the section `refinement` of a config, and checks instructions to answer a response."""

from typing import Any

from ml_collections import ConfigDict

from nlhf_jax.data.dialogue_texts import reply_ids
from nlhf_jax.data.readers import Problem
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.dialogue_config import conversing
from nlhf_jax.experiments.specs import Refinement
from nlhf_jax.storage import json_lines

PROMPT = '{prompt}'  # in an instruction: the text of the prompt
WIDTHS = 32  # of replies that have the prompt, in tokens: multiples of this


def make_refinement(config: ConfigDict, tokenizer: Any, positions: int) -> Refinement | None:
  """How entries of the tournament refine their responses; None if they do not.

  Args:
    config: of the experiment.
    tokenizer: writes the instruction.
    positions: of the model, into which a prompt, its response and the refined one must fit.

  Raises:
    UserError: if they do not, or responses are conversations.
  """
  if 'refinement' not in config or not config.refinement.rounds:
    return None
  if conversing(config):
    raise UserError(
      f'config.refinement.rounds={config.refinement.rounds}: single responses are refined, and '
      f'config.dialogue.turns={config.dialogue.turns} makes conversations; leave the rounds '
      'at 0, or the turns at 1.'
    )
  settings, field = config.refinement.to_dict(), 'config.refinement.instruction'
  check_instruction(config, tokenizer, positions, settings['instruction'], field)
  return Refinement(**settings, file=f'refined-{json_lines.json_digest(settings)}.json')


def check_instruction(
  config: ConfigDict, tokenizer: Any, positions: int, instruction: str, field: str
) -> None:
  """Refuses an instruction to answer a response that the template cannot write, or without room.

  Raises:
    UserError: names the `field` of the instruction.
  """
  try:
    (asked,) = reply_ids(tokenizer, [instruction.replace(PROMPT, '')], [True])
  except Problem as problem:
    raise UserError(
      f'{field}: {problem}; ask for no second response, or choose another model.'
    ) from None
  reply = len(asked) + instruction.count(PROMPT) * config.data.prompt_length
  if PROMPT in instruction:
    reply += -reply % WIDTHS
  needed = config.data.prompt_length + 2 * config.data.response_length + reply
  if needed > positions:
    raise UserError(
      f'{field}: a prompt, a response, the instruction and another response have up to {needed} '
      f'tokens, more than the {positions} positions of the model; lower config.data.prompt_length '
      'or response_length.'
    )
