"""Reads which judge a policy learns from, and refuses judges that do not go with its algorithm."""

import jax
from ml_collections import ConfigDict

from nlhf_jax.algorithms.algorithm import LEFT, needs_judge
from nlhf_jax.algorithms.selection import unchanged
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.data_config import find_oracle
from nlhf_jax.experiments.judge_config import find_judges, judge_name
from nlhf_jax.experiments.specs import Training
from nlhf_jax.judges.combined import MAXMIN, Combination
from nlhf_jax.judges.judge import probability, vote
from nlhf_jax.judges.own_function import WRITTEN
from nlhf_jax.judges.registry import NAMES, STAGES, gives_rewards

JUDGES = (*NAMES, 'oracle')
FEEDBACK = {'probability': probability, 'vote': vote}


def make_policy_judge(
  row: ConfigDict, field: str, training: Training, config: ConfigDict
) -> str | None:
  """The name of the judge of a policy; None where the algorithm uses none.

  Raises:
    UserError: if there is no such judge, or it does not go with the algorithm.
  """
  known, judge = find_judges(config), judge_name(row.judge)
  if judge not in (*known.names, 'oracle'):
    raise UserError(
      f"{field}.judge='{row.judge}' must be one of {', '.join(JUDGES)}, or {WRITTEN}."
    )
  combination = known.combined.get(judge)
  if combination:
    check_combination(config, combination, f"{field}.judge='{row.judge}'")
  if row.judge == 'oracle' and not find_oracle(config):
    raise UserError(f"{field}.judge='oracle': only the embedded task has one; use 'learned'.")
  if row.feedback not in FEEDBACK:
    raise UserError(f"{field}.feedback='{row.feedback}' must be one of {', '.join(FEEDBACK)}.")
  payoffs = training.algorithm.payoffs
  given = {'reward'} if gives_rewards(judge) else {'probability', 'log_odds'}
  if judge in known.external and known.external[judge].rewards:
    given |= {'reward'}
  if not given.intersection(payoffs):
    raise UserError(
      f"{field}.judge='{row.judge}' cannot train '{row.algorithm}', which learns from payoffs "
      f'of the kind {" or ".join(payoffs)}; use another judge.'
    )
  if row.feedback == 'vote' and 'reward' in given.intersection(payoffs):
    raise UserError(f"{field}.feedback='vote' needs a judge that gives probabilities.")
  if row.feedback == 'vote' and 'log_odds' in payoffs and 'votes' not in row:
    raise UserError(
      f"{field}.feedback='vote': '{row.algorithm}' takes log-odds, which are infinite for a vote."
    )
  if not needs_judge(training.algorithm):
    return None
  if combination and combination.by == MAXMIN:
    check_groups(training, row, field)
  return judge


def check_combination(config: ConfigDict, combination: Combination, field: str) -> None:
  """Refuses a combination with an oracle where there is none."""
  if 'oracle' in combination.judges and not find_oracle(config):
    raise UserError(f'{field}: only the embedded task has an oracle; combine other judges.')


def check_groups(training: Training, row: ConfigDict, field: str) -> None:
  """Refuses `maxmin` unless all opponents are fixed, and the weights can move with the updates."""
  rules = training.algorithm.references
  sides = [] if training.algorithm.right == LEFT else training.algorithm.right
  slots = {slot for mixture in sides for slot in mixture}
  fixed = sides and all(slot in rules and rules[slot].kind == 'frozen' for slot in slots)
  if not fixed or training.algorithm.select is not unchanged:
    raise UserError(
      f"{field}.judge='{row.judge}' needs a fixed opponent, because in self-play every group wins "
      'half of the time, so that the weights of the groups get no signal; use the algorithm '
      'best_response, whose opponent is the SFT policy.'
    )
  if row.async_judge or jax.process_count() > 1:
    raise UserError(
      f"{field}.judge='{row.judge}' works in one process, and without {field}.async_judge."
    )


def check_judges_of_texts(config: ConfigDict, judge: str, field: str) -> None:
  """Refuses networks as judges in the background of several processes."""
  known = find_judges(config)
  for name in sorted(known.members({judge})):
    if name in STAGES or (name in known.external and known.external[name].shapes):
      raise UserError(
        f"{field}.async_judge=True: the judge '{name}' is a network, which the devices of all "
        'processes compute; with --cluster only judges of texts work in the background: leave it '
        'at False.'
      )
