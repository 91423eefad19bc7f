"""Compiled programs shared by the tests of games; numbers are arguments, to compile only once."""

from decimal import Decimal
from functools import partial

import jax
import numpy as np

from nlhf_jax.games import exact
from nlhf_jax.games.game import Game, exploitability, kl
from nlhf_jax.games.solve import solve
from nlhf_jax.games.solvers import extragradient, unregularised

MU = np.array([0.6, 0.3, 0.1])


@partial(jax.jit, static_argnames='make')
def path(make, game, updates, start=None, numbers=(), power=0.0):
  """The path of the solver `make(*numbers)`; policy t has weight t^power in the average."""
  return solve(make(*numbers), game, updates, start, lambda count: (count + 1.0) ** power)


@partial(jax.jit, static_argnames='make')
def paths(make, games, updates, starts, numbers=()):
  """The paths on a batch of games, each with its own start and numbers."""

  def one(game, start, numbers):
    return solve(make(*numbers), game, updates, start)

  return jax.vmap(one)(games, starts, numbers)


def _nash(game):
  """log of the equilibrium; steps beyond the gap asked for make it right to the last digits."""
  log_pi = exact.equilibrium(game).log_pi
  return exact.newton_step(game, exact.newton_step(game, log_pi))


nash = jax.jit(_nash)
nashes = jax.jit(jax.vmap(_nash))

gap = jax.jit(exploitability)
gaps = jax.jit(jax.vmap(exploitability, (None, 0)))
divergence = jax.jit(kl)
divergences = jax.jit(jax.vmap(kl, (None, 0)))


def free_extragradient(eta):
  return unregularised(extragradient(eta))


def logs(policy):
  """Log-probabilities, -inf for zeros."""
  with np.errstate(divide='ignore'):
    return np.log(np.asarray(policy, float))


def at(game: Game, tau) -> Game:
  """The same game with another tau."""
  return game._replace(tau=np.asarray(tau, float))


def assert_printed(values, text):
  """Checks that every value rounds to the printed digits."""
  numbers = [Decimal(number) for number in text.split()]
  halves = [float(Decimal(1).scaleb(number.as_tuple().exponent)) / 2 for number in numbers]
  values = np.ravel(values)
  assert len(values) == len(numbers)
  wrong = abs(values - np.array([float(number) for number in numbers])) > np.array(halves)
  assert not wrong.any(), f'{values} are not what was printed, {text}'
