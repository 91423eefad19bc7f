"""A listed game of conversations: to answer a post that lacks a fact, or to ask for it first.

The policy has two turns of one token. It answers without the fact, states one of F facts, or asks;
the reply to a question is the fact, and then it answers. A post hints at its fact more or less.
Raters who like brevity want no question and no fact; raters who like facts want the right one, and
mind wrong ones; bold raters want any fact, at once. Guessing beats asking, asking beats an answer
without the fact, and that beats guessing where the post hints at little: no way to answer beats
both others.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nlhf_jax.games import matrices
from nlhf_jax.games.dialogues import DialogueGame, DialoguePolicy
from nlhf_jax.ranges import NonNegative
from nlhf_jax.structs import Comparison, Prompts

# Outcomes of a conversation, and the scores of the three kinds of raters for each.
OUTCOMES = ('without', 'right', 'wrong', 'asked, without', 'asked, right', 'asked, wrong')
SCORES = {
  'brevity': (3, 2, 2, 1, 0, 0),
  'facts': (1, 2, 0, 1, 2, 0),
  'bold': (1, 3, 3, 0, 2, 2),
}


class ClarifyTask(NamedTuple):
  """X posts, the chance of each of F facts, and P(z > z'|x) - 1/2 of conversations.

  Tokens are the F facts, `without`, `ask`, and the X posts; a turn may be any of the V = F + 2 + X
  tokens, and the posts count as answers without the fact. Conversation (y, u, y') has the index
  (F y + u) V + y' of `games.dialogues`; without a question the reply is fact 0 and says nothing.
  """

  facts: Float[np.ndarray, 'X F']
  payoff: Float[np.ndarray, 'X Z Z']

  @property
  def without(self) -> int:
    """The token of an answer without the fact."""
    return self.facts.shape[1]

  @property
  def ask(self) -> int:
    """The token of a question."""
    return self.facts.shape[1] + 1

  @property
  def vocabulary(self) -> int:
    """V."""
    return self.facts.shape[1] + 2 + len(self.facts)

  @property
  def posts(self) -> Prompts:
    """One token each, [X, 1]."""
    tokens = np.arange(self.ask + 1, self.vocabulary, dtype=np.int32)[:, None]
    return Prompts(tokens, np.ones(tokens.shape, bool))


def make_clarify_task(facts: Float[np.ndarray, 'X F']) -> ClarifyTask:
  """The task of posts with these chances of each fact; the kinds of raters have equal shares."""
  by_outcome = matrices.population(np.array(list(SCORES.values()), float))
  task = ClarifyTask(facts, np.zeros((len(facts), 0, 0)))
  chances = [outcome_chances(task, post) for post in range(len(facts))]
  payoff = np.stack([chance @ by_outcome @ chance.T for chance in chances])
  return task._replace(payoff=(payoff - payoff.swapaxes(1, 2)) / 2)


def outcome_chances(task: ClarifyTask, post: int) -> Float[np.ndarray, 'Z O']:
  """The chance of every outcome of each conversation; one who guesses is right by chance."""
  facts, size = task.facts[post], task.vocabulary
  first, told, second = (x.ravel() for x in np.indices((size, len(facts), size)))
  asked, count = first == task.ask, len(facts)
  answer = np.where(asked, second, first)
  states = answer < count
  guessed = facts[np.minimum(answer, count - 1)]
  right = np.where(asked, answer == told, guessed) * states
  at_once = np.stack([~states, right, states - right], axis=-1)
  return np.concatenate([at_once * ~asked[:, None], at_once * asked[:, None]], axis=-1)


def clarify_game(
  task: ClarifyTask, post: int, reference: DialoguePolicy, tau: NonNegative
) -> DialogueGame:
  """The game of one post, whose equilibrium is known, for a reference [1, V] and [V F, V]."""
  replies = np.zeros((1, task.vocabulary, task.facts.shape[1]))
  replies[..., 0] = 1
  replies[0, task.ask] = task.facts[post]
  silent = jnp.ones((*reference[1].shape, 1))
  tables = jnp.asarray(replies), silent
  return DialogueGame(jnp.asarray(task.payoff[post]), reference, tables, jnp.asarray(tau, float))


def clarify_policy(
  task: ClarifyTask, first: Float[Array, 'V'], second: Float[Array, 'F V']
) -> DialoguePolicy:
  """Log-probabilities of a post's first turn, and of the second after each fact that was told.

  Where nothing was asked there is no second turn: its table is uniform, for every policy.
  """
  size, count = task.vocabulary, len(second)
  after = jnp.full((size, count, size), -jnp.log(size)).at[task.ask].set(second)
  return first[None], after.reshape(size * count, size)


def conversation_indices(task: ClarifyTask, tokens: Int[Array, '*rows 3']) -> Int[Array, '*rows']:
  """The index of each conversation in the task's payoff."""
  asked = tokens[..., 0] == task.ask
  told, second = (jnp.where(asked, tokens[..., place], 0) for place in (1, 2))
  return (tokens[..., 0] * task.facts.shape[1] + told) * task.vocabulary + second


def clarify_judge(task: ClarifyTask, comparison: Comparison) -> Float[Array, 'B K J']:
  """The raters' preference between two conversations."""
  post = comparison.prompts.tokens[:, -1] - task.ask - 1
  left, right = (
    conversation_indices(task, side.tokens) for side in (comparison.left, comparison.right)
  )
  table = jnp.asarray(task.payoff, jnp.float32)
  return table[post[:, None, None], left[:, :, None], right[:, None, :]]
