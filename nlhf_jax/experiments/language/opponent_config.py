"""Reads the sections `opponent` and `prompter` of a policy: what is trained beside it."""

from collections.abc import Mapping
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from nlhf_jax.algorithms import catalogue
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.dialogue_config import conversing
from nlhf_jax.experiments.refinement_config import check_instruction
from nlhf_jax.experiments.specs import Opponent, Policy, Prompter
from nlhf_jax.training.opponent_play import Prices
from nlhf_jax.training.optimizers import make_optimizer

ALGORITHM = 'self_play'  # of policies with an opponent
PROMPT, RESPONSE = 'prompt', 'response'  # what an opponent reads
REGULARISED, PAYOFF = 'regularised', 'payoff'  # rewards of the policy, with and without its KL
POOL, WRITTEN = 'pool', 'written'  # kinds of prompters


def make_opponent(row: ConfigDict, field: str, config: ConfigDict) -> Opponent | None:
  """The opponent of a policy, from the policy's section, whose name is `field`; None without one.

  Raises:
    UserError: if a setting is wrong, or incompatible with another one.
  """
  if 'opponent' not in row:
    if 'prompter' in row:
      raise UserError(
        f'{field}.prompter is paid what an opponent gains on each prompt; give the policy the '
        'section opponent too.'
      )
    return None
  section, where = row.opponent, f'{field}.opponent'
  check_policy(row, where, config)
  for name, known in (('reads', (PROMPT, RESPONSE)), ('reward', (REGULARISED, PAYOFF))):
    if section[name] not in known:
      raise UserError(f"{where}.{name}='{section[name]}' must be one of {', '.join(known)}.")
  if section.reads == RESPONSE and not section.instruction.strip():
    raise UserError(
      f'{where}.instruction is empty: an opponent that reads the response is asked to answer it, '
      "as by 'Improve the previous answer.'."
    )
  return Opponent(
    catalogue.self_play(section.tau),
    make_player_optimizer(row, section),
    Prices(section.tau, section.tau if section.reward == REGULARISED else 0.0),
    section.instruction if section.reads == RESPONSE else '',
    make_prompter(row, field) if 'prompter' in row else None,
  )


def check_policy(row: ConfigDict, where: str, config: ConfigDict) -> None:
  """Refuses policies that no opponent can be trained beside."""
  if row.algorithm != ALGORITHM:
    raise UserError(
      f"{where} takes the place of the policy's own copy in {ALGORITHM}, but the policy learns by "
      f"'{row.algorithm}'; use {ALGORITHM}."
    )
  if conversing(config):
    raise UserError(
      f'{where} is trained on single responses; leave config.dialogue.turns at 1, or leave it out.'
    )
  if row.async_judge or row.sampler == 'server' or 'votes' in row or jax.process_count() > 1:
    raise UserError(
      f'{where} works in one process, with the sampler built_in, and without async_judge and '
      'votes; leave one of them out.'
    )


def make_prompter(row: ConfigDict, field: str) -> Prompter:
  """The prompter of a policy with an opponent.

  Raises:
    UserError: if a setting is wrong, or its game would not be well posed.
  """
  section, where = row.prompter, f'{field}.prompter'
  if section.kind == WRITTEN:
    raise UserError(
      f"{where}.kind='{WRITTEN}': a prompter that writes prompts of its own is not implemented; "
      f"use '{POOL}', which chooses among the training prompts."
    )
  if section.kind != POOL:
    raise UserError(f"{where}.kind='{section.kind}' must be {POOL}.")
  if row.opponent.reads != PROMPT:
    raise UserError(
      f'{where} is paid the exploitability of the policy, which an opponent that reads the '
      f"response does not measure; set {field}.opponent.reads='{PROMPT}'."
    )
  if row.opponent.tau != row.arguments.tau:
    raise UserError(
      f'{field}.opponent.tau={row.opponent.tau} must be {field}.arguments.tau='
      f'{row.arguments.tau} for a prompter: at other prices a policy that is solved would still '
      'have prompts that pay.'
    )
  optimizer = make_player_optimizer(row, section)
  return Prompter(catalogue.self_play(section.tau), optimizer, section.pool)


def make_player_optimizer(row: ConfigDict, section: ConfigDict) -> optax.GradientTransformation:
  """The optimiser of the policy, at another learning rate."""
  settings = {**row.optimizer, 'learning_rate': section.learning_rate}
  return make_optimizer(steps=max(row.steps, 1), **settings)


def check_opponents(
  config: ConfigDict,
  policies: Mapping[str, Policy],
  tokenizer: Any,
  available: int,
  positions: int,
) -> None:
  """Refuses instructions without room in the model, and pools of more prompts than there are.

  Args:
    config: of the experiment.
    policies: by name; those without an opponent are passed over.
    tokenizer: writes the instructions.
    available: number of training prompts.
    positions: of the model.

  Raises:
    UserError: names the field.
  """
  for name, policy in policies.items():
    opponent = policy.opponent
    if opponent and opponent.instruction:
      where = f'config.policies.{name}.opponent.instruction'
      check_instruction(config, tokenizer, positions, opponent.instruction, where)
    if opponent and opponent.prompter and opponent.prompter.pool > available:
      raise UserError(
        f'config.policies.{name}.prompter.pool={opponent.prompter.pool} is more than the '
        f'{available} training prompts; lower it.'
      )
