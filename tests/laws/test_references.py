"""References follow their rules, and steps that are not taken change nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import Algorithm, always, extragradient
from nlhf_jax.algorithms.references import ema, frozen, history, newest, snapshot
from nlhf_jax.training.update import advance, initial_state
from tests.laws import exact, tiny

pytestmark = pytest.mark.usefixtures('float64')


def moved(references, updates, step=always):
  """Each slot after every update; the proposed policy is the number of the update."""
  algorithm = Algorithm([], [], None, references, step=step)
  state = initial_state(algorithm, jnp.zeros(()), optax.sgd(1.0))
  after = []
  for update in range(1, updates + 1):
    state = advance(algorithm, state, jnp.float64(update), state.optimizer)
    after.append({slot: float(value) for slot, value in state.slots.items()})
  return {slot: [params[slot] for params in after] for slot in after[0]}


def test_frozen_reference_never_changes():
  assert moved({'it': frozen}, 3)['it'] == [0, 0, 0]


def test_newest_is_the_last_proposed_policy():
  assert moved({'it': newest}, 3)['it'] == [1, 2, 3]


def test_ema_weighs_the_newest_by_rate():
  assert moved({'it': ema(0.25)}, 3)['it'] == [0.25, 0.6875, 1.265625]


def test_snapshot_is_taken_after_each_round():
  assert moved({'it': snapshot(3)}, 7)['it'] == [0, 0, 3, 3, 3, 6, 6]


def test_snapshot_may_start_at_another_update():
  assert moved({'it': snapshot(4, first=2)}, 7)['it'] == [0, 2, 2, 2, 2, 6, 6]


def test_snapshot_copies_a_slot_before_the_update():
  slots = moved({'young': snapshot(2), 'old': snapshot(2, of='young')}, 6)
  assert slots['young'] == [0, 2, 2, 4, 4, 6]
  assert slots['old'] == [0, 0, 0, 2, 2, 4]


def test_history_holds_policies_of_the_last_rounds():
  slots = moved(history(3, 2), 8)
  assert slots['history_1'] == [0, 2, 2, 4, 4, 6, 6, 8]
  assert slots['history_2'] == [0, 0, 0, 2, 2, 4, 4, 6]
  assert slots['history_3'] == [0, 0, 0, 0, 0, 2, 2, 4]


def test_onpo_updates_both_slots_after_their_solves():
  slots = moved(catalogue.onpo(1.0, 2).references, 8)
  assert slots['centre'] == [0, 2, 2, 2, 2, 6, 6, 6]  # pi', at the end of the first solve
  assert slots['snapshot'] == [0, 0, 0, 4, 4, 4, 4, 8]  # pi_t, at the end of the second


def test_extragradient_takes_every_second_proposal():
  slots = moved({'ahead': newest}, 4, extragradient)
  assert slots['policy'] == [0, 2, 2, 4]
  assert slots['ahead'] == [1, 2, 3, 4]


def test_half_step_changes_neither_policy_nor_optimizer():
  algorithm, optimizer = catalogue.egpo(0.1, 1e9), optax.adam(0.1)
  update = tiny.jit(exact.make_exact_update(algorithm, optimizer))
  payoff = jnp.asarray(exact.CYCLE - 0.5)
  states = [initial_state(algorithm, jnp.log(jnp.asarray(exact.CYCLE_MU)), optimizer)]
  for _ in range(4):
    states.append(jax.tree.map(jnp.copy, update(jax.tree.map(jnp.copy, states[-1]), payoff)))
  for before, half, whole in (states[0:3], states[2:5]):
    kept = [(state.params['policy'], state.optimizer) for state in (before, half, whole)]
    jax.tree.map(np.testing.assert_array_equal, kept[0], kept[1])
    assert abs(kept[2][0] - kept[0][0]).max() > 0.01
    assert abs(half.params['ahead'] - before.params['policy']).max() > 0.01
    assert int(whole.optimizer[0].count) == int(before.optimizer[0].count) + 1
    np.testing.assert_array_equal(whole.params['ahead'], whole.params['policy'])
