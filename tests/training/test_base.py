"""Slots that share a base: updates never change the base."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax import trees
from nlhf_jax.algorithms import catalogue
from nlhf_jax.models import lora, scoring
from nlhf_jax.structs import Comparison, Prompts, Responses
from nlhf_jax.training.checkpoints import Checkpoints
from nlhf_jax.training.update import initial_state, make_update
from tests.models.test_lora import DECODER, randomise_adapters, some_rows

ROWS = {
  'average': catalogue.nash_ema_pg(rate=0.25, tau=0.1),
  'snapshot': catalogue.mpo(tau=0.1, eta=1.0, every=2, reset=4),
  'ahead': catalogue.egpo(tau=0.1, temperature=1.5),
}
OPTIMIZER = optax.adam(0.01)


def comparison():
  prompts = Prompts(*map(jnp.asarray, some_rows()))
  tokens = np.random.default_rng(2).integers(11, size=(2, 4, 2, 5))
  left, right = (Responses(jnp.asarray(side), jnp.ones(side.shape, bool)) for side in tokens)
  payoff = jnp.asarray(np.random.default_rng(3).uniform(-0.5, 0.5, (4, 2, 2)), jnp.float32)
  return Comparison(prompts, left, right, payoff)


@pytest.fixture(scope='module')
def begun():
  """An adapter, as SFT would train it, and the base."""
  return trees.split(
    randomise_adapters(jax.jit(DECODER.init)(jax.random.key(0)), 1), lora.is_adapter
  )


@pytest.mark.parametrize(
  'slot', [pytest.param(slot, marks=() if slot == 'average' else pytest.mark.slow) for slot in ROWS]
)
def test_slots_move_and_the_base_does_not(slot, begun, tmp_path):
  row, (own, base) = ROWS[slot], begun
  update = make_update(row, scoring.make_score(DECODER), OPTIMIZER, lambda *_: {})

  def run(state, steps):
    for step in steps:
      state, _ = update(state, comparison(), jax.random.key(step))
    return state

  def start():
    return initial_state(row, own, OPTIMIZER, base)

  before = jax.tree.map(np.array, base)
  done = run(start(), range(4))
  jax.tree.map(np.testing.assert_array_equal, before, done.fixed['base'])
  moved = {name: leaf for name, leaf in trees.flatten(done.slots[slot]).items()}
  assert all(lora.is_adapter(name) for name in moved)
  assert any(np.any(moved[name] != leaf) for name, leaf in trees.flatten(own).items())
  if 'reference' in done.fixed:  # the adapter itself, not a copy
    assert done.fixed['reference'] is own

  cut = run(start(), range(2))
  saved = Checkpoints(tmp_path)
  saved.save(cut)
  resumed = run(saved.restore(start()), range(2, 4))
  saved.close()
  jax.tree.map(np.testing.assert_array_equal, done, resumed)


@pytest.mark.slow
def test_shared_base_gives_the_update_of_whole_parameters(begun):
  own, base = begun
  row, score = ROWS['average'], scoring.make_score(DECODER)
  shared = make_update(row, score, optax.sgd(0.1), lambda *_: {})
  state, _ = shared(initial_state(row, own, optax.sgd(0.1), base), comparison(), jax.random.key(0))
  whole = trees.merge(base, own)
  alone = make_update(row, score, optax.sgd(0.1), lambda *_: {})
  full, _ = alone(initial_state(row, whole, optax.sgd(0.1)), comparison(), jax.random.key(0))
  adapters, _ = trees.split(full.params['policy'], lora.is_adapter)
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6),
    state.params['policy'],
    adapters,
  )
