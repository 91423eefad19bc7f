"""Law: the rows that learn from data rest where their data is matched; and no row goes untested."""

import inspect

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.structs import Scores


def descend(loss, start):
  """Plain gradient descent to where a convex loss rests."""
  step = jax.jit(lambda logits: logits - 2 * jax.grad(loss)(logits))
  for _ in range(400):
    start = step(start)
  return start


@pytest.mark.usefixtures('float64')
def test_a_preference_model_rests_at_the_preference():
  preference = exact.random_game(seed=3)
  row = catalogue.preference_model()

  def loss(logits):
    return jnp.sum(row.loss({'policy': logits}, jnp.asarray(preference - 0.5)[None]))

  learned = descend(loss, jnp.zeros((1, 4, 4)))[0]
  np.testing.assert_allclose(jax.nn.sigmoid(learned), preference, atol=1e-6)


@pytest.mark.usefixtures('float64')
def test_sft_rests_at_the_distribution_of_its_demonstrations():
  shares = jnp.asarray([0.5, 0.3, 0.2])
  row = catalogue.sft()

  def loss(logits):
    scores = {'policy': Scores(jax.nn.log_softmax(logits)[None, :, None])}
    return jnp.sum(shares * row.loss(scores, None)[0])

  np.testing.assert_allclose(jax.nn.softmax(descend(loss, jnp.zeros(3))), shares, atol=1e-6)


def test_every_row_of_the_catalogue_has_its_law():
  rows = {
    name
    for name, member in inspect.getmembers(catalogue, inspect.isfunction)
    if member.__module__ == catalogue.__name__
  }
  assert rows == {*exact.ROWS, 'sft', 'preference_model'}
