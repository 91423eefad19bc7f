"""An async judge: each step trains on the responses sampled one step before."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.judges.judge import probability, vote
from nlhf_jax.judges.judge import with_feedback as with_feedback
from nlhf_jax.structs import Comparison, Prompts, Responses, TrainState
from nlhf_jax.training.async_judge import make_async_judge
from nlhf_jax.training.rollout_step import make_sample

KEYS = [jax.random.key(number) for number in range(5)]


def batch(number):
  tokens = jnp.full((2, 3), number)
  return Prompts(tokens, jnp.ones_like(tokens, bool))


def responses(tokens):
  return Responses(tokens, jnp.ones_like(tokens, bool))


def make_rollout(mixtures):
  """Responses contain the policy, the prompt and the key that they were sampled with."""

  def rollout(slots, prompts, key):
    assert prompts.tokens.shape == prompts.mask.shape == (2, 5)  # padded to the same shape
    np.testing.assert_array_equal(prompts.mask[0], [False, False, True, True, True])
    tokens = jnp.stack([slots['policy'], prompts.tokens[0, -1], jax.random.bits(key, (), 'uint8')])
    return tuple(responses(jnp.tile(tokens, (2, 1, 1)) + i) for i, _ in enumerate(mixtures))

  return rollout


def judge(comparison):
  return (comparison.left.tokens[..., 0] - 2.0)[:, :, None] / 10 - jnp.zeros((2, 1, 1))


def update(state, comparison, key):
  """The policy counts the updates; the metrics show what it was trained on."""
  del key
  policy = {'policy': state.params['policy'] + 1}
  seen = {'left': comparison.left.tokens[0, 0], 'payoff': comparison.payoff[0, 0, 0]}
  return TrainState(state.step + 1, policy, None, {}), seen


@pytest.fixture
def make_steps():
  algorithm = catalogue.nash_md_pg(0.125, 0.1)
  return lambda judge=judge: make_async_judge(
    make_sample(algorithm, make_rollout),
    judge,
    lambda judge: with_feedback(judge, probability),
    update,
    steps=4,
    prompt_length=5,
  )


def start(steps):
  state = TrainState(jnp.zeros((), int), {'policy': jnp.zeros((), int)}, None, {})
  return steps.begin(state, batch(0), KEYS[-1])


def test_step_trains_on_samples_of_the_step_before(make_steps):
  steps = make_steps()
  state = start(steps)
  for number, key in enumerate(KEYS[:4]):
    state, seen = steps.step(state, batch(number + 1), key)
    policy, prompt, _ = seen['left'].tolist()
    assert prompt == number  # of this step
    assert policy == max(number - 1, 0)  # sampled by the policy before the last update
    assert seen['payoff'] == pytest.approx((policy - 2) / 10)
  assert int(state.in_flight.left.tokens[0, 0, 1]) == 4
  steps.close()


def test_samples_of_the_last_step_are_not_judged(make_steps):
  judged = []

  def counting(comparison):
    judged.append(int(comparison.left.tokens[0, 0, 1]))
    return judge(comparison)

  steps = make_steps(counting)
  state = start(steps)
  for number, key in enumerate(KEYS[:4]):
    state, _ = steps.step(state, batch(number + 1), key)
  steps.close()
  assert judged == [0, 1, 2, 3]


def test_judge_runs_during_the_update(make_steps):
  """The judge returns only after the next update has begun."""
  updated = threading.Event()

  def waiting(comparison):
    if comparison.left.tokens[0, 0, 1] > 0:
      assert updated.wait(20)
    return judge(comparison)

  steps = make_steps(waiting)
  state, _ = steps.step(start(steps), batch(1), KEYS[0])
  updated.set()
  _, seen = steps.step(state, batch(2), KEYS[1])
  assert seen['left'].tolist()[1] == 1


def test_resumed_run_judges_again_and_is_identical(make_steps):
  uncut, cut, judged = make_steps(), make_steps(), []

  def counting(comparison):
    judged.append(int(comparison.left.tokens[0, 0, 1]))
    return judge(comparison)

  resumed = make_steps(counting)
  one, other = start(uncut), start(cut)
  for number, key in enumerate(KEYS[:2]):
    one, _ = uncut.step(one, batch(number + 1), key)
    other, _ = cut.step(other, batch(number + 1), key)
  other = jax.tree.map(jnp.copy, other)  # as restored from a checkpoint
  for number, key in enumerate(KEYS[2:4], start=2):
    one, seen = uncut.step(one, batch(number + 1), key)
    other, again = resumed.step(other, batch(number + 1), key)
    np.testing.assert_array_equal(seen['left'], again['left'])
    np.testing.assert_array_equal(seen['payoff'], again['payoff'])
  assert judged[:2] == [2, 3]


def test_failing_judge_leaves_the_state_unchanged(make_steps):
  class Failed(Exception):
    pass

  def failing(comparison):
    raise Failed

  broken, whole = make_steps(failing), make_steps()
  state = start(broken)
  with pytest.raises(Failed):
    broken.step(state, batch(1), KEYS[0])
  _, seen = whole.step(state, batch(1), KEYS[0])
  assert seen['left'].tolist()[1] == 0


def test_shared_responses_are_stored_once():
  algorithm = catalogue.sppo(5.0, 3, 10, 0.5)
  seen = []

  def all_of_them(comparison):
    seen.append(comparison.right is comparison.left)
    return jnp.zeros((2, 3, 3))

  steps = make_async_judge(
    make_sample(algorithm, lambda mixtures: lambda slots, prompts, key: tuple(
      responses(jnp.ones((2, 1, 3), int)) for _ in mixtures
    )),
    all_of_them,
    lambda judge: with_feedback(judge, vote),
    lambda state, comparison, key: (state, {'same': comparison.right is comparison.left}),
    steps=4,
    prompt_length=3,
  )  # fmt: skip
  state = start(steps)
  assert state.in_flight.right is None
  state, metrics = steps.step(state, batch(1), KEYS[0])
  assert metrics['same']
  assert seen[0]
  assert isinstance(state.in_flight, Comparison)
