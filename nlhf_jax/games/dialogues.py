"""Preference games over whole conversations: finite horizon, a fixed user, preferences at the end.

In turn h = 1..H the policy chooses an action y in a state x, the user replies u ~ p(.|x, y), and
the next state is (x, y, u); the states after the last turn are the Z complete conversations. Each
policy has a conversation of its own, with its own draws of the user, and a rater compares the two
(MTPO, arXiv 2405.14655). A policy is a tuple of log-probabilities, one table [S, K] a turn. The
values of a turn are those against an opponent who starts at the first state.

With one turn and no reply this is `game.Game`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from nlhf_jax.errors import UserError
from nlhf_jax.games.exact import cap_change
from nlhf_jax.games.game import Game, check_payoff, check_reference, kl
from nlhf_jax.linear_algebra import solve
from nlhf_jax.ranges import NonNegative

DialoguePolicy = tuple[Float[Array, '_ _'], ...]
Scalar = jax.typing.ArrayLike  # a number or a scalar array, traced or not
ROW_SUM = 1e-9  # by which the probabilities of the user's replies may miss 1


class DialogueGame(NamedTuple):
  """P_tau(pi > pi') = P(pi > pi') - tau KL_p(pi, mu) + tau KL_p(pi', mu).

  KL_p is the divergence of the distributions of conversations: the sum over turns of the expected
  KL of the turn. State (x, y, u) of the next turn has the index (x K + y) U + u.
  """

  payoff: Float[Array, 'Z Z']  # A = P - 1/2 between complete conversations
  log_reference: DialoguePolicy  # log mu, [S, K] a turn
  replies: tuple[Float[Array, '_ _ _'], ...]  # p(u|x, y), one table a turn
  tau: Float[Array, '']  # win probability per nat


class DialogueEquilibrium(NamedTuple):
  """A policy, its exploitability, and the number of Newton steps."""

  log_pi: DialoguePolicy
  exploitability: Float[Array, '']
  steps: Int[Array, '']


class TurnValues(NamedTuple):
  """Q(x, y) and V(x) of each turn; Q leaves out the KL of its own turn, V does not."""

  q: tuple[Float[Array, '_ _'], ...]
  v: tuple[Float[Array, '_'], ...]


def make_dialogue_game(
  payoff: ArrayLike,
  references: Sequence[ArrayLike],
  replies: Sequence[ArrayLike | None],
  tau: NonNegative = 0.0,
) -> DialogueGame:
  """A game of H turns.

  Args:
    payoff: win probabilities minus 1/2 between complete conversations, [Z, Z].
    references: probabilities of mu, [S, K] or [K] (the same in every state) for each turn.
    replies: p(u|x, y), [S, K, U] for each turn; None where the user says nothing.
    tau: KL coefficient, in win probability per nat.

  Raises:
    UserError: that names the turn or the entry, and what is wrong with it.
  """
  payoff = np.asarray(payoff, float)
  check_payoff(payoff)
  if not 0 <= tau < np.inf:
    raise UserError(f'tau={tau} must be at least 0, and finite.')
  if len(references) != len(replies):
    raise UserError(f'{len(references)} turns have a reference, and {len(replies)} have replies.')
  states, log_reference, tables = 1, [], []
  for turn, (reference, reply) in enumerate(zip(references, replies, strict=True), start=1):
    reference = np.asarray(reference, float)
    check_reference(reference, reference.shape[-1] if reference.ndim else 0)
    if reference.ndim > 2:
      raise UserError(
        f'the reference of turn {turn} must have the shape [states, actions] or [actions], not '
        f'{list(reference.shape)}.'
      )
    if reference.ndim == 2 and len(reference) != states:
      raise UserError(f'turn {turn} has {states} states; its reference has {len(reference)} rows.')
    reference = np.broadcast_to(reference, (states, reference.shape[-1]))
    shape = (*reference.shape, 1)
    reply = np.ones(shape) if reply is None else np.asarray(reply, float)
    _check_replies(turn, reply, shape)
    log_reference.append(jnp.log(reference / reference.sum(-1, keepdims=True)))
    tables.append(jnp.asarray(reply))
    states = reply.size
  if payoff.shape != (states, states):
    raise UserError(f'{states} conversations can happen; the payoff has the shape {payoff.shape}.')
  return DialogueGame(
    jnp.asarray(payoff), tuple(log_reference), tuple(tables), jnp.asarray(tau, float)
  )


def _check_replies(turn: int, reply: np.ndarray, shape: tuple[int, ...]) -> None:
  if reply.ndim != 3 or reply.shape[:2] != shape[:2]:
    raise UserError(
      f'the replies of turn {turn} must have the shape [{shape[0]}, {shape[1]}, replies], not '
      f'{list(reply.shape)}.'
    )
  if not (reply >= 0).all() or abs(reply.sum(-1) - 1).max() > ROW_SUM:
    raise UserError(f'the replies of turn {turn} must be probabilities that sum to 1.')


# --- Distributions ---


def reach(game: DialogueGame, log_pi: DialoguePolicy) -> tuple[Float[Array, '_'], ...]:
  """The probability of every state of every turn, and last of every complete conversation."""
  states = [jnp.ones(1)]
  for own, reply in zip(log_pi, game.replies, strict=True):
    states.append((states[-1][:, None, None] * jnp.exp(own)[..., None] * reply).ravel())
  return tuple(states)


def occupancy(game: DialogueGame, log_pi: DialoguePolicy) -> Float[Array, 'Z']:
  """The probability of every complete conversation."""
  return reach(game, log_pi)[-1]


def policy_of_occupancy(game: DialogueGame, occupied: Float[Array, 'Z']) -> DialoguePolicy:
  """The policy with this distribution over complete conversations: the average of policies.

  Averages of policies are averages of their occupancies, not of their tables. States that are
  never reached have the reference.
  """
  log_pi = []
  for reference, reply in zip(game.log_reference[::-1], game.replies[::-1], strict=True):
    actions = occupied.reshape(reply.shape).sum(-1)
    occupied = actions.sum(-1)
    own = jnp.log(actions) - jnp.log(occupied)[:, None]
    log_pi.append(jnp.where(occupied[:, None] > 0, own, reference))
  return tuple(log_pi[::-1])


def turn_kl(log_p: Float[Array, 'S K'], log_q: Float[Array, 'S K']) -> Float[Array, 'S']:
  """KL(p, q)[x] of one turn in every state, in nats."""
  return jax.vmap(kl)(log_p, log_q)


def conversation_kl(
  game: DialogueGame, log_p: DialoguePolicy, log_q: DialoguePolicy
) -> Float[Array, '']:
  """KL_p(p, q): the KL of whole conversations, in which the user's probabilities cancel."""
  states = reach(game, log_p)[:-1]
  parts = zip(states, log_p, log_q, strict=True)
  return sum(chance @ turn_kl(own, other) for chance, own, other in parts)


# --- Values ---


def conversation_gains(game: DialogueGame, log_pi: DialoguePolicy) -> Float[Array, 'Z']:
  """P(z > pi) - 1/2 of every complete conversation z."""
  return game.payoff @ occupancy(game, log_pi)


def _before_reply(reply: Float[Array, 'S K U'], after: Float[Array, 'M']) -> Float[Array, 'S K']:
  """E over the user's reply of the value of the next state."""
  return jnp.sum(reply * after.reshape(reply.shape), axis=-1)


def turn_values(game: DialogueGame, log_pi: DialoguePolicy, final: Float[Array, 'Z']) -> TurnValues:
  """Q and V of a policy, given the gain of every complete conversation, by backward induction."""
  q, v, after = [], [], final
  turns = zip(log_pi, game.log_reference, game.replies, strict=True)
  for own, reference, reply in reversed(list(turns)):
    q.append(_before_reply(reply, after))
    after = jnp.sum(jnp.exp(own) * q[-1], axis=-1) - game.tau * turn_kl(own, reference)
    v.append(after)
  return TurnValues(tuple(q[::-1]), tuple(v[::-1]))


def soft_backward_induction(
  game: DialogueGame, final: Float[Array, 'Z']
) -> tuple[DialoguePolicy, Float[Array, '']]:
  """The best policy for given gains of complete conversations, and its value.

  pi(y|x) = mu exp((Q(x, y) - V(x)) / tau), V(x) = tau log sum_y mu exp(Q(x, y) / tau); with tau = 0
  the first of the best actions.
  """
  tau = jnp.where(game.tau > 0, game.tau, 1)
  log_pi, after = [], final
  turns = zip(game.log_reference, game.replies, strict=True)
  for reference, reply in reversed(list(turns)):
    q = _before_reply(reply, after)
    tilted = reference + q / tau
    first = jnp.arange(q.shape[1]) == jnp.argmax(q, axis=1)[:, None]
    greedy = jnp.where(first, 0, -jnp.inf)
    log_pi.append(jnp.where(game.tau > 0, jax.nn.log_softmax(tilted), greedy))
    soft = tau * jax.nn.logsumexp(tilted, axis=1)
    after = jnp.where(game.tau > 0, soft, jnp.max(q, axis=1))
  return tuple(log_pi[::-1]), after[0]


def dialogue_best_response(game: DialogueGame, log_pi: DialoguePolicy) -> DialoguePolicy:
  """The policy that gains most against `log_pi`, which does not depend on its KL."""
  return soft_backward_induction(game, conversation_gains(game, log_pi))[0]


def dialogue_exploitability(game: DialogueGame, log_pi: DialoguePolicy) -> Float[Array, '']:
  """max over pi' of P_tau(pi' > pi), less 1/2; zero only at the equilibrium.

  It equals tau KL_p(pi, BR(pi)), accurate far below the rounding of 1/2. With tau = 0 it is the
  value of backward induction.
  """
  regularised = game.tau * conversation_kl(game, log_pi, dialogue_best_response(game, log_pi))
  return jnp.where(game.tau > 0, regularised, best_response_gain(game, log_pi))


def best_response_gain(game: DialogueGame, log_pi: DialoguePolicy) -> Float[Array, '']:
  """`dialogue_exploitability` by its definition: V^BR(x_1) - V^pi(x_1), a difference of values."""
  final = conversation_gains(game, log_pi)
  return soft_backward_induction(game, final)[1] - turn_values(game, log_pi, final).v[0][0]


# --- Steps and the equilibrium ---


def mirror_step(
  game: DialogueGame,
  log_pi: DialoguePolicy,
  opponent: DialoguePolicy,
  eta: Scalar,
) -> DialoguePolicy:
  """pi(y|x) <- mu^{eta tau} pi^{1 - eta tau} exp(eta Q(x, y)) / Z in every state.

  Q is that of the policy against the opponent. The policy itself as the opponent makes MTPO (arXiv
  2405.14655, eq. 1); tau = 0 makes multiplicative weights in every state.
  """
  q = turn_values(game, log_pi, conversation_gains(game, opponent)).q
  centre = geometric_mixture(log_pi, game.log_reference, eta * game.tau)
  return tuple(jax.nn.log_softmax(own + eta * gain) for own, gain in zip(centre, q, strict=True))


def mtpo_step(game: DialogueGame, log_pi: DialoguePolicy, eta: Scalar) -> DialoguePolicy:
  """One update of MTPO: with eta = 2 / (tau (t + 2)) it converges (Theorem 4.2)."""
  return mirror_step(game, log_pi, log_pi, eta)


def mtpo_tau_step(game: DialogueGame, log_pi: DialoguePolicy, eta: Scalar) -> DialoguePolicy:
  """One update of MTPO-tau: values of, and against, the mixture pi^{1 - eta tau} mu^{eta tau}."""
  mixture = geometric_mixture(log_pi, game.log_reference, eta * game.tau)
  q = turn_values(game, mixture, conversation_gains(game, mixture)).q
  return tuple(jax.nn.log_softmax(own + eta * gain) for own, gain in zip(mixture, q, strict=True))


def geometric_mixture(
  log_pi: DialoguePolicy, log_reference: DialoguePolicy, beta: Scalar
) -> DialoguePolicy:
  """pi^{1 - beta} mu^beta / Z in every state: a mixture per turn, not of whole conversations."""
  return tuple(
    jax.nn.log_softmax((1 - beta) * own + beta * reference)
    for own, reference in zip(log_pi, log_reference, strict=True)
  )


def dialogue_newton_step(game: DialogueGame, log_pi: DialoguePolicy) -> DialoguePolicy:
  """One step on log BR(pi) - log pi over the tables of all turns, no logit moving too far."""
  flat, unflatten = ravel_pytree(log_pi)

  def normalise(logits):
    return tuple(map(jax.nn.log_softmax, unflatten(logits)))

  def reply(logits):
    return ravel_pytree(dialogue_best_response(game, normalise(logits)))[0]

  matrix = jnp.eye(len(flat)) - jax.jacobian(reply)(flat)
  change = solve(matrix, reply(flat) - flat)
  return normalise(flat + cap_change(flat, change))


def dialogue_equilibrium(
  game: DialogueGame, tolerance: float = 1e-22, limit: int = 600
) -> DialogueEquilibrium:
  """The equilibrium for tau > 0, by Newton with tau lowered in stages.

  Args:
    game: one game.
    tolerance: exploitability to reach, in win probability; quadratic in the policy's error. In
      float32 not below about 1e-9.
    limit: the most Newton steps; a gap above the tolerance tells that they were not enough.
  """

  def unsolved(carry):
    log_pi, tau, steps = carry
    gap = dialogue_exploitability(game, log_pi)
    return (steps < limit) & ((tau > game.tau) | ~(gap <= tolerance))

  def one(carry):
    log_pi, tau, steps = carry
    stage = game._replace(tau=tau)
    log_pi = dialogue_newton_step(stage, log_pi)
    lower = jnp.maximum(game.tau, tau / 4)
    solved = dialogue_exploitability(stage, log_pi) < 1e-2 * tau
    return log_pi, jnp.where(solved, lower, tau), steps + 1

  tau = jnp.maximum(game.tau, abs(game.payoff).max())
  log_pi, _, steps = lax.while_loop(unsolved, one, (game.log_reference, tau, jnp.int32(0)))
  return DialogueEquilibrium(log_pi, dialogue_exploitability(game, log_pi), steps)


def as_matrix_game(game: DialogueGame) -> Game:
  """The one-token game over complete conversations, for a user whose replies are certain.

  Raises:
    UserError: if a reply is random: the KL over plans would then charge replies that never came.
  """
  if any(reply.shape[-1] > 1 for reply in game.replies):
    raise UserError(
      'a conversation with replies is no matrix game at tau > 0; use dialogue_equilibrium.'
    )
  return Game(game.payoff, jnp.log(occupancy(game, game.log_reference)), game.tau)
