"""Players beside a policy: resuming, failures, and what may be loaded of them."""

import chex
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.data.batches import take
from nlhf_jax.errors import UserError
from nlhf_jax.structs import Comparison, Prompts, Responses, Scores
from nlhf_jax.training import checkpoints, loop
from nlhf_jax.training.opponent_play import choose_from, score_chosen
from nlhf_jax.training.players import Player, make_player_steps
from nlhf_jax.training.update import initial_state, make_update

STEPS = 6
ALGORITHM = catalogue.self_play(0.05)
POOL = Prompts(np.arange(10).reshape(5, 2), np.ones((5, 2), bool))


def score(params, comparison):
  return Scores(jax.nn.log_softmax(params['logits'])[comparison.left.tokens])


def make_steps():
  """A policy and two players on random samples; the second is paid infinity at negative numbers."""
  optimizer = optax.adam(0.1)

  def payoff(comparison, scores):
    return {'payoff': jnp.mean(comparison.payoff)}

  def play(slots, batch, key):
    number, rows = batch

    def comparison(slot):
      tokens = jax.random.categorical(key, slots[slot]['logits'], shape=(4, 1, 1))
      side = Responses(tokens, tokens >= 0)
      payoff = jnp.cos(tokens + slots['second']['logits'][0])
      if slot == 'second':
        payoff = jnp.where(number < 0, jnp.inf, payoff)
      return Comparison(Prompts(rows, rows >= 0), side, None, payoff)

    return {slot: comparison(slot) for slot in ('policy', 'first', 'second')}

  def make(measure):
    return make_update(ALGORITHM, score, optimizer, measure)

  players = {
    'first': Player(make(payoff), optimizer),
    'second': Player(
      make(payoff), optimizer, {'logits': jnp.ones(3)}, {'reference': {'logits': jnp.zeros(3)}}
    ),
  }
  state = initial_state(ALGORITHM, {'logits': jnp.arange(5.0)}, optimizer)
  steps = make_player_steps(make(lambda *_: {}), players, play)
  return steps.begin(state, None, None), steps.step


@pytest.fixture(scope='module')
def toy():
  return make_steps()


def train(toy, folder, cut=None, bad=None):
  state, step = toy

  def fetch(number):
    if number == cut:
      raise KeyboardInterrupt
    return np.int32(-1 if number == bad else number), np.full((4, 1), number)

  return loop.train(
    jax.tree.map(jnp.copy, state),  # updates donate it
    step,
    grain.MapDataset.range(STEPS).map(fetch),
    jax.random.key(1),
    stage='toy',
    folder=folder,
    evaluate=lambda slots: {},
    schedule=loop.Schedule(STEPS, 3, log_every=1),
  )


def test_resumed_training_equals_an_uninterrupted_one(toy, tmp_path):
  whole = train(toy, tmp_path / 'whole')
  with pytest.raises(KeyboardInterrupt):
    train(toy, tmp_path / 'cut', 4)
  resumed = train(toy, tmp_path / 'cut')
  chex.assert_trees_all_equal(resumed, whole)
  assert resumed.in_flight['second']['params']['logits'].shape == (3,)
  loaded = checkpoints.load_player(
    tmp_path / 'cut' / 'checkpoints', 'first', {'logits': jnp.zeros(5)}
  )
  chex.assert_trees_all_equal(loaded, whole.in_flight['first']['params'])
  with pytest.raises(UserError, match='other parameters than the model'):
    checkpoints.load_player(tmp_path / 'cut' / 'checkpoints', 'third', {'logits': jnp.zeros(5)})


def test_players_start_and_move_on_their_own(toy, tmp_path):
  state, step = toy
  batch = np.int32(0), np.zeros((4, 1))
  moved, metrics = step(jax.tree.map(jnp.copy, state), batch, jax.random.key(0))
  chex.assert_trees_all_equal(state.in_flight['first']['params'], state.params['policy'])
  for name in ('first', 'second'):
    old, new = (it.in_flight[name]['params']['logits'] for it in (state, moved))
    assert not np.array_equal(old, new)
    assert np.isfinite(metrics[f'payoff_of_{name}'])
  assert metrics['gradient_norm'] > 0


def test_number_of_one_player_that_is_not_finite_stops_all(toy, tmp_path):
  with pytest.raises(UserError, match=r'toy, step 3 of 6: .*payoff, is not finite'):
    train(toy, tmp_path, bad=2)


def test_chosen_prompts_are_those_of_the_pool():
  choose = choose_from(POOL)
  batch = take(POOL, np.zeros(300, int))
  logits = np.log([0.5, 0.1, 0.2, 0.2, 1e-9])
  chosen, prompts = choose({'logits': logits}, batch, jax.random.key(0))
  rows = np.asarray(chosen.tokens)[:, 0, 0]
  np.testing.assert_array_equal(prompts.tokens, POOL.tokens[rows])
  shares = np.bincount(rows, minlength=5) / 300
  np.testing.assert_allclose(shares, np.exp(logits), atol=0.1)  # 3.5 standard errors
  scores = score_chosen({'logits': logits}, Comparison(prompts, chosen)).left
  np.testing.assert_allclose(scores[:, 0, 0], logits[rows], atol=1e-5)
