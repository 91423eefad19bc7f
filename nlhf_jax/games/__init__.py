"""Tabular preference games: exact equilibria, and the ideal update of every algorithm.

This package does not depend on language models. Its functions take log-probabilities and payoffs
P - 1/2, so that they can be compiled and differentiated; `make_game` and `exploitability` here take
probabilities.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from nlhf_jax.games import game as _game
from nlhf_jax.games.exact import Equilibrium, equilibrium, maximal_lottery
from nlhf_jax.games.game import Game
from nlhf_jax.games.tables import from_preferences

__all__ = [
  'Equilibrium',
  'Game',
  'equilibrium',
  'exploitability',
  'make_game',
  'maximal_lottery',
]


def make_game(preferences: ArrayLike, reference: ArrayLike | None = None, tau: float = 0.0) -> Game:
  """The game of a matrix of win probabilities.

  Args:
    preferences: P(row is preferred to column), [K, K], or [X, K, K] for X games; the probabilities
      of a pair add up to 1.
    reference: the probabilities of the reference policy, [K] or [X, K]; uniform by default.
    tau: KL coefficient of the reference, in win probability per nat. `equilibrium` needs a positive
      one; at 0 use `maximal_lottery(game.payoff)`.

  Raises:
    UserError: that names the entry that is wrong.
  """
  return _game.make_game(from_preferences(preferences).payoff, reference, tau)


def exploitability(game: Game, policy: ArrayLike) -> Float[Array, '']:
  """max over pi' of P_tau(pi' > policy), less 1/2, in win probability: zero at the equilibrium.

  Args:
    game: one game.
    policy: the probabilities of the K actions.
  """
  return _game.exploitability(game, jnp.log(jnp.asarray(policy)))
