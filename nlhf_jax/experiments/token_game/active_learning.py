"""Learning a preference and its equilibrium at once: rounds of asking, estimating and playing.

The main agent plays against an estimate of the preference, which costs no votes; its row of the
catalogue selects whom of its responses to compare, and that is what is voted on (arXiv 2402.07314).
The estimate is the tabular one of `learning`: nothing is assumed of the preference.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nlhf_jax.algorithms.algorithm import LEFT, Algorithm
from nlhf_jax.experiments.specs import Learner
from nlhf_jax.experiments.stages import make_update_of
from nlhf_jax.judges.judge import verdict
from nlhf_jax.sample_complexity.unstructured import tabular
from nlhf_jax.storage import json_lines
from nlhf_jax.tasks.token_game import responses
from nlhf_jax.tasks.token_game.responses import TokenGame
from nlhf_jax.training.loop import Step
from nlhf_jax.training.rollout_step import MakeRollout, make_sample
from nlhf_jax.training.update import Score


def make_asking_step(
  learner: Learner, game: TokenGame, score: Score, make_rollout: MakeRollout
) -> Step:
  """A step of the loop, of which the first of a round asks for votes and changes the judge.

  The votes of each round are kept beside its stage, so that a run resumed goes on with the same.
  """
  training, row = learner.training, learner.training.algorithm
  sample, update = make_sample(row, make_rollout), make_update_of(training, score)
  find, look_up = responses.make_places(game), responses.make_look_up(game)
  truth = jnp.asarray(game.payoff, jnp.float32)
  estimate = jax.jit(lambda wins: tabular(learner.ridge).estimate(wins) - 0.5)
  known = {}  # the round that is on, and the payoffs that its judge goes by

  def asked(slots, table, batch, key) -> Float[np.ndarray, 'X R R']:
    """Who won how often, of votes on what the row selects."""
    wins = np.zeros_like(game.payoff)
    for number in range(learner.batches):
      of_batch = jax.random.fold_in(key, number)
      comparison = sample(slots, batch, of_batch)
      comparison = comparison._replace(payoff=look_up(table, comparison))
      pair = row.select(comparison, jax.random.fold_in(of_batch, 2))
      vote = verdict(look_up(truth, pair), jax.random.fold_in(of_batch, 3))
      prompt, left, right = jax.tree.map(np.asarray, find(pair))
      ahead, left, right = np.asarray(vote) > 0, left[:, :, None], right[:, None, :]
      winner, loser = np.where(ahead, left, right), np.where(ahead, right, left)
      np.add.at(wins, (prompt[:, None, None], winner, loser), 1)
    return wins * (1 - np.eye(wins.shape[-1]))  # against itself a response says nothing

  def votes(number, slots, batch, key) -> Float[np.ndarray, 'X R R']:
    """All those up to this round, of which its own are asked for unless they have been."""
    path = learner.stage.folder / f'votes_{number}.json'
    if not json_lines.exists(path):
      before = np.zeros_like(game.payoff)
      if number:
        before = np.array(json_lines.read_json(path.with_name(f'votes_{number - 1}.json'))['wins'])
      wins = before + asked(slots, estimate(before), batch, jax.random.fold_in(key, 4))
      json_lines.write_json(path, {'wins': wins.tolist()})
    return np.array(json_lines.read_json(path)['wins'])

  def step(state, batch, key):
    number = int(state.step) // training.evaluate_every
    if number not in known:
      known.clear()
      known[number] = estimate(votes(number, state.slots, batch, key))
    comparison = sample(state.slots, batch, key)
    comparison = comparison._replace(payoff=look_up(known[number], comparison))
    return update(state, comparison, jax.random.fold_in(key, 2))

  return step


def pairs(algorithm: Algorithm) -> int:
  """How many comparisons a judge makes for an example."""
  if algorithm.right == LEFT:
    return len(algorithm.left) * (len(algorithm.left) - 1) // 2
  return len(algorithm.left) * len(algorithm.right)
