"""Law: an interrupted and resumed run equals an uninterrupted one, bit for bit."""

import contextlib
import itertools
import json
import os
import signal

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.structs import Comparison, Prompts, Responses, Scores, TrainState
from nlhf_jax.training import checkpoints, interrupts, loop, optimizers, step_metrics
from nlhf_jax.training.update import initial_state, make_update
from tests.chaos import ends

STEPS, EVERY = 12, 4
SCHEDULE = loop.Schedule(STEPS, EVERY, log_every=2)
ALGORITHM = catalogue.nash_ema_pg(rate=0.1, tau=0.05)


def score(params, comparison):
  log_p = jax.nn.log_softmax(params['logits'])
  return Scores(log_p[comparison.left.tokens], log_p[comparison.right.tokens])


def make_step():
  optimizer = optimizers.make_optimizer(
    'adamw', 0.1, STEPS, warmup=2, b1=0.9, b2=0.98, decay=0.01, clip=1.0, rounding='nearest'
  )
  update = make_update(ALGORITHM, score, optimizer, step_metrics.make_rollout_metrics(ALGORITHM))

  def step(state, prompts, key):
    def side(key):
      tokens = jax.random.randint(key, (4, 1, 3), 0, 5)
      return Responses(tokens, tokens >= 0, jnp.zeros(tokens.shape), jnp.ones(tokens.shape))

    left, right = map(side, jax.random.split(key))
    payoff = jnp.tanh(jnp.mean(left.tokens - right.tokens, axis=-1, keepdims=True)) / 2
    return update(state, Comparison(prompts, left, right, payoff), key)

  state = initial_state(ALGORITHM, {'logits': jnp.arange(5.0)}, optimizer)
  return state, step


class Cut(Exception):
  """Stands for a power failure."""


def run(folder, cut=None, evaluated=lambda: None):
  """Trains in `folder`; calls `cut(step)` at each batch, and `evaluated()` at each evaluation."""
  state, step = make_step()

  def fetch(number):
    if cut:
      cut(number)
    return Prompts(np.full((4, 1), number), np.ones((4, 1), bool))

  def evaluate(params):
    evaluated()
    return {'largest': float(jnp.max(params['policy']['logits']))}

  return loop.train(
    state,
    step,
    grain.MapDataset.range(STEPS).map(fetch),
    jax.random.key(1),
    stage='toy',
    folder=folder,
    evaluate=evaluate,
    schedule=SCHEDULE,
  )


def records(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [
    {name: value for name, value in json.loads(line).items() if name not in ends.UNSTABLE}
    for line in lines
  ]


@pytest.fixture(scope='module')
def uncut(tmp_path_factory):
  folder = tmp_path_factory.mktemp('uncut')
  return run(folder), records(folder)


@pytest.mark.parametrize('at', [0, 1, 5, 11])
def test_power_failure_changes_nothing(at, uncut, tmp_path):
  def fail(number):
    if number == at:
      raise Cut

  with pytest.raises(Cut):
    run(tmp_path, fail)
  chex.assert_trees_all_equal(run(tmp_path), uncut[0])
  assert records(tmp_path) == uncut[1]


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_a_checkpoint_and_names_the_step(number, uncut, tmp_path):
  def ask(step):
    if step == 6:
      os.kill(os.getpid(), number)

  with interrupts.deferred(), pytest.raises(Interrupted, match='toy, step 7 of 12'):
    run(tmp_path, ask)
  resumed_at = []
  chex.assert_trees_all_equal(run(tmp_path, resumed_at.append), uncut[0])
  assert resumed_at[0] == 7
  assert records(tmp_path) == uncut[1]  # no mean is split where it stopped


@pytest.mark.parametrize('evaluation', [1, 3])  # of those after steps 4, 8 and 12
def test_interrupted_evaluation_is_repeated_first(evaluation, uncut, tmp_path):
  numbers = itertools.count()

  def interrupt():
    if next(numbers) == evaluation:
      raise Interrupted('held-out prompts')

  done = evaluation * EVERY
  with pytest.raises(Interrupted, match=rf'toy, step {done} of 12, in its evaluation \(held-out'):
    run(tmp_path, evaluated=interrupt)
  resumed_at = []
  chex.assert_trees_all_equal(run(tmp_path, resumed_at.append), uncut[0])
  assert resumed_at[:1] == ([done] if done < STEPS else [])
  assert records(tmp_path) == uncut[1]


def test_interrupted_step_is_repeated_first(uncut, tmp_path):
  state, step = make_step()

  def waits(state, prompts, key):
    if prompts == 7:
      raise Interrupted('asking the judge')
    return step(state, None, key)

  with pytest.raises(Interrupted, match='asking the judge'):
    loop.train(
      state,
      waits,
      grain.MapDataset.range(STEPS),
      jax.random.key(1),
      stage='toy',
      folder=tmp_path,
      evaluate=lambda params: {},
      schedule=SCHEDULE,
    )
  assert [record['step'] for record in records(tmp_path)] == [2, 4, 6]
  resumed_at = []
  chex.assert_trees_all_equal(run(tmp_path, resumed_at.append), uncut[0])
  assert resumed_at[0] == 7
  assert records(tmp_path)[3:] == uncut[1][4:]  # which has one of step 0


def test_finished_stage_is_not_repeated(tmp_path):
  done = run(tmp_path)

  def never(number):
    raise AssertionError(f'step {number} was repeated')

  chex.assert_trees_all_equal(run(tmp_path, never), done)


def test_references_move_by_their_rules(uncut):
  params = uncut[0].slots
  np.testing.assert_array_equal(params['reference']['logits'], np.arange(5.0))
  assert not np.array_equal(params['average']['logits'], params['policy']['logits'])


def test_logs_are_means_over_their_interval(uncut):
  _, log = uncut
  assert [record['step'] for record in log] == list(range(0, STEPS + 1, 2))
  assert ['largest' in record for record in log] == [record['step'] % EVERY == 0 for record in log]
  assert all(np.isfinite(list(record.values())[2:]).all() for record in log)


def test_checkpoints_with_a_first_moment_are_refused_or_read(tmp_path):
  def state(optimizer):
    params = {'layer': jnp.ones(2)}
    return TrainState(jnp.int32(1), {'policy': params}, optimizer.init(params), {})

  with contextlib.closing(checkpoints.Checkpoints(tmp_path)) as kept:
    kept.save(state(optax.scale_by_adam(b1=0.0)))
  new = state(optimizers.adam(0.0, 0.999))
  with (
    contextlib.closing(checkpoints.Checkpoints(tmp_path)) as kept,
    pytest.raises(UserError, match='or another state of the optimiser'),
  ):
    kept.restore(new)
  slots = checkpoints.load_slots(tmp_path, new.params)  # of a finished stage
  np.testing.assert_array_equal(slots['policy']['layer'], np.ones(2))


def test_checkpoints_of_another_layout_are_named(tmp_path):
  def state(layers):
    params = {name: jnp.ones(2) for name in layers}
    return TrainState(jnp.int32(1), {'policy': params}, (), {})

  with contextlib.closing(checkpoints.Checkpoints(tmp_path)) as kept:
    kept.save(state(['layer_0', 'layer_1']))
  with (
    contextlib.closing(checkpoints.Checkpoints(tmp_path)) as kept,
    pytest.raises(UserError, match='this checkpoint has other parameters than the model'),
  ):
    kept.restore(state(['layer']))
  with pytest.raises(UserError, match='this checkpoint has other parameters than the model'):
    checkpoints.load_slots(tmp_path, state(['layer']).params)
