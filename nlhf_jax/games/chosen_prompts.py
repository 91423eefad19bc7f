"""A prompter that chooses prompts, paid in what can still be gained on them.

    min_pi max_q E_{x ~ q} e_x(pi) - tau_q KL(q, rho) = min_pi tau_q log sum_x rho exp(e_x / tau_q)

e_x is the regularised exploitability of the policy on prompt x, and rho the prompts of the data. It
is convex in pi, so that there is one saddle point. Policies and prompters are log-probabilities.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from nlhf_jax.games.game import Game, exploitability, gains, kl, log_best_response
from nlhf_jax.linear_algebra import solve

HALVINGS = 30  # step sizes that the shared policy's line search tries


class PromptGame(NamedTuple):
  """Games of X prompts, the distribution of prompts in the data, and the price of leaving it."""

  games: Game  # of every prompt: payoff [X, K, K], log_reference [X, K], tau [X]
  log_data: Float[Array, 'X']  # log rho
  prompter_tau: Float[Array, '']  # win probability per nat


class SharedSolution(NamedTuple):
  """One policy for all prompts, the prompter, their value, and the number of Newton steps."""

  log_pi: Float[Array, 'K']
  log_prompter: Float[Array, 'X']
  value: Float[Array, '']
  steps: Int[Array, '']


def exploitabilities(game: PromptGame, log_pi: Float[Array, 'X K']) -> Float[Array, 'X']:
  """e_x(pi) of every prompt, in win probability; zero at its equilibrium."""
  return jax.vmap(exploitability)(game.games, log_pi)


def gains_over_reference(game: PromptGame) -> Float[Array, 'X']:
  """max over pi of P_tau(pi > mu|x) - 1/2: e_x(mu), what a policy can win against the reference."""
  return exploitabilities(game, game.games.log_reference)


def best_prompter(game: PromptGame, payment: Float[Array, 'X']) -> Float[Array, 'X']:
  """rho exp(payment / tau_q) / Z: the prompter's optimum for what each prompt pays.

  Pay `exploitabilities`. Paid minus the policy's win rate, it flees to prompts where nothing can be
  learned: ties, and prompts that no response is good for. NaN, where a judge has no verdict on a
  prompt, is no signal: the prompt keeps its probability in the data.
  """
  value = prompter_value(game, payment)
  payment = jnp.where(jnp.isnan(payment), value, payment)
  return jax.nn.log_softmax(game.log_data + payment / game.prompter_tau)


def prompter_value(game: PromptGame, payment: Float[Array, 'X']) -> Float[Array, '']:
  """tau_q log sum_x rho exp(payment / tau_q): the payment of the best prompter, less its price.

  Over the prompts whose payment is a number.
  """
  tau = game.prompter_tau
  unknown = jnp.isnan(payment)
  log_data = jax.nn.log_softmax(jnp.where(unknown, -jnp.inf, game.log_data))
  return tau * jax.nn.logsumexp(log_data + jnp.where(unknown, 0, payment) / tau)


def prompter_objective(
  game: PromptGame, log_q: Float[Array, 'X'], payment: Float[Array, 'X']
) -> Float[Array, '']:
  """E_{x ~ q} payment - tau_q KL(q, rho)."""
  return jnp.exp(log_q) @ payment - game.prompter_tau * kl(log_q, game.log_data)


def exploiters(game: PromptGame, log_pi: Float[Array, 'X K']) -> Float[Array, 'X K']:
  """The best response to the policy on every prompt."""
  return jax.vmap(log_best_response)(game.games, log_pi)


def prompt_and_response(game: PromptGame, log_pi: Float[Array, 'X K']) -> Float[Array, 'X K']:
  """The policy of two turns, prompt and response, that gains most: log-probabilities of both.

  rho mu exp((A_x pi_x + tau KL(pi_x, mu_x)) / tau) / Z, for tau_q = tau. Its marginal is the best
  prompter, and its conditional the exploiter.
  """
  spent = game.games.tau * jax.vmap(kl)(log_pi, game.games.log_reference)
  gain = jax.vmap(gains)(game.games, log_pi) + spent[:, None]
  joint = game.log_data[:, None] + game.games.log_reference + gain / game.prompter_tau
  return jax.nn.log_softmax(joint.ravel()).reshape(joint.shape)


def learner_objective(game: PromptGame, pi: Float[Array, 'K']) -> Float[Array, '']:
  """What a policy shared by all prompts minimises, as a function of its probabilities."""
  shared = jnp.broadcast_to(jnp.log(pi), game.games.log_reference.shape)
  return prompter_value(game, exploitabilities(game, shared))


def solve_shared_policy(
  game: PromptGame, tolerance: float = 1e-14, limit: int = 100
) -> SharedSolution:
  """The saddle point among policies that answer every prompt alike, for tau > 0.

  Newton on the probabilities with their sum held, with a line search, since the objective is
  strictly convex in them.

  Args:
    game: the game.
    tolerance: of the predicted decrease of the objective, in win probability.
    limit: the most Newton steps.
  """
  count = game.games.payoff.shape[-1]
  ones = jnp.ones((count, 1))

  def objective(pi):
    return learner_objective(game, pi)

  def one(carry):
    pi, _, steps = carry
    slope, curvature = jax.grad(objective)(pi), jax.hessian(objective)(pi)
    system = jnp.block([[curvature, ones], [ones.T, jnp.zeros((1, 1))]])
    change = solve(system, jnp.append(-slope, 0.0))[:count]
    largest = jnp.minimum(1, 0.99 * jnp.min(jnp.where(change < 0, -pi / change, jnp.inf)))
    tried = pi + (largest * 0.5 ** jnp.arange(HALVINGS))[:, None] * change
    values = jax.vmap(objective)(tried)
    # The largest step of those that rounding does not tell apart.
    pi = tried[jnp.argmax(values <= values.min() + 4 * jnp.finfo(pi.dtype).eps)]
    return pi / pi.sum(), -slope @ change, steps + 1

  def unsolved(carry):
    _, decrease, steps = carry
    return (steps < limit) & (decrease > tolerance)

  start = (jnp.full(count, 1 / count), jnp.asarray(jnp.inf), jnp.int32(0))
  pi, _, steps = lax.while_loop(unsolved, one, start)
  shared = jnp.broadcast_to(jnp.log(pi), game.games.log_reference.shape)
  payment = exploitabilities(game, shared)
  return SharedSolution(
    jnp.log(pi), best_prompter(game, payment), prompter_value(game, payment), steps
  )
