"""A number that is not finite stops training within ten steps, and is named."""

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.errors import UserError
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Prompts, Responses, Scores
from nlhf_jax.training import divergence, loop, optimizers, step_metrics
from nlhf_jax.training.checkpoints import Checkpoints
from nlhf_jax.training.update import initial_state, make_update

STEPS, PLANTED = 30, 13
SCHEDULE = loop.Schedule(STEPS, evaluate_every=STEPS)
ONLINE, OFFLINE = catalogue.nash_ema_pg(rate=0.1, tau=0.05), catalogue.dpo(beta=0.1)
ROWS = np.arange(4)


def score(params, comparison):
  log_p = jax.nn.log_softmax(params['logits'])
  return Scores(log_p[comparison.left.tokens], log_p[comparison.right.tokens])


def make_toy(algorithm, skip=False):
  optimizer = optimizers.make_optimizer(
    'adamw', 0.1, STEPS, warmup=2, b1=0.9, b2=0.98, decay=0.01, clip=1.0, rounding='nearest'
  )
  measure = step_metrics.make_rollout_metrics(algorithm)
  update = make_update(algorithm, score, optimizer, measure, skip=skip)
  return update, lambda: initial_state(algorithm, {'logits': jnp.arange(5.0)}, optimizer)


@pytest.fixture(scope='module')
def toys():
  """Name -> (update, first state)."""
  made = {'online': make_toy(ONLINE), 'offline': make_toy(OFFLINE)}
  return made | {'skipping': make_toy(ONLINE, skip=True)}


def batch(number):
  """Four comparisons with finite payoffs."""
  random = np.random.default_rng(number)
  sides = []
  for _ in range(2):
    tokens = random.integers(5, size=(4, 1, 3)).astype(np.int32)
    numbers = np.ones((2, *tokens.shape), np.float32)
    sides.append(Responses(tokens, tokens >= 0, *numbers))
  payoff = random.uniform(-0.5, 0.5, (4, 1, 1)).astype(np.float32)
  prompts = Prompts(np.zeros((4, 1), np.int32), np.ones((4, 1), bool))
  return Comparison(prompts, *sides, payoff)


def with_payoff(value, rows=ROWS):
  def plant(state, comparison):
    payoff = np.array(comparison.payoff)
    payoff[rows] = value
    return state, comparison._replace(payoff=payoff)

  return plant


def in_state(change):
  return lambda state, comparison: (change(state), comparison)


def in_slot(slot):
  nan = {'logits': jnp.full(5, jnp.nan).at[1:].set(0.0)}

  def change(state):
    if slot in state.fixed:
      return state._replace(fixed={**state.fixed, slot: nan})
    return state._replace(params={**state.params, slot: nan})

  return in_state(change)


def change_optimizer(state):
  leaves, tree = jax.tree.flatten(state.optimizer)
  leaves = [leaf.at[0].set(jnp.nan) if leaf.ndim else leaf for leaf in leaves]
  return state._replace(optimizer=jax.tree.unflatten(tree, leaves))


def train(toy, folder, plant=lambda *both: both, at=(PLANTED,), schedule=SCHEDULE):
  """Trains with something planted in steps `at`; the final state and the steps that began."""
  update, first = toy
  began = []

  def step(state, number, key):
    began.append(int(number))
    comparison = batch(number)
    return update(*(plant(state, comparison) if number in at else (state, comparison)), key)

  state = loop.train(
    first(),
    step,
    grain.MapDataset.range(STEPS).map(lambda number: number),
    jax.random.key(1),
    stage='toy',
    folder=folder,
    evaluate=lambda slots: {},
    schedule=schedule,
  )
  return state, began


PLANTS = {
  'judge': (with_payoff(np.inf, [2]), "the judge's answer, a payoff, is not finite"),
  'parameter': (in_slot('policy'), "the slot 'policy', logits, is not finite"),
  'optimizer': (in_state(change_optimizer), "the optimiser's state"),
  'moving reference': (in_slot('average'), "the slot 'average', logits, is not finite"),
  'fixed reference': (in_slot('reference'), "the slot 'reference', logits, is not finite"),
  'remote answers': (with_payoff(np.nan), 'the judge gave no verdict on 10% of the pairs'),
}


@pytest.mark.parametrize('place', PLANTS)
def test_planted_number_stops_and_is_named(place, toys, tmp_path):
  plant, expected = PLANTS[place]
  schedule = SCHEDULE._replace(missing_verdicts=0.05)
  ran = []
  with pytest.raises(UserError) as caught:
    train(toys['online'], tmp_path, lambda *both: ran.append(0) or plant(*both), schedule=schedule)
  message = str(caught.value)
  step = 20 if place == 'remote answers' else PLANTED + 1
  assert message.startswith(f'toy, step {step} of 30: {expected}')
  assert 'the stage is not done' in message
  assert '\n' not in message
  assert ran  # planted once: no later step began after the next log
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  saved = checkpoints.restore(toys['online'][1]())
  checkpoints.close()
  assert not divergence.has_nonfinite((saved.params, saved.optimizer))


def test_row_of_data_stops_and_is_named(toys, tmp_path):
  plant = with_payoff(np.nan, [2])
  update, first = toys['offline']

  def read(number):
    comparison = batch(number)
    return plant(None, comparison)[1] if number == PLANTED else comparison

  with pytest.raises(UserError, match='step 14 of 30: the preference of row 3 of its batch'):
    loop.train(
      first(),
      update,
      grain.MapDataset.range(STEPS).map(read),
      jax.random.key(1),
      stage='toy',
      folder=tmp_path,
      evaluate=lambda slots: {},
      schedule=SCHEDULE,
    )


def test_state_before_the_failure_is_kept(toys, tmp_path):
  with pytest.raises(UserError, match='resumes from the checkpoint of step 13'):
    train(toys['online'], tmp_path / 'failed', with_payoff(np.inf))
  resumed, began = train(toys['online'], tmp_path / 'failed')
  assert began[0] == PLANTED
  uncut, _ = train(toys['online'], tmp_path / 'uncut')
  chex.assert_trees_all_equal(resumed, uncut)


def test_skipping_leaves_out_and_counts_updates(toys, tmp_path):
  """Without its last update, a run has the policy of one that is a step shorter."""
  last, toy = STEPS - 1, toys['skipping']
  skipped, _ = train(toy, tmp_path / 'whole', with_payoff(np.inf), at=(last,))
  shorter, _ = train(toy, tmp_path / 'shorter', schedule=loop.Schedule(last, last))
  assert (int(skipped.step), int(shorter.step)) == (STEPS, last)
  chex.assert_trees_all_equal(skipped.params['policy'], shorter.params['policy'])
  chex.assert_trees_all_equal(skipped.optimizer, shorter.optimizer)
  records = json_lines.read(tmp_path / 'whole' / 'metrics.jsonl')
  assert [record['skipped_updates'] for record in records] == [0, 0, 1]
  assert all(np.isfinite(record['loss']) for record in records)


def test_skipping_ends_after_ten_in_a_row(toys, tmp_path):
  with pytest.raises(UserError, match='step 20 of 30: 10 updates in a row had a loss'):
    train(toys['skipping'], tmp_path, with_payoff(np.inf), at=range(10, 20))


def test_percentiles_of_the_gradient_are_logged(toys, tmp_path):
  train(toys['online'], tmp_path)
  for record in json_lines.read(tmp_path / 'metrics.jsonl'):
    p50, p90, p100 = (record[f'gradient_norm_p{number}'] for number in (50, 90, 100))
    assert 0 < p50 <= p90 <= p100


def test_evaluation_that_is_not_finite_stops(toys, tmp_path):
  update, first = toys['online']
  measured = iter((0.5, float('nan')))  # before the first step, and after the last
  with pytest.raises(UserError, match='step 30 of 30: the metric win_rate is nan'):
    loop.train(
      first(),
      lambda state, number, key: update(state, batch(number), key),
      grain.MapDataset.range(STEPS),
      jax.random.key(1),
      stage='toy',
      folder=tmp_path,
      evaluate=lambda slots: {'win_rate': next(measured)},
      schedule=SCHEDULE,
    )


def test_error_of_a_judge_saves_the_steps_before(toys, tmp_path):
  def fail(state, comparison):
    raise UserError('the judge is away')

  with pytest.raises(UserError, match='the judge is away'):
    train(toys['online'], tmp_path, fail)
  _, began = train(toys['online'], tmp_path)
  assert began[0] == PLANTED
