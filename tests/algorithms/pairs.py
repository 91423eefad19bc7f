"""A pair of responses whose log-probabilities, and so losses, are computed by hand."""

from math import exp, log

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.structs import Comparison, Prompts, Responses, Scores

# Log-probabilities of the three tokens of y, and of y', which has two tokens and padding.
#                 sum  -1.75              -2.75
# reference            -3                 -2               rho = 1.25, -.75:  lead 2
# snapshot             -2.25              -2.25            rho = .5, -.5:     lead 1
# older                -2                 -1
PAIR = {
  'policy': ([-1.0, -0.5, -0.25], [-2.0, -0.75, 0.0]),
  'reference': ([-1.5, -1.0, -0.5], [-1.5, -0.5, 0.0]),
  'snapshot': ([-1.0, -1.0, -0.25], [-1.25, -1.0, 0.0]),
  'older': ([-0.5, -0.5, -1.0], [-0.5, -0.5, 0.0]),
}
WIN, LOSS = 0.5, -0.5


def sigmoid(x):
  return 1 / (1 + exp(-x))


def logistic(x):
  """-log sigmoid(x)."""
  return log(1 + exp(-x))


def scores(**renamed):
  """slot -> scores [1, 1, 3] of the pair; a slot of another name reads as one of the above."""
  slots = PAIR | {slot: PAIR[name] for slot, name in renamed.items()}
  return {slot: Scores(*(jnp.array([[side]]) for side in pair)) for slot, pair in slots.items()}


def compared(payoff, of=(3, 2)):
  """The pair, with lengths, and with the payoff of y against y'."""
  sides = [
    Responses(jnp.zeros((1, 1, 3), jnp.int32), (jnp.arange(3) < length)[None, None])
    for length in of
  ]
  prompts = Prompts(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))
  return Comparison(prompts, *sides, jnp.array([[[payoff]]]))


def value(algorithm, payoff=WIN, **renamed):
  value = algorithm.loss(scores(**renamed), compared(payoff))
  assert value.shape == (1, 1, 1)
  return value.item()


def gradient(algorithm, payoff=WIN, **renamed):
  """In the log-probability of each token that the policy gives: ([3], [3])."""
  others = scores(**renamed)

  def loss(policy):
    return jnp.sum(algorithm.loss({**others, 'policy': policy}, compared(payoff)))

  return [np.array(side[0, 0]) for side in jax.grad(loss)(others['policy'])]


def is_close(actual, desired):
  np.testing.assert_allclose(actual, desired, rtol=2e-6, atol=1e-6)
