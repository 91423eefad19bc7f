"""Every solver as a pair of functions, after optax: `init` and `update`.

All ideal steps of the field are one line,

    log pi_{t+1} = (1 - k) log pi_t + k log rho + s A pi' + const,

and differ in the pull k, the step s, the opponent pi' and the magnet rho; `step` is that line.
`unregularised` runs a solver with tau = 0, which the step of Theorem 1 and Anderson's method do not
allow; `moving_reference` moves the reference after each update. Solvers of high precision are in
`exact.py`.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from nlhf_jax.errors import UserError
from nlhf_jax.games.game import Game, gains, log_best_response
from nlhf_jax.ranges import AT_LEAST_ONE, FRACTION, POSITIVE, POSITIVE_FRACTION


class State(NamedTuple):
  """The number of updates done, the last iterate, and what else the solver remembers."""

  count: Int[Array, '']
  log_pi: Float[Array, 'K']
  memory: Any = ()


class Solver(NamedTuple):
  """`init(game, log_pi)` returns the state before the first update; `update` makes one update."""

  init: Callable[[Game, Array], State]
  update: Callable[[Game, State], State]


# A step size: a number, or a function of (updates done, tau).
Step = ArrayLike | Callable[[ArrayLike, ArrayLike], ArrayLike]

# Arguments of solvers, which may be arrays or functions; the ranges are those of numbers.
StepSize = Annotated[Step, POSITIVE]
Every = Annotated[ArrayLike, AT_LEAST_ONE]
Rate = Annotated[ArrayLike, FRACTION]
Damping = Annotated[ArrayLike | Callable[[ArrayLike], ArrayLike], POSITIVE_FRACTION]


def step(game: Game, log_pi: Array, opponent: Array, size: ArrayLike, pull: ArrayLike) -> Array:
  """norm((1 - pull) log_pi + pull log mu + size A opponent)."""
  return jax.nn.log_softmax(pull_to_reference(game, log_pi, pull) + size * gains(game, opponent))


def pull_to_reference(game: Game, log_pi: Array, pull: ArrayLike) -> Array:
  """(1 - pull) log_pi + pull log mu, not normalised.

  Actions of probability zero keep it, unless the pull is 1.
  """
  forgotten = jnp.isneginf(log_pi) & (pull > 1 - 1e-6)  # 1 / tau times tau may fall short of 1
  return jnp.where(forgotten, 0, (1 - pull) * log_pi) + pull * game.log_reference


def decreasing(count: ArrayLike, tau: ArrayLike) -> ArrayLike:
  """2 / (tau (t + 2)), of Theorem 1 of arXiv 2312.00886."""
  return 2 / (tau * (count + 2))


def memoryless(update: Callable[[Game, State], Array]) -> Solver:
  """A solver whose next iterate depends on the last one only."""
  return Solver(
    lambda game, log_pi: State(jnp.int32(0), log_pi),
    lambda game, state: State(state.count + 1, update(game, state)),
  )


# --- Combinators ---


def unregularised(solver: Solver) -> Solver:
  """The same solver for the game with tau = 0."""

  def free(game):
    return game._replace(tau=jnp.zeros_like(game.tau))

  return Solver(
    lambda game, log_pi: solver.init(free(game), log_pi),
    lambda game, state: solver.update(free(game), state),
  )


# (updates done, old reference, new iterate) -> new reference, all as log-probabilities
ReferenceRule = Callable[[Array, Array, Array], Array]


def snapshot(every: Every) -> ReferenceRule:
  """The reference becomes the policy after every `every` updates."""
  return lambda count, old, log_pi: jnp.where(count % every == 0, log_pi, old)


def ema(rate: Rate) -> ReferenceRule:
  """log rho <- (1 - rate) log rho + rate log pi + const: `rate` is the weight on the newest."""
  return lambda count, old, log_pi: jax.nn.log_softmax((1 - rate) * old + rate * log_pi)


def moving_reference(solver: Solver, rule: ReferenceRule) -> Solver:
  """The solver with a moving reference, whose limit solves the unregularised game."""

  def init(game, log_pi):
    inner = solver.init(game, log_pi)
    return State(inner.count, inner.log_pi, (inner, game.log_reference))

  def update(game, state):
    inner, reference = state.memory
    inner = solver.update(game._replace(log_reference=reference), inner)
    return State(inner.count, inner.log_pi, (inner, rule(inner.count, reference, inner.log_pi)))

  return Solver(init, update)


# --- Mirror descent ---


def nash_md(eta: StepSize) -> Solver:
  """Nash-MD (arXiv 2312.00886, eq. 4): opponent and centre are pi^{1-eta tau} mu^{eta tau} / Z.

  With a constant step the mixture converges to the equilibrium for tau / (1 - eta tau), not tau.
  """

  def update(game, state):
    size = _at(eta, state.count, game.tau)
    mixture = jax.nn.log_softmax(pull_to_reference(game, state.log_pi, size * game.tau))
    return jax.nn.log_softmax(mixture + size * gains(game, mixture))

  return _pulling(eta, memoryless(update))


def nash_md_decreasing() -> Solver:
  """Nash-MD with the step 2 / (tau (t + 2)): KL(pi*, pi_T) <= 8 / (tau^2 (T + 1)) (Theorem 1)."""
  return nash_md(decreasing)


def self_play(eta: StepSize) -> Solver:
  """Online mirror descent (arXiv 2312.00886, eq. 8): the opponent is the policy itself.

  The ideal update of online IPO and MTPO too. pi <- pi^{1-eta tau} mu^{eta tau} exp(eta A pi) / Z.
  """

  def update(game, state):
    size = _at(eta, state.count, game.tau)
    return step(game, state.log_pi, state.log_pi, size, size * game.tau)

  return _pulling(eta, memoryless(update))


def mwu(eta: StepSize) -> Solver:
  """Multiplicative weights, or Hedge: self-play with tau = 0. Its average converges."""
  return unregularised(self_play(eta))


def sppo(eta: StepSize) -> Solver:
  """The ideal update of SPPO (arXiv 2405.00675, eq. 3.2), which is `mwu`.

  Also that of SPO and DNO, whose eta is the inverse of the step.
  """
  return mwu(eta)


def inpo(eta: StepSize) -> Solver:
  """The ideal update of INPO (arXiv 2407.00617), whose eta is the inverse of the step."""
  return self_play(lambda count, tau: 1 / jnp.asarray(_at(eta, count, tau)))


def nash_ema(eta: StepSize, rate: Rate) -> Solver:
  """Nash-EMA: the opponent is the geometric mixture of past policies, `rate` on the newest."""

  def init(game, log_pi):
    return State(jnp.int32(0), log_pi, log_pi)

  def update(game, state):
    size = _at(eta, state.count, game.tau)
    log_pi = step(game, state.log_pi, state.memory, size, size * game.tau)
    return State(state.count + 1, log_pi, ema(rate)(state.count, state.memory, log_pi))

  return _pulling(eta, Solver(init, update))


def mmd(eta: StepSize) -> Solver:
  """Magnetic mirror descent (arXiv 2206.05825): `self_play` with an implicit step for the KL.

  pi <- [pi mu^{eta tau} exp(eta A pi)]^{1/(1+eta tau)} / Z, stable for every step size.
  """
  return self_play(_implicit(eta))


def mpo(eta: StepSize, every: Every) -> Solver:
  """Magnetic preference optimisation (arXiv 2410.16714): `mmd` whose magnet is reset."""
  return moving_reference(mmd(eta), snapshot(every))


def mmd_ema(eta: StepSize, rate: Rate) -> Solver:
  """`mmd` whose magnet is a geometric moving average of the policy."""
  return moving_reference(mmd(eta), ema(rate))


def comal(eta: StepSize, every: Every) -> Solver:
  """COMAL (arXiv 2410.23223): `inpo` whose reference is reset; eta as in `inpo`.

  It converges only if `every` is enough for the inner problem to be nearly solved.
  """
  return moving_reference(inpo(eta), snapshot(every))


# --- Prediction ---


def optimistic(eta: StepSize) -> Solver:
  """Optimistic mirror descent: the last payoff predicts the next; one payoff an update.

  pi_t = prox(centre_t, A pi_{t-1}), centre_{t+1} = prox(centre_t, A pi_t). The ideal update of ONPO
  (arXiv 2502.16852) with tau = 0, of regularised OMWU (arXiv 2105.15186) otherwise.
  """

  def init(game, log_pi):
    return State(jnp.int32(0), log_pi, (log_pi, gains(game, log_pi)))

  def update(game, state):
    size = _at(eta, state.count, game.tau)
    centre, gain = state.memory
    centre = pull_to_reference(game, centre, size * game.tau)
    log_pi = jax.nn.log_softmax(centre + size * gain)
    gain = gains(game, log_pi)
    return State(state.count + 1, log_pi, (jax.nn.log_softmax(centre + size * gain), gain))

  return _pulling(eta, Solver(init, update))


def optimistic_mwu(eta: StepSize) -> Solver:
  """`optimistic` with tau = 0."""
  return unregularised(optimistic(eta))


def extragradient(eta: StepSize) -> Solver:
  """EGPO (arXiv 2503.08942), or the predictive update (arXiv 2105.15186): look ahead, then step.

  The half step is taken against the policy; the full step, from the same point, against the result.
  Linear for eta <= 1 / (tau + 2 max |A|).
  """

  def update(game, state):
    size = _at(eta, state.count, game.tau)
    half = step(game, state.log_pi, state.log_pi, size, size * game.tau)
    return step(game, state.log_pi, half, size, size * game.tau)

  return _pulling(eta, memoryless(update))


def mirror_prox(eta: StepSize) -> Solver:
  """Nash mirror prox (arXiv 2505.19731 v1): `extragradient` with an implicit step for the KL.

  What the paper calls eta is eta tau here.
  """
  return extragradient(_implicit(eta))


# --- Best responses ---


def best_response(damping: Damping) -> Solver:
  """pi <- (1 - damping) pi + damping BR(pi), in probabilities; damping 1 is plain iteration.

  `damping` may be a function of the updates done.
  """

  def update(game, state):
    rate = jnp.asarray(damping(state.count) if callable(damping) else damping, game.payoff.dtype)
    pi = (1 - rate) * jnp.exp(state.log_pi) + rate * jnp.exp(log_best_response(game, state.log_pi))
    return jnp.log(pi)

  return memoryless(update)


def smooth_fictitious_play() -> Solver:
  """Best responses to the average of all past ones; the iterate is that average."""
  return best_response(lambda count: 1 / (count + 2.0))


def fictitious_play() -> Solver:
  """`smooth_fictitious_play` with tau = 0: pure best responses, the first one of a tie.

  The start counts as the first response, so that after t updates t + 1 are averaged. They are
  counted, since rounding of a running average would break ties.
  """

  def init(game, log_pi):
    return State(jnp.int32(0), log_pi, jnp.exp(log_pi))

  def update(game, state):
    counts = state.memory + jnp.exp(log_best_response(game, state.log_pi))
    return State(state.count + 1, jnp.log(counts / counts.sum()), counts)

  return unregularised(Solver(init, update))


# --- Regret matching ---


def regret_matching() -> Solver:
  """Play in proportion to positive regrets (Hart and Mas-Colell 2000). The average converges."""
  return _regrets(lambda regret: regret)


def regret_matching_plus() -> Solver:
  """Regret matching that forgets negative regrets (Tammelin 2014)."""
  return _regrets(lambda regret: jnp.maximum(regret, 0))


def _regrets(kept: Callable[[Array], Array]) -> Solver:
  def init(game, log_pi):
    return State(jnp.int32(0), log_pi, jnp.zeros_like(log_pi))

  def update(game, state):
    # The payoff of the policy against itself, pi^T A pi, is 0 and need not be subtracted.
    regret = kept(state.memory + gains(game, state.log_pi))
    positive = jnp.maximum(regret, 0)
    total = positive.sum()
    pi = jnp.where(total > 0, positive / jnp.where(total > 0, total, 1), 1 / len(regret))
    return State(state.count + 1, jnp.log(pi), regret)

  return Solver(init, update)


# --- Step sizes ---


def _at(eta: Step, count: ArrayLike, tau: ArrayLike) -> ArrayLike:
  return eta(count, tau) if callable(eta) else eta


def _implicit(eta: Step) -> Step:
  """The explicit step that equals an implicit step of size `eta`."""

  def size(count, tau):
    explicit = _at(eta, count, tau)
    return explicit / (1 + explicit * tau)

  return size


def _pulling(eta: Step, solver: Solver) -> Solver:
  """The solver, whose `init` refuses a step that pulls beyond the reference, unless traced."""

  def init(game, log_pi):
    first = _at(eta, 0, game.tau)
    if not any(isinstance(number, jax.core.Tracer) for number in (first, game.tau)):
      first, tau = float(first), float(game.tau)
      if not 0 < first < math.inf:
        raise UserError(f'the step, {first:.6g} at tau={tau:.6g}, must be above 0, and finite.')
      if first * tau > 1 + 1e-6:
        raise UserError(
          f'a step of {first:.6g} at tau={tau:.6g} goes {first * tau:.6g} of the way to the '
          f'reference, beyond it; it must be at most 1 / tau = {1 / tau:.6g}.'
        )
    return solver.init(game, log_pi)

  return Solver(init, solver.update)
