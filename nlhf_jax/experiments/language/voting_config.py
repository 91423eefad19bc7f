"""Reads how the judge of a policy is learned in rounds of votes, from its section `votes`."""

import copy

import jax
from ml_collections import ConfigDict

from nlhf_jax.algorithms.algorithm import needs_judge
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.specs import Training, Voting
from nlhf_jax.experiments.training_config import make_training
from nlhf_jax.judges import enhancers

ALGORITHM = 'preference_model'  # which fits the judges


def make_voting(row: ConfigDict, field: str, training: Training) -> Voting:
  """How the judge of a policy is learned, from the policy's section, whose name is `field`.

  Raises:
    UserError: if a setting is wrong, or incompatible with another one.
  """
  section, where = row.votes, f'{field}.votes'
  if section.training.algorithm != ALGORITHM:
    raise UserError(
      f"{where}.training.algorithm='{section.training.algorithm}' must be {ALGORITHM}."
    )
  batch = section.training.batch
  check_policy(row, field, training)
  check_enhancer(section, where)
  if section.total % section.rounds:
    raise UserError(
      f'{where}.total={section.total} must be a multiple of {where}.rounds={section.rounds}: each '
      'round has as many votes.'
    )
  per_round = section.total // section.rounds
  if per_round < batch:
    raise UserError(
      f'{where}.total={section.total}: the first of {section.rounds} rounds has {per_round} votes, '
      f'fewer than {where}.training.batch={batch}; raise the one or lower the other.'
    )
  if training.steps < section.rounds:
    raise UserError(
      f'{where}.rounds={section.rounds}: each round needs an update, but the policy has only '
      f'{field}.steps={training.steps}; lower the rounds.'
    )
  return Voting(
    rounds=section.rounds,
    per_round=per_round,
    enhancer=section.enhancer,
    candidates=section.candidates,
    ensemble=section.ensemble,
    trainings=make_trainings(section, f'{where}.training'),
  )


def make_trainings(section: ConfigDict, field: str) -> list[Training]:
  """The training of the judges of each round, whose length grows with the votes that there are.

  So they see each vote as often in every round, and are not fitted to the noise of few votes. The
  last one, and that of one-shot learning, is as the section says.
  """
  rows = [copy.deepcopy(section.training) for _ in range(section.rounds)]
  for number, row in enumerate(rows, start=1):
    row.steps = -(-row.steps * number // section.rounds)
  return [make_training(row, field) for row in rows]


def check_policy(row: ConfigDict, field: str, training: Training) -> None:
  """Refuses policies that cannot learn from judges that are fitted to votes."""
  if not needs_judge(training.algorithm):
    raise UserError(
      f"{field}.votes: '{row.algorithm}' uses no judge; use an algorithm that compares responses "
      'of its own, such as online_ipo.'
    )
  if not {'probability', 'log_odds'}.intersection(training.algorithm.payoffs):
    raise UserError(
      f"{field}.votes: '{row.algorithm}' learns from rewards, but votes give probabilities; use "
      'another algorithm, such as online_ipo.'
    )
  if row.judge.strip().startswith('maxmin'):
    raise UserError(
      f"{field}.judge='{row.judge}' weighs groups of raters while a policy trains, and gives no "
      'votes; use one judge, or mean(...).'
    )
  if row.async_judge or jax.process_count() > 1:
    raise UserError(f'{field}.votes works in one process, and without {field}.async_judge.')


def check_enhancer(section: ConfigDict, where: str) -> None:
  """Refuses enhancers that have nothing to choose from, or nothing to choose by."""
  enhancers.check_enhancer(section.enhancer, section.candidates, where)
  if section.enhancer == 'uncertain' and section.ensemble < 2:
    raise UserError(
      f"{where}.ensemble={section.ensemble}: 'uncertain' needs the spread of two judges or more; "
      'raise it.'
    )
