"""Learning one update behind what is judged: the same samples, the same payoffs, a step later."""

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
  """Responses tell the policy, the prompt and the key that they are from."""

  def rollout(slots, prompts, key):
    assert prompts.tokens.shape == prompts.mask.shape == (2, 5)  # a state has one shape
    np.testing.assert_array_equal(prompts.mask[0], [False, False, True, True, True])
    said = jnp.stack([slots['policy'], prompts.tokens[0, -1], jax.random.bits(key, (), 'uint8')])
    return tuple(responses(jnp.tile(said, (2, 1, 1)) + i) for i, _ in enumerate(mixtures))

  return rollout


def judge(comparison):
  return (comparison.left.tokens[..., 0] - 2.0)[:, :, None] / 10 - jnp.zeros((2, 1, 1))


def update(state, comparison, key):
  """The policy is the number of updates; what was learned from is told."""
  del key
  policy = {'policy': state.params['policy'] + 1}
  told = {'left': comparison.left.tokens[0, 0], 'payoff': comparison.payoff[0, 0, 0]}
  return TrainState(state.step + 1, policy, None, {}), told


@pytest.fixture
def ahead():
  algorithm = catalogue.nash_md_pg(0.125, 0.1)
  return lambda judge=judge: make_async_judge(
    make_sample(algorithm, make_rollout),
    judge,
    lambda asked: with_feedback(asked, probability),
    update,
    steps=4,
    prompt_length=5,
  )


def start(ahead):
  state = TrainState(jnp.zeros((), int), {'policy': jnp.zeros((), int)}, None, {})
  return ahead.begin(state, batch(0), KEYS[-1])


def test_a_step_learns_from_what_the_step_before_sampled(ahead):
  ahead = ahead()
  state = start(ahead)
  for number, key in enumerate(KEYS[:4]):
    state, told = ahead.step(state, batch(number + 1), key)
    policy, prompt, _ = told['left'].tolist()
    assert prompt == number  # its own batch
    assert policy == max(number - 1, 0)  # said by the policy of an update ago
    assert told['payoff'] == pytest.approx((policy - 2) / 10)
  assert int(state.in_flight.left.tokens[0, 0, 1]) == 4
  ahead.close()


def test_what_the_last_step_samples_is_not_judged(ahead):
  asked = []

  def counting(comparison):
    asked.append(int(comparison.left.tokens[0, 0, 1]))
    return judge(comparison)

  ahead = ahead(counting)
  state = start(ahead)
  for number, key in enumerate(KEYS[:4]):
    state, _ = ahead.step(state, batch(number + 1), key)
  ahead.close()
  assert asked == [0, 1, 2, 3]


def test_the_judge_is_at_work_during_the_update(ahead):
  """It does not come back before it has seen an update begin that is not its own."""
  updated = threading.Event()

  def waiting(comparison):
    if comparison.left.tokens[0, 0, 1] > 0:
      assert updated.wait(20)
    return judge(comparison)

  ahead = ahead(waiting)
  state, _ = ahead.step(start(ahead), batch(1), KEYS[0])
  updated.set()
  _, told = ahead.step(state, batch(2), KEYS[1])
  assert told['left'].tolist()[1] == 1


def test_a_run_that_is_resumed_asks_again_and_is_the_same_run(ahead):
  uncut, cut, asked = ahead(), ahead(), []

  def counting(comparison):
    asked.append(int(comparison.left.tokens[0, 0, 1]))
    return judge(comparison)

  resumed = ahead(counting)
  one, other = start(uncut), start(cut)
  for number, key in enumerate(KEYS[:2]):
    one, _ = uncut.step(one, batch(number + 1), key)
    other, _ = cut.step(other, batch(number + 1), key)
  other = jax.tree.map(jnp.copy, other)  # as a checkpoint gives it back
  for number, key in enumerate(KEYS[2:4], start=2):
    one, told = uncut.step(one, batch(number + 1), key)
    other, again = resumed.step(other, batch(number + 1), key)
    np.testing.assert_array_equal(told['left'], again['left'])
    np.testing.assert_array_equal(told['payoff'], again['payoff'])
  assert asked[:2] == [2, 3]


def test_a_judge_that_fails_leaves_the_state_as_it_was(ahead):
  class Failed(Exception):
    pass

  def failing(comparison):
    raise Failed

  broken, whole = ahead(failing), ahead()
  state = start(broken)
  with pytest.raises(Failed):
    broken.step(state, batch(1), KEYS[0])
  _, told = whole.step(state, batch(1), KEYS[0])
  assert told['left'].tolist()[1] == 0


def test_responses_compared_with_themselves_are_kept_once():
  algorithm = catalogue.sppo(5.0, 3, 10, 0.5)
  seen = []

  def all_of_them(comparison):
    seen.append(comparison.right is comparison.left)
    return jnp.zeros((2, 3, 3))

  ahead = make_async_judge(
    make_sample(algorithm, lambda mixtures: lambda slots, prompts, key: tuple(
      responses(jnp.ones((2, 1, 3), int)) for _ in mixtures
    )),
    all_of_them,
    lambda asked: with_feedback(asked, vote),
    lambda state, comparison, key: (state, {'same': comparison.right is comparison.left}),
    steps=4,
    prompt_length=3,
  )  # fmt: skip
  state = start(ahead)
  assert state.in_flight.right is None
  state, told = ahead.step(state, batch(1), KEYS[0])
  assert told['same']
  assert seen[0]
  assert isinstance(state.in_flight, Comparison)
