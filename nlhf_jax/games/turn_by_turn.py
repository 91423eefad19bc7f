"""What learning one turn at a time ends at, on games over conversations: to show its error.

In the game of `dialogues` the opponent has a conversation of its own. Methods that compare two next
turns after the same conversation so far solve another game, whose solution can be worse than the
reference. It is solved backwards, since no turn depends on the policy of earlier ones.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nlhf_jax.games.dialogues import DialogueGame, DialoguePolicy, turn_kl
from nlhf_jax.games.exact import equilibrium
from nlhf_jax.games.game import Game


def solve_same_prefix(game: DialogueGame) -> DialoguePolicy:
  """Each turn is the equilibrium of comparisons of two continuations of one conversation.

  The continuations are the policy's own. MPO as practised (arXiv 2502.12678), and the single-turn
  baseline of MTPO. Right for additive payoffs.
  """
  return _solve(game, lambda solved, reference: solved)


def solve_myopic(game: DialogueGame) -> DialoguePolicy:
  """As `solve_same_prefix`, with the reference's continuations: a rater of single turns."""
  return _solve(game, lambda solved, reference: reference)


def _solve(game: DialogueGame, continuation) -> DialoguePolicy:
  pairs, log_pi, solve = game.payoff, [], jax.vmap(partial(equilibrium, tolerance=1e-22))
  turns = zip(game.log_reference, game.replies, strict=True)
  for reference, reply in reversed(list(turns)):
    compared = _before_replies(reply, pairs)
    states = jnp.arange(len(reply))
    local = compared[states, :, states]  # the opponent is in the same state
    taus = jnp.full(len(reply), game.tau)
    log_pi.append(solve(Game(local, reference, taus)).log_pi)
    later = continuation(log_pi[-1], reference)
    price = game.tau * turn_kl(later, reference)
    pi = jnp.exp(later)
    pairs = jnp.einsum('sk,tj,sktj->st', pi, pi, compared) - price[:, None] + price
  return tuple(log_pi[::-1])


def _before_replies(
  reply: Float[Array, 'S K U'], pairs: Float[Array, 'M M']
) -> Float[Array, 'S K S K']:
  """The mean over both users' replies of what two next states are worth against each other."""
  pairs = pairs.reshape(*reply.shape, *reply.shape)
  return jnp.einsum('sku,tjv,skutjv->sktj', reply, reply, pairs)
