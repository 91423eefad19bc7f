"""The task of asking for a missing fact: its cycle, its equilibrium, and what is judged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from nlhf_jax.games import dialogues, matrices
from nlhf_jax.structs import Comparison, Prompts, Responses
from nlhf_jax.tasks import clarify
from tests.laws import tiny

# A post that hints at nothing, and one that nearly names its fact.
TASK = clarify.make_clarify_task(np.array([[0.25] * 4, [0.85, 0.05, 0.05, 0.05]]))
UNIFORM = clarify.clarify_policy(TASK, jnp.full(8, -jnp.log(8.0)), jnp.full((4, 8), -jnp.log(8.0)))


def index(*tokens):
  return int(clarify.conversation_indices(TASK, jnp.array(tokens)))


def test_guessing_asking_and_answering_without_make_a_cycle():
  asked = [index(TASK.ask, fact, fact) for fact in range(4)]
  without, guess = index(TASK.without, 7, 7), index(0, 7, 7)
  unclear, clear = TASK.payoff
  np.testing.assert_allclose(unclear[without, guess], 1 / 12)
  np.testing.assert_allclose(unclear[guess, asked], 5 / 24)
  np.testing.assert_allclose(unclear[asked, without], 1 / 6)
  assert clear[guess, without] > 0  # where the post names the fact there is none
  assert (clear[guess, asked] > 0).all()
  for payoff in TASK.payoff:
    np.testing.assert_array_equal(payoff, -payoff.T)
    np.testing.assert_allclose(payoff, payoff.clip(-0.5, 0.5))


def test_outcomes_are_those_of_the_raters():
  chances = clarify.outcome_chances(TASK, 1)
  np.testing.assert_allclose(chances.sum(axis=1), 1)
  np.testing.assert_allclose(chances[index(0, 0, 0)], [0, 0.85, 0.15, 0, 0, 0])
  np.testing.assert_allclose(chances[index(TASK.ask, 2, 2)], [0, 0, 0, 0, 1, 0])
  np.testing.assert_allclose(chances[index(TASK.ask, 2, 1)], [0, 0, 0, 0, 0, 1])
  np.testing.assert_allclose(chances[index(TASK.ask, 1, TASK.ask)], [0, 0, 0, 1, 0, 0])
  scores = np.array(list(clarify.SCORES.values()))
  assert matrices.population(scores.astype(float))[0, 2] == pytest.approx(
    1 / 6
  )  # none against a wrong one


@tiny.jit
def solve(game):
  step = lambda _, log_pi: dialogues.mtpo_step(game, log_pi, 1.0)
  return lax.fori_loop(0, 1500, step, game.log_reference)


@pytest.mark.slow
@pytest.mark.usefixtures('float64')
def test_equilibrium_mixes_asking_and_not_asking():
  asked = []
  for post in range(2):
    game = clarify.clarify_game(TASK, post, UNIFORM, 0.03)
    log_pi = solve(game)
    assert dialogues.dialogue_exploitability(game, log_pi) < 1e-12
    first, second = (np.exp(table) for table in log_pi)
    asked.append(first[0, TASK.ask])
    told = second.reshape(8, 4, 8)[TASK.ask]
    assert (np.argmax(told, axis=1) == np.arange(4)).all()  # whoever asks states what was told
    # Without a question there is no second turn, and no price.
    np.testing.assert_allclose(second.reshape(8, 4, 8)[: TASK.ask], 1 / 8, rtol=1e-6)
    if post == 0:  # computed apart, in NumPy
      digits = (0.067, 0.067, 0.067, 0.067, 0.207, 0.108, 0.207, 0.207)
      np.testing.assert_allclose(first[0], digits, atol=5.1e-4)
  assert asked[1] < 1e-4 < 0.1 < asked[0]


def test_judge_reads_conversations():
  tokens = jnp.array([[[TASK.ask, 2, 2]], [[TASK.without, 7, 7]]])
  left = Responses(tokens, tokens >= 0)
  other = jnp.array([[[0, 7, 7]], [[0, 7, 7]]])
  prompts = Prompts(TASK.posts.tokens, TASK.posts.mask)
  comparison = Comparison(prompts, left, Responses(other, other >= 0))
  found = jax.tree.map(float, list(clarify.clarify_judge(TASK, comparison)[:, 0, 0]))
  expected = (
    TASK.payoff[0][index(TASK.ask, 2, 2), index(0, 0, 0)],
    TASK.payoff[1][index(TASK.without, 0, 0), index(0, 0, 0)],
  )
  np.testing.assert_allclose(found, expected, rtol=1e-6)
