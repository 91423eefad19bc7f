"""Equilibria to machine precision: Newton, Anderson acceleration, linear programs.

For tau > 0 the equilibrium is the one solution of log pi = log BR(pi). Newton's matrix is
I - A diag(pi) / tau, similar to I minus an antisymmetric matrix: never singular, with a condition
number of at most sqrt(1 + sigma^2). Steps are capped, and tau is lowered in stages.
"""

from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
from scipy import optimize, special

from nlhf_jax.errors import UserError
from nlhf_jax.games.game import Game, check_payoff, exploitability, log_best_response
from nlhf_jax.games.solvers import Solver, State, memoryless, pull_to_reference
from nlhf_jax.linear_algebra import least_squares, solve
from nlhf_jax.ranges import POSITIVE, POSITIVE_FRACTION, AtLeastOne

# Probabilities below e^-20 hardly change any payoff, so their logits may move freely.
NEGLIGIBLE = -20.0
CAP = 4.0  # nats; at 8 some random games are never solved
SLACK = 1e-7  # payoffs below this fraction of the largest are 0 to a linear program


class NewtonMemory(NamedTuple):
  """The memory of Newton's method: the tau of the current stage, and the gap at the game's tau."""

  tau: Float[Array, '']
  gap: Float[Array, '']  # infinite until the stage's tau is the game's


class Equilibrium(NamedTuple):
  """A policy, its exploitability, and the number of Newton steps."""

  log_pi: Float[Array, 'K']
  exploitability: Float[Array, '']
  steps: Int[Array, '']

  @property
  def policy(self) -> Float[Array, 'K']:
    """The probabilities."""
    return jnp.exp(self.log_pi)


def cap_change(log_pi: Float[Array, 'K'], change: Float[Array, 'K']) -> Float[Array, 'K']:
  """The change of logits, scaled so that none moves by more than `CAP` above `NEGLIGIBLE`.

  The logits of actions that are never played grow as 1 / tau; if they were capped too, so would the
  number of steps.
  """
  up = CAP + jnp.maximum(0, NEGLIGIBLE - log_pi)
  down = jnp.where(log_pi < NEGLIGIBLE + CAP, jnp.inf, CAP)
  room = jnp.where(change > 0, up, down)
  return change * jnp.minimum(1, jnp.min(room / abs(change)))


def newton_step(game: Game, log_pi: Float[Array, 'K']) -> Float[Array, 'K']:
  """One step on log BR(pi) - log pi, `capped`.

  Logits have no origin, so the step solves the bordered system in which it leaves sum pi at 1.
  """
  pi = jnp.exp(log_pi)
  residual = log_best_response(game, log_pi) - log_pi
  matrix = jnp.eye(len(pi)) - game.payoff * (pi / game.tau)
  change, shift = solve(matrix, jnp.stack([residual, jnp.ones_like(pi)], axis=1)).T
  change = change - (pi @ change) / (pi @ shift) * shift
  return jax.nn.log_softmax(log_pi + cap_change(log_pi, change))


def newton() -> Solver:
  """Newton with continuation: from tau = max |A|, which falls by 4 whenever a stage is solved.

  Convergence is quadratic. The stages and the cap make it safe at low tau, where a line search on
  the gap stalls.
  """

  def init(game, log_pi):
    tau = jnp.maximum(game.tau, abs(game.payoff).max())
    gap = jnp.where(tau > game.tau, jnp.inf, exploitability(game, log_pi))
    return State(jnp.int32(0), log_pi, NewtonMemory(tau, gap))

  def update(game, state):
    tau = state.memory.tau
    stage = game._replace(tau=tau)
    log_pi = newton_step(stage, state.log_pi)
    gap = exploitability(stage, log_pi)
    lower = jnp.where(gap < 1e-2 * tau, jnp.maximum(game.tau, tau / 4), tau)
    return State(
      state.count + 1, log_pi, NewtonMemory(lower, jnp.where(tau > game.tau, jnp.inf, gap))
    )

  return Solver(init, update)


def equilibrium(game: Game, tolerance: ArrayLike = 1e-12, limit: ArrayLike = 600) -> Equilibrium:
  """The equilibrium of a game with tau > 0; NaN where tau is 0.

  `log_pi` can be differentiated by payoff, reference and tau, in both modes, by the implicit
  function theorem. In float32 the tolerance should not be below about 1e-9.

  Args:
    game: one game; `jax.vmap` runs a batch until its last game is solved.
    tolerance: exploitability to reach, in win probability. It is quadratic in the error of the
      policy, about tau / 2 times its square.
    limit: the most Newton steps; a gap above the tolerance tells that they were not enough.
  """
  method, fixed = newton(), lax.stop_gradient(game)

  def unsolved(state):
    return (fixed.tau > 0) & (state.count < limit) & ~(state.memory.gap <= tolerance)

  start = method.init(fixed, fixed.log_reference)
  state = lax.while_loop(unsolved, partial(method.update, fixed), start)

  def residual(log_pi):
    return log_best_response(game, log_pi) - log_pi

  def invert(linear, right):
    return solve(jax.jacobian(linear)(right), right)

  # The root is known already; custom_root adds its derivative.
  log_pi = lax.custom_root(residual, state.log_pi, lambda _, found: found, invert)
  log_pi = jnp.where(game.tau > 0, log_pi, jnp.nan)
  return Equilibrium(log_pi, exploitability(game, log_pi), state.count)


def anderson(
  memory: AtLeastOne = 10, mixing: Annotated[ArrayLike, POSITIVE_FRACTION] = 0.1
) -> Solver:
  """Anderson acceleration of best-response iteration in logits, for games too large for Newton.

  One product with A per update. The mix of the last `memory` residuals is chosen by least squares
  weighted by pi, in which metric the iteration turns without stretching. A
  fraction `mixing` of the remaining residual is added: 1 is faster at tau = 0.02, and does not
  converge at 0.005.
  """

  def init(game, log_pi):
    if not isinstance(game.tau, jax.core.Tracer) and game.tau == 0:
      raise UserError('anderson needs a tau above 0; at 0 use proximal_point.')
    past = jnp.zeros((memory, len(log_pi)), log_pi.dtype)
    reply = log_best_response(game, log_pi)
    return State(jnp.int32(0), log_pi, (log_pi, reply - log_pi, past, past))

  def update(game, state):
    before, residual_before, moves, changes = state.memory
    residual = log_best_response(game, state.log_pi) - state.log_pi
    slot = state.count % memory
    moves = moves.at[slot].set(state.log_pi - before)
    changes = changes.at[slot].set(residual - residual_before)
    weight = jnp.exp(state.log_pi / 2)
    mix = least_squares((changes * weight).T, weight * residual)
    log_pi = jax.nn.log_softmax(state.log_pi + mixing * residual - mix @ (moves + mixing * changes))
    return State(state.count + 1, log_pi, (state.log_pi, residual, moves, changes))

  return Solver(init, update)


def proximal_point(eta: Annotated[ArrayLike, POSITIVE], inner: AtLeastOne = 8) -> Solver:
  """Each iterate is the equilibrium of the game with the additional penalty KL(pi, last) / eta.

  The exact form of COMAL and Nash Prox; it converges linearly, also with tau = 0. The inner game,
  with the coefficient tau + 1 / eta, is solved by `inner` Newton steps.
  """

  def update(game, state):
    tau = game.tau + 1 / eta
    centre = jax.nn.log_softmax(pull_to_reference(game, state.log_pi, game.tau / tau))
    stage = Game(game.payoff, centre, tau)
    return lax.fori_loop(0, inner, lambda _, log_pi: newton_step(stage, log_pi), state.log_pi)

  return memoryless(update)


def maximal_lottery(payoff: np.ndarray) -> np.ndarray:
  """The equilibrium of the largest entropy for tau = 0, [K]: p >= 0, sum p = 1, A p <= 0.

  The equilibrium is unique for almost all payoffs. Where it is not, entropy chooses one of them
  that does not depend on the order of the actions, and in which equal actions have equal shares;
  `is_unique_equilibrium` tells. Runs on NumPy arrays, not under `jax.jit`.
  """
  payoff = np.asarray(payoff, float)
  check_payoff(payoff)
  if payoff.ndim > 2:
    raise UserError(f'one game at a time: a payoff of shape {payoff.shape} is a batch.')
  payoff = payoff / (abs(payoff).max() or 1)  # HiGHS has tolerances of its own
  vertex = _find_vertex(payoff)
  if is_unique_equilibrium(payoff, vertex):
    return vertex
  support = _find_largest_support(payoff)
  pi = np.zeros(len(payoff))
  pi[support] = _maximise_entropy(payoff[np.ix_(support, support)], payoff[~support][:, support])
  if (payoff @ pi).max() > SLACK:
    raise UserError(f'no maximal lottery was found to a precision of {SLACK:g}.')
  return pi


def _find_vertex(payoff: np.ndarray) -> np.ndarray:
  """Some equilibrium for tau = 0, [K]."""
  actions = len(payoff)
  # Solves for the largest v with A p <= -v, which is 0; asking for v = 0 would leave it no room.
  table = optimize.linprog(
    np.append(np.zeros(actions), -1),
    A_ub=np.column_stack([payoff, np.ones(actions)]),
    b_ub=np.zeros(actions),
    A_eq=np.append(np.ones(actions), 0)[None],
    b_eq=[1],
    bounds=[(0, None)] * actions + [(None, None)],
    method='highs',
  )
  if not table.success:
    raise UserError(f'the linear program was not solved: {table.message}')
  pi = np.maximum(table.x[:-1], 0)
  return pi / pi.sum()


def _find_largest_support(payoff: np.ndarray) -> np.ndarray:
  """The actions that any equilibrium plays, [K]; some equilibrium plays all of them.

  Maximises sum_a min(z_a, 1) over the cone z >= 0, A z <= 0, whose rays are the equilibria.
  """
  actions, one = len(payoff), np.eye(len(payoff))
  table = optimize.linprog(
    np.repeat([0.0, -1.0], actions),
    A_ub=np.block([[payoff, 0 * one], [-one, one]]),
    b_ub=np.zeros(2 * actions),
    bounds=[(0, None)] * actions + [(0, 1)] * actions,
    method='highs',
  )
  if not table.success:
    raise UserError(f'the linear program was not solved: {table.message}')
  return table.x[actions:] > 0.5


def _maximise_entropy(inner: np.ndarray, outer: np.ndarray) -> np.ndarray:
  """The distribution q of the largest entropy with inner q = 0 and outer q <= 0."""
  count = len(inner)
  _, scales, rows = np.linalg.svd(inner)
  independent = rows[: np.sum(scales > SLACK)]
  equations = np.concatenate([independent, np.ones((1, count))])
  constants = np.append(np.zeros(len(independent)), 1)
  constraints = [
    {'type': 'eq', 'fun': lambda q: equations @ q - constants, 'jac': lambda q: equations},
    {'type': 'ineq', 'fun': lambda q: -outer @ q, 'jac': lambda q: -outer},
  ]
  found = optimize.minimize(
    lambda q: -np.sum(special.entr(q)),
    np.full(count, 1 / count),
    jac=lambda q: np.log(q) + 1,
    bounds=[(1e-15, 1)] * count,  # where the logarithm is finite
    constraints=constraints[: 1 + bool(len(outer))],
    method='SLSQP',
    options={'maxiter': 1_000, 'ftol': 1e-15},
  )
  pi = np.maximum(found.x, 0)
  return pi / pi.sum()


def is_unique_equilibrium(payoff: np.ndarray, policy: np.ndarray, tolerance: float = 1e-7) -> bool:
  """Whether an equilibrium for tau = 0 is unique, up to `tolerance`.

  It is if no action outside its support does as well against it, and if on its support A has no
  other kernel: any equilibrium q is supported where (A p)_a = 0, and has (A q)_a = 0 where p_a > 0.
  """
  payoff = payoff / (abs(payoff).max() or 1)
  support = policy > tolerance
  inner = payoff[np.ix_(support, support)]
  rank = np.linalg.matrix_rank(inner, tol=tolerance)
  strict = bool((payoff @ policy < -tolerance)[~support].all())
  return strict and bool(rank == support.sum() - 1)
