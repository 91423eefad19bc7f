"""A policy, its opponent and its prompter: expected gradients and saddle points of both games.

A batch lists every prompt, response and answer, weighted by its probability, as in `exact`. The
numbers are those of the tabular games, of `nlhf_jax.games.stackelberg` and `chosen_prompts`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.games import chosen_prompts, stackelberg
from nlhf_jax.games.game import kl
from nlhf_jax.structs import Comparison, Responses, Scores
from nlhf_jax.training.opponent_play import Prices, make_opponent_play, score_chosen
from nlhf_jax.training.players import Player, make_player_steps
from nlhf_jax.training.update import initial_state, make_update
from tests.games import test_chosen_prompts
from tests.laws import tiny

pytestmark = pytest.mark.usefixtures('float64')

CYCLE = np.array([[0, -0.2, 0.3], [0.2, 0, -0.4], [-0.3, 0.4, 0]])
MU = np.array([0.2, 0.5, 0.3])
LEADER = np.array([[0.3, -0.2, 0.5]])
FOLLOWER = np.array([[0.1, -0.3, 0.2], [0, 0.4, -0.1], [-0.2, 0.2, 0.3]])


class Listed(NamedTuple):
  """In place of prompts: each tuple's probability, what a player reads, and what is played."""

  chance: jax.Array
  row: jax.Array
  prompt: jax.Array
  first: jax.Array
  second: jax.Array


def log_pi(params, rows):
  """The distribution that a player has in each row; one row alone is shared by all."""
  return jax.nn.log_softmax(params)[rows if len(params) > 1 else 0 * rows]


def score(params, comparison):
  tokens = comparison.left.tokens
  chosen = jnp.take_along_axis(log_pi(params, comparison.prompts.row), tokens[:, 0], axis=1)
  return Scores(chosen[:, None])


def responses(params, rows, actions):
  log_probs = jnp.take_along_axis(log_pi(params, rows), actions[:, None], axis=1)
  return Responses(actions[:, None, None], np.ones((len(actions), 1, 1), bool), log_probs[:, None])


def weighted(algorithm):
  """The algorithm, whose loss is the expected one."""

  def loss(scores, comparison):
    chance = comparison.prompts.chance
    return len(chance) * chance * algorithm.loss(scores, comparison)[:, 0, 0]

  return algorithm._replace(loss=loss)


class Table(NamedTuple):
  """A game: payoffs [X, K, K], prices, whether the opponent reads responses, and the data."""

  payoff: np.ndarray
  taus: dict[str, float]
  answers: bool
  reward: float  # price of the opponent's KL in the reward of the policy
  log_data: np.ndarray | None = None  # of prompts, where they are chosen


def make_exact(table, rates, reference):
  """(begin, step) of the joint training in expectation, by gradient ascent at these rates."""
  count, actions = table.payoff.shape[:2]
  places = np.indices((count, actions, actions)).reshape(3, -1)

  def listed(slots):
    x, first, second = places
    read = first if table.answers else x
    chance = jnp.take_along_axis(log_pi(slots['policy'], x), first[:, None], axis=1)
    chance += jnp.take_along_axis(log_pi(slots['opponent'], read), second[:, None], axis=1)
    if 'prompter' in slots:
      chance += jax.nn.log_softmax(slots['prompter']['logits'])[x][:, None]
    return Listed(jnp.exp(chance[:, 0]), x, *places)

  def sample(slots, batch, key):
    asked = batch._replace(row=batch.first) if table.answers else batch
    first = responses(slots['policy'], batch.row, batch.first)
    return asked, first, responses(slots['opponent'], asked.row, batch.second)

  def feedback(comparison, key):
    sides = (side.tokens[:, :, 0] for side in (comparison.left, comparison.right))
    left, right = sides
    return table.payoff[comparison.prompts.prompt[:, None], left, right][..., None]

  def log_ratio(slots, prompts, side):
    tokens = score(slots['reference'], Comparison(prompts, side)).left
    return jnp.sum(side.log_probs - tokens, axis=-1)[..., None]

  def choose(prompter, batch, key):
    return Responses(batch.prompt[:, None, None], np.ones((len(batch.prompt), 1, 1), bool)), batch

  prices = Prices(table.taus['opponent'], table.reward)
  choosing = choose if table.log_data is not None else None
  play = make_opponent_play(sample, feedback, log_ratio, prices, choosing)

  def make(name, score, measure, **more):
    algorithm, optimizer = catalogue.self_play(table.taus[name]), optax.sgd(rates[name])
    return make_update(weighted(algorithm), score, optimizer, measure), optimizer

  payoff = lambda comparison, scores: {'payoff': jnp.mean(comparison.payoff)}
  update, optimizer = make('policy', score, lambda *_: {})
  starts = {'opponent': (score, {'reference': jnp.asarray(reference)})}
  if table.log_data is not None:
    data = {'reference': {'logits': jnp.asarray(table.log_data)}}
    starts['prompter'] = (score_chosen, data)

  def begin(slots):
    players = {}
    for name, (by, fixed) in starts.items():
      moved, rule = make(name, by, payoff)
      players[name] = Player(moved, rule, slots[name], fixed)
    steps = make_player_steps(
      update, players, lambda slots, _, key: play(slots, listed(slots), key)
    )
    start = jnp.asarray(slots['policy'])
    state = initial_state(catalogue.self_play(0.1), start, optimizer)
    state = state._replace(fixed={'reference': jnp.asarray(reference)})
    return steps.begin(state, None, None), lambda state: steps.step(state, None, jax.random.key(0))

  return begin


def make_run(table, slots, rates, reference):
  """Number of updates -> all slots after them."""
  first, step = make_exact(table, rates, reference)(jax.tree.map(jnp.asarray, slots))

  @tiny.jit
  def train(state, updates):
    return jax.lax.fori_loop(0, updates, lambda _, state: step(state)[0], state)

  def run(updates):
    state = train(first, updates)
    assert int(state.nonfinite) == 0
    assert int(state.step) == updates
    others = {name: own['params'] for name, own in state.in_flight.items()}
    return {'policy': state.params['policy'], **others}

  return run


def ascents(table, slots, reference):
  """What one update at learning rate one adds to every slot."""
  moved = make_run(table, slots, dict.fromkeys(slots, 1.0), reference)(1)
  return jax.tree.map(lambda new, old: np.array(new) - old, moved, slots)


def close(found, printed, tolerance=0.51e-8):
  np.testing.assert_allclose(found, printed, atol=tolerance, rtol=0)


# --- Commit and answer ---

PAIR = {'policy': LEADER, 'opponent': FOLLOWER}
REFERENCES = np.log(np.tile(MU, (3, 1)))
LEADER_GRADIENTS = {
  'regularised': (0.1, (-0.00234374, 0.00081259, 0.00153115)),
  'payoff': (0.0, (-0.00494524, 0.00189074, 0.00305450)),
}
FOLLOWER_GRADIENT = (
  (0.00346551, 0.03064512, -0.03411063),
  (-0.01792121, -0.00303195, 0.02095316),
  (0.03722115, -0.04536846, 0.00814731),
)


def commitment_table(reward=0.1, taus=(0.1, 0.1)):
  prices = dict(zip(('policy', 'opponent'), taus, strict=True))
  return Table(CYCLE[None], prices, answers=True, reward=reward)


def commitment_game(taus=(0.1, 0.1)):
  tau = [jnp.asarray(value) for value in taus]
  mu = jnp.log(jnp.asarray(MU))
  return stackelberg.StackelbergGame(jnp.asarray(CYCLE), mu, jnp.tile(mu, (3, 1)), *tau)


@pytest.mark.parametrize('reward', LEADER_GRADIENTS)
def test_leader_and_follower_have_their_gradients(reward):
  price, leader = LEADER_GRADIENTS[reward]
  found = ascents(commitment_table(price), PAIR, REFERENCES)
  close(found['policy'][0], leader)
  close(found['opponent'], FOLLOWER_GRADIENT)


def test_best_follower_leaves_no_noise_and_no_gradient():
  game = commitment_game()
  best = np.array(stackelberg.best_follower(game))
  found = ascents(commitment_table(), PAIR | {'opponent': best}, REFERENCES)
  close(found['policy'][0], (-0.00122673, -0.00177371, 0.00300044))
  close(found['opponent'], 0, 1e-12)
  # The reward of a response is the same whatever the answer was.
  ratio = best - REFERENCES
  reward = CYCLE + 0.1 * ratio
  close(reward, np.tile(stackelberg.follower_values(game), (3, 1)).T, 1e-12)


@pytest.mark.parametrize(('kappa', 'updates'), [(1.0, 262), (5.0, 136)])
def test_learning_rates_are_the_two_time_scales(kappa, updates):
  game, rates = commitment_game(), {'policy': 1.0, 'opponent': kappa}
  start = {'policy': np.log(MU)[None], 'opponent': REFERENCES}
  found = make_run(commitment_table(), start, rates, REFERENCES)(updates)

  @tiny.jit
  def tabular(logits):
    one = lambda _, logits: stackelberg.two_time_scale_step(game, logits, 1.0, kappa)
    return jax.lax.fori_loop(0, updates, one, logits)

  logits = tabular(stackelberg.Commitment(jnp.asarray(start['policy'][0]), jnp.asarray(REFERENCES)))
  close(found['policy'][0], logits.leader, 1e-10)
  close(found['opponent'], logits.follower, 1e-10)
  best = stackelberg.commitment(game).leader
  assert kl(best, jax.nn.log_softmax(found['policy'][0])) < 1e-4


# --- Chosen prompts ---


def prompt_table(prompter_tau=0.1):
  game = test_chosen_prompts.make(0.1, prompter_tau)
  taus = {'policy': 0.1, 'opponent': 0.1, 'prompter': prompter_tau}
  table = Table(np.array(game.games.payoff), taus, False, 0.0, np.log(test_chosen_prompts.RHO))
  return game, table


@pytest.mark.parametrize('reward', [0.0, 0.1])
def test_prompter_and_policy_have_their_gradients(reward):
  game, table = prompt_table()
  log_pi = jax.nn.log_softmax(jnp.asarray(test_chosen_prompts.LOGITS))
  payment = chosen_prompts.exploitabilities(game, log_pi)
  slots = {
    'policy': test_chosen_prompts.LOGITS,
    'opponent': np.array(chosen_prompts.exploiters(game, log_pi)),
    'prompter': {'logits': np.array(chosen_prompts.best_prompter(game, payment))},
  }
  # A price that does not depend on the response is no gradient.
  found = ascents(table._replace(reward=reward), slots, np.log(test_chosen_prompts.MU))
  learner = (
    (0.09927682, 0.00146443, -0.10074124),
    (0.00020396, 0.00112255, -0.00132651),
    (0.00048511, -0.00069003, 0.00020492),
    (0.00060922, -0.00023922, -0.00037000),
  )
  close(found['policy'], learner)
  close(found['opponent'], 0, 1e-12)
  close(found['prompter']['logits'], 0, 1e-12)


def test_prompter_is_paid_exploitability():
  game, table = prompt_table()
  mu = np.log(test_chosen_prompts.MU)
  slots = {
    'policy': mu,
    'opponent': np.array(chosen_prompts.exploiters(game, jnp.asarray(mu))),
    'prompter': {'logits': np.array([0.2, -0.1, 0.3, 0])},
  }
  found = ascents(table, slots, mu)
  close(found['prompter']['logits'], (0.02327396, 0.01076006, -0.02282763, -0.01120640))


@pytest.mark.parametrize('prompter_tau', [0.1, 1e6])
def test_shared_policy_reaches_the_saddle_point(prompter_tau):
  _, table = prompt_table(prompter_tau)
  mu = np.log(test_chosen_prompts.MU)
  slots = {
    'policy': np.zeros((1, 3)),
    'opponent': mu,
    'prompter': {'logits': np.log(test_chosen_prompts.RHO)},
  }
  # A high price makes steep gradients.
  rates = {'policy': 1.0, 'opponent': 5.0, 'prompter': min(1.0, 1 / prompter_tau)}
  found = make_run(table, slots, rates, mu)(4_000)
  printed = test_chosen_prompts.SHARED[(0.1, 0.1 if prompter_tau < 1 else 1e9)]
  close(jax.nn.softmax(found['policy'][0]), printed[0], 1e-6)
  close(jax.nn.softmax(found['prompter']['logits']), printed[1], 1e-6)


def test_opponent_that_reads_no_response_gives_the_nash_equilibrium():
  taus = {'policy': 0.1, 'opponent': 0.1}
  table = Table(CYCLE[None], taus, answers=False, reward=0.0)
  mu = np.log(MU)[None]
  rates = {'policy': 1.0, 'opponent': 2.0}
  found = make_run(table, {'policy': mu, 'opponent': mu}, rates, mu)(4_000)
  for slot in found.values():
    close(jax.nn.softmax(slot[0]), (0.36413209, 0.28436088, 0.35150703), 1e-6)
