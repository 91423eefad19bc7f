"""Active preference learning: rounds of votes, estimation and self-play (arXiv 2402.07314).

The policy trains against an estimate of the preferences, for which no votes are needed. At the
start of each round votes are sampled on the pairs of responses that its algorithm selects. The
estimate is that of `sample_complexity.unstructured`, which assumes nothing about preferences.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nlhf_jax.algorithms.algorithm import LEFT, Algorithm
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.specs import Learner
from nlhf_jax.experiments.stages import make_policy_update
from nlhf_jax.judges.judge import vote
from nlhf_jax.sample_complexity.unstructured import tabular
from nlhf_jax.storage import json_lines
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
  training, algorithm = learner.training, learner.training.algorithm
  sample, update = make_sample(algorithm, make_rollout), make_policy_update(training, score)
  find, look_up = responses.make_find_rows(game), responses.make_look_up(game)
  truth = jnp.asarray(game.payoff, jnp.float32)
  estimate = jax.jit(lambda wins: tabular(learner.ridge).estimate(wins) - 0.5)
  estimates = {}  # the number of the current round -> the payoffs that its judge returns

  def sample_round(slots, table, batch, key) -> Float[np.ndarray, 'X R R']:
    """Wins of row over column in votes on the pairs that the algorithm selects."""
    wins = np.zeros_like(game.payoff)
    for number in range(learner.batches):
      batch_key = jax.random.fold_in(key, number)
      comparison = sample(slots, batch, batch_key)
      comparison = comparison._replace(payoff=look_up(table, comparison))
      pair = algorithm.select(comparison, jax.random.fold_in(batch_key, 2))
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
      wins = before + sample_round(slots, estimate(before), batch, jax.random.fold_in(key, 4))
      json_lines.write_sealed(path, {'wins': wins.tolist()})
    return read_wins(path)

  def step(state, batch, key):
    number = int(state.step) // training.schedule.evaluate_every
    if number not in estimates:
      estimates.clear()
      estimates[number] = estimate(wins_until(number, state.slots, batch, key))
    comparison = sample(state.slots, batch, key)
    comparison = comparison._replace(payoff=look_up(estimates[number], comparison))
    return update(state, comparison, jax.random.fold_in(key, 2))

  return Steps(step)


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
