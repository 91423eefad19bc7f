"""Runs one peer package on the games of a folder, in the peers' environment, for `tabular.py`.

python benchmarks/tabular_peers.py PEER FOLDER

FOLDER/job.npz has the payoffs [N, K, K], bitwise antisymmetric, and what each function below takes.
A line of JSON is added to FOLDER/runs.jsonl as soon as all N games are solved once more, so that
nothing is lost when the time is up. Whatever can be made before the clock starts is made before.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

PACKAGES = ['open_spiel', 'nashpy', 'quantecon', 'polarix', 'pygambit', 'cvxpy', 'ecos', 'scipy']


class Job(NamedTuple):
  """The task of a peer."""

  tau: float
  tolerance: float  # the gap at which those stop that would not stop by themselves
  iterations: int  # of a dynamic, or the most of a solver
  runs: int  # at most
  budget: float  # seconds, after which no run is begun


class Answer(NamedTuple):
  """A policy, the number of iterations, and the seconds of compilation, which do not count."""

  policy: np.ndarray
  iterations: int = 1
  compiling: float = 0.0


def gap(payoff: np.ndarray, pi: np.ndarray, tau: float) -> float:
  """max over pi' of P_tau(pi' > pi), less 1/2, for a uniform reference: the stopping criterion."""
  return tau * np.sum(pi * (np.log(pi) - log_softmax(payoff @ pi / tau)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """The logits less the log of their sum of exponentials."""
  shifted = logits - logits.max()
  return shifted - np.log(np.exp(shifted).sum())


# --- Regularised ---


def gambit_logit(payoff, job):
  """Follows the logit equilibria from lambda = 0 to 1 / tau."""
  from pygambit import Game, qre

  game = Game.from_arrays(payoff, -payoff)
  strategies = list(next(iter(game.players)).strategies)

  def run():
    profile = qre.logit_solve_lambda(game, lam=1 / job.tau)[0].profile
    return Answer(np.array([profile[strategy] for strategy in strategies]))

  return run


def polarix_lle(payoff, job):
  """Adam on the regularised gap, in float32, with the step 1e-2 that it comes with.

  `polarix.solve` always makes 100,000 iterations, because it waits for the unregularised gap to
  vanish; so this goes through the same iterations, and stops as soon as the gap is what it should.
  """
  import polarix

  actions = (np.arange(len(payoff)),) * 2
  game = polarix.Game(payoffs=np.stack([payoff, -payoff]), actions=actions, players=('a', 'b'))

  def run():
    iterates = polarix.lle(
      game, init_temperature=job.tau, min_temperature=job.tau, min_anneal_iters=1
    )
    start = time.perf_counter()
    for _ in range(3):  # the update is compiled in each of them, for weak types become strong
      next(iterates)
    compiling = time.perf_counter() - start
    for count in range(4, job.iterations + 1):
      ratings = next(iterates)
      if count % 50 and count < job.iterations:
        continue
      pi = np.asarray(ratings.marginals[0], float)
      pi /= pi.sum()
      if gap(payoff, pi, job.tau) <= job.tolerance or time.perf_counter() - start > job.budget:
        break
    return Answer(pi, count, compiling)

  return run


def open_spiel_mmd(payoff, job):
  """Magnetic mirror descent, with the step that it chooses; in Python, over the game's tree."""
  from open_spiel.python.algorithms.mmd_dilated import MMDDilatedEnt

  game = turn_based(payoff)

  def run():
    start = time.perf_counter()
    descent = MMDDilatedEnt(game, job.tau)
    for count in range(1, job.iterations + 1):  # noqa: B007
      descent.update_sequences()
      pi = descent.current_sequences()[0][1:]
      if gap(payoff, pi, job.tau) <= job.tolerance or time.perf_counter() - start > job.budget:
        break
    return Answer(pi, count)

  return run


def scipy_root(payoff, job):
  """A solution without a package: MINPACK's `hybr` with the Jacobian."""
  from scipy import optimize

  identity = np.eye(len(payoff))

  def residual(logits):
    pi = np.exp(log_softmax(logits))
    reply = log_softmax(payoff @ pi / job.tau)
    slope = (payoff * pi - np.outer(payoff @ pi, pi)) / job.tau
    return logits - reply, identity - slope + np.outer(np.ones_like(pi), np.exp(reply) @ slope)

  def run():
    found = optimize.root(residual, np.full(len(payoff), -np.log(len(payoff))), jac=True)
    return Answer(np.exp(log_softmax(found.x)))

  return run


# --- Unregularised ---


def gambit_lp(payoff, job):
  """Gambit's linear program in floating point."""
  from pygambit import Game, nash

  game = Game.from_arrays(payoff, -payoff)
  strategies = list(next(iter(game.players)).strategies)

  def run():
    profile = nash.lp_solve(game, rational=False).equilibria[0]
    return Answer(np.array([profile[strategy] for strategy in strategies]))

  return run


def quantecon_minmax(payoff, job):
  """A simplex compiled by numba; its policies are of the row player, who gains `payoff`."""
  from quantecon.optimize import minmax

  return lambda: Answer(minmax(payoff)[1])


def nashpy_lp(payoff, job):
  """Two linear programs, one per player, in scipy's HiGHS."""
  from nashpy import Game

  game = Game(payoff)
  return lambda: Answer(game.linear_program()[0])


def open_spiel_lp(payoff, job):
  """Two linear programs, one per player, built in Python, by ECOS with a tolerance of 1e-7."""
  import pyspiel
  from open_spiel.python.algorithms.lp_solver import solve_zero_sum_matrix_game

  game = pyspiel.create_matrix_game(payoff.tolist(), (-payoff).tolist())
  return lambda: Answer(np.ravel(solve_zero_sum_matrix_game(game)[0]))


# --- Dynamics, for their iterations a second ---


def open_spiel_rm(payoff, job):
  """Regret matching of two players in NumPy."""
  from open_spiel.python.algorithms.regret_matching import regret_matching

  return lambda: Answer(
    regret_matching([payoff, -payoff], iterations=job.iterations)[0], job.iterations
  )


def open_spiel_prd(payoff, job):
  """Projected replicator dynamics of two players in NumPy."""
  from open_spiel.python.algorithms.projected_replicator_dynamics import (
    projected_replicator_dynamics,
  )

  return lambda: Answer(
    projected_replicator_dynamics([payoff, -payoff], prd_iterations=job.iterations)[0],
    job.iterations,
  )


def open_spiel_mmd_steps(payoff, job):
  """`open_spiel_mmd`, a set number of its iterations."""
  from open_spiel.python.algorithms.mmd_dilated import MMDDilatedEnt

  game = turn_based(payoff)

  def run():
    descent = MMDDilatedEnt(game, job.tau)
    for _ in range(job.iterations):
      descent.update_sequences()
    return Answer(descent.current_sequences()[0][1:], job.iterations)

  return run


def nashpy_fp(payoff, job):
  """Fictitious play of two players in NumPy."""
  from nashpy import Game

  game = Game(payoff)

  def run():
    for counts in game.fictitious_play(iterations=job.iterations):  # noqa: B007
      pass
    return Answer(counts[0] / counts[0].sum(), job.iterations)

  return run


def turn_based(payoff):
  """The game as a sequential one, in which the second player does not see the first move."""
  import pyspiel

  return pyspiel.convert_to_turn_based(
    pyspiel.create_matrix_game(payoff.tolist(), (-payoff).tolist())
  )


# (payoff [K, K], job) -> a call that solves the game once
PEERS: dict[str, Callable] = {
  call.__name__: call
  for call in (
    gambit_logit,
    polarix_lle,
    open_spiel_mmd,
    scipy_root,
    gambit_lp,
    quantecon_minmax,
    nashpy_lp,
    open_spiel_lp,
    open_spiel_rm,
    open_spiel_prd,
    open_spiel_mmd_steps,
    nashpy_fp,
  )
}


def main(peer: str, folder: Path) -> None:
  """Solves all games repeatedly; the first run is a warm-up and is not timed."""
  begun = time.perf_counter()
  with np.load(folder / 'job.npz') as file:
    payoffs = file['payoffs']
    job = Job(**{name: file[name].item() for name in Job._fields})
  calls = [PEERS[peer](payoff, job) for payoff in payoffs]
  with (folder / 'runs.jsonl').open('w') as file:
    for _ in range(job.runs + 1):
      start = time.perf_counter()
      answers = [call() for call in calls]
      seconds = time.perf_counter() - start
      compiling = sum(answer.compiling for answer in answers)
      run = {
        'seconds': seconds - compiling,
        'compiling': compiling / len(answers),
        'iterations': sum(answer.iterations for answer in answers) / len(answers),
        'policies': [answer.policy.tolist() for answer in answers],
      }
      print(json.dumps(run), file=file, flush=True)
      if time.perf_counter() - begun + seconds > job.budget:
        break


if __name__ == '__main__':
  if sys.argv[1] == 'versions':
    print(json.dumps({package: metadata.version(package) for package in PACKAGES}))
  else:
    main(sys.argv[1], Path(sys.argv[2]))
