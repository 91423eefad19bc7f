"""Active preference learning: rounds of votes, estimation and self-play (arXiv 2402.07314).

The policy trains against an estimate of the preferences, for which no votes are needed. At the
start of each round votes are sampled on pairs of responses: those that its algorithm selects, or
those of the policy and its enhancer. One-shot learning has all votes in the first round. The
estimate is that of `sample_complexity.unstructured`, which assumes nothing about preferences.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nlhf_jax.algorithms.algorithm import LEFT, POLICY, Algorithm
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.game_specs import Learner
from nlhf_jax.experiments.stages import make_policy_update
from nlhf_jax.judges.enhancers import NONE, choose_right
from nlhf_jax.judges.judge import vote
from nlhf_jax.sample_complexity.unstructured import tabular
from nlhf_jax.sample_complexity.votes import comparison_counts
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Prompts, Responses
from nlhf_jax.tasks.token_game import responses
from nlhf_jax.tasks.token_game.responses import TokenGame
from nlhf_jax.training.loop import Steps
from nlhf_jax.training.rollout_step import MakeRollout, make_sample
from nlhf_jax.training.update import Score


def make_active_steps(
  learner: Learner, game: TokenGame, score: Score, make_rollout: MakeRollout
) -> Steps:
  """Steps of the loop, which at the start of each round sample votes and update the judge.

  The votes of each round are stored with the stage, so that a resumed run continues with them.
  """
  training = learner.training
  sample, update = (
    make_sample(training.algorithm, make_rollout),
    make_policy_update(training, score),
  )
  find, look_up = responses.make_find_rows(game), responses.make_look_up(game)
  sample_pairs = make_sample_pairs(learner, look_up, make_rollout)
  truth = jnp.asarray(game.payoff, jnp.float32)
  members = tabular(learner.ridge)
  estimate = jax.jit(lambda wins: members.estimate(wins) - 0.5)
  spread = jax.jit(lambda wins: members.bonus(members.estimate(wins), comparison_counts(wins)))
  estimates = {}  # the number of the current round -> the payoffs that its judge returns

  def sample_round(slots, before, batch, key) -> Float[np.ndarray, 'X R R']:
    """Wins of row over column in the votes of a round, given those before."""
    wins, tables = np.zeros_like(game.payoff), (estimate(before), spread(before))
    for number in range(learner.batches_per_round):
      batch_key = jax.random.fold_in(key, number)
      pair = sample_pairs(slots, tables, batch, batch_key)
      sampled = vote(look_up(truth, pair), jax.random.fold_in(batch_key, 3))
      prompt, left, right = jax.tree.map(np.asarray, find(pair))
      left_wins, left, right = np.asarray(sampled) > 0, left[:, :, None], right[:, None, :]
      winner, loser = np.where(left_wins, left, right), np.where(left_wins, right, left)
      np.add.at(wins, (prompt[:, None, None], winner, loser), 1)
    return wins * (1 - np.eye(wins.shape[-1]))  # votes between equal responses carry no information

  def wins_until(number, slots, batch, key) -> Float[np.ndarray, 'X R R']:
    """Wins in all votes up to this round; samples those of this round unless they are stored."""
    path = learner.stage.folder / f'votes_{number}.json'
    if json_lines.read_sealed(path) is None:
      before = np.zeros_like(game.payoff)
      if number:
        before = read_wins(path.with_name(f'votes_{number - 1}.json'))
      wins = before + sample_round(slots, before, batch, jax.random.fold_in(key, 4))
      json_lines.write_sealed(path, {'wins': wins.tolist()})
    return read_wins(path)

  def step(state, batch, key):
    number = int(state.step) // learner.round_length
    if number not in estimates:
      estimates.clear()
      estimates[number] = estimate(wins_until(number, state.slots, batch, key))
    comparison = sample(state.slots, batch, key)
    comparison = comparison._replace(payoff=look_up(estimates[number], comparison))
    return update(state, comparison, jax.random.fold_in(key, 2))

  return Steps(step)


def make_sample_pairs(
  learner: Learner, look_up: Callable, make_rollout: MakeRollout
) -> Callable[..., Comparison]:
  """A function (slots, tables, batch, key) -> the pairs that a batch of votes is about.

  Without an enhancer they are those that the algorithm selects. With one they are a response of the
  policy and one of some candidates. `tables` are the estimated payoffs and their spread: the width
  1 / sqrt(votes + ridge) of each pair, which an ensemble of estimates would have.
  """
  algorithm = learner.training.algorithm
  if learner.enhancer == NONE:
    sample = make_sample(algorithm, make_rollout)

    def select(slots, tables, batch, key):
      comparison = sample(slots, batch, key)
      comparison = comparison._replace(payoff=look_up(tables[0], comparison))
      return algorithm.select(comparison, jax.random.fold_in(key, 2))

    return select

  sides = algorithm._replace(left=[POLICY], right=[POLICY] * learner.candidates)
  sample = make_sample(sides, make_rollout)

  def enhance(slots, tables, batch, key):
    judge, spread = (partial(look_up, table) for table in tables)
    return choose_right(learner.enhancer, sample(slots, batch, key), judge, spread)

  return enhance


def read_wins(path: Path) -> Float[np.ndarray, 'X R R']:
  """The wins that a round stored.

  Raises:
    UserError: if there are none, because the file was damaged or lost.
  """
  stored = json_lines.read_sealed(path)
  if stored is None:
    raise UserError(
      f"the votes of an earlier round in '{path}' are lost; delete the folder '{path.parent}' to "
      'train the stage again.'
    )
  return np.array(stored['wins'])


def count_judged_pairs(algorithm: Algorithm) -> int:
  """The number of comparisons that a judge makes per example."""
  if algorithm.right == LEFT:
    return len(algorithm.left) * (len(algorithm.left) - 1) // 2
  return len(algorithm.left) * len(algorithm.right)


def count_votes(learner: Learner) -> int:
  """The votes of a round; a vote between equal responses is one, too.

  Raises:
    UserError: if the algorithm selects single responses, so that there are no pairs to vote on.
  """
  pairs = 1
  if learner.enhancer == NONE:
    algorithm = learner.training.algorithm
    left = _blank_responses(len(algorithm.left))
    right = left if algorithm.right == LEFT else _blank_responses(len(algorithm.right))
    payoff = jnp.zeros((1, left.tokens.shape[1], right.tokens.shape[1]))
    prompts = Prompts(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
    pair = algorithm.select(Comparison(prompts, left, right, payoff), jax.random.key(0))
    if pair.right is None:
      raise UserError(
        'its algorithm learns from single responses, so that there are no pairs to vote on; '
        "set enhancer='best_of_n' or 'uncertain'."
      )
    pairs = pair.left.tokens.shape[1] * pair.right.tokens.shape[1]
  return learner.batches_per_round * learner.training.batch * pairs


def _blank_responses(count) -> Responses:
  return Responses(jnp.zeros((1, count, 1), jnp.int32), jnp.ones((1, count, 1), bool))
