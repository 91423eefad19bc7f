"""A language-model game small enough to list: every response to every prompt, and every payoff.

Responses are all sequences of a few symbols up to a length. Their first symbol is their style;
raters want quality, and rank the styles in orders of their own, so that each of them is transitive
and the population is not. Left out: the reference, which is whatever policy training starts from.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from nlhf_jax.games import matrices
from nlhf_jax.ranges import AtLeastOne, NonNegative, Range, Seed
from nlhf_jax.structs import Comparison, Prompts, Responses

LETTERS = 'abcdefghijklmnopqrstuvwxyz'
SYMBOLS = Range(f'between 2 and {len(LETTERS)}', lambda symbols: 2 <= symbols <= len(LETTERS))
EMPTY = '∅'  # how a response without a symbol is shown


class TokenGame(NamedTuple):
  """X prompts, the same R responses to each, and P(y > y'|x) - 1/2.

  Tokens are the symbols, 0 to V - 2, and `stop`, V - 1, which closes prompts as well.
  """

  prompts: Prompts  # [X, P]
  responses: Responses  # [X, R, T]
  payoff: Float[np.ndarray, 'X R R']
  stop: int


def make_token_game(
  *,
  symbols: Annotated[int, SYMBOLS],
  response_length: AtLeastOne,
  prompts: AtLeastOne,
  raters: AtLeastOne,
  styles: NonNegative,
  quality: NonNegative,
  taste: NonNegative,
  seed: Seed,
) -> TokenGame:
  """The game that a seed determines.

  Args:
    symbols: besides the stop.
    response_length: in tokens; the stop is one of them, unless the response is cut before.
    prompts: how many; they are the shortest sequences of symbols, from the empty one on.
    raters: how many vote.
    styles: what a place in a rater's order of styles is worth to that rater.
    quality: standard deviation of the worth of a response on which all raters agree.
    taste: standard deviation of what a rater adds of their own.
    seed: of the draws.
  """
  listed = all_responses(symbols, response_length)
  first = listed.tokens[0, :, 0]
  payoff = []
  for prompt in range(prompts):
    random = np.random.default_rng([seed, prompt])
    votes = styles * style_scores(first, symbols, raters, int(random.choice([-1, 1])))
    votes = votes + quality * random.normal(size=len(first))
    payoff.append(matrices.population(votes + taste * random.normal(size=votes.shape)))
  every = Responses(*(np.tile(leaf, (prompts, 1, 1)) for leaf in listed[:2]))
  return TokenGame(shortest_prompts(symbols, prompts), every, np.stack(payoff), symbols)


def all_responses(symbols: int, length: int) -> Responses:
  """Every response of at most `length` tokens, the shortest first, [1, R, T]."""
  rows = [
    (*text, *[symbols] * (length - size))
    for size in range(length + 1)
    for text in itertools.product(range(symbols), repeat=size)
  ]
  tokens = np.array(rows, np.int32)
  # A token is part of the response unless the one before has stopped it.
  before = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  return Responses(tokens[None], (before != symbols)[None])


def shortest_prompts(symbols: int, count: int) -> Prompts:
  """The `count` shortest sequences of symbols, each closed by the stop, padded on the left."""
  sequences = itertools.chain.from_iterable(
    itertools.product(range(symbols), repeat=size) for size in itertools.count()
  )
  rows = list(itertools.islice(sequences, count))
  longest = max(map(len, rows))
  tokens = np.array([(*[symbols] * (longest - len(row)), *row, symbols) for row in rows], np.int32)
  mask = np.arange(longest + 1) >= longest - np.array([[len(row)] for row in rows])
  return Prompts(tokens, mask)


def style_scores(
  first: Int[np.ndarray, 'R'], symbols: int, raters: int, turn: int
) -> Int[np.ndarray, 'Z R']:
  """Where each rater puts each response by its style; the higher, the better.

  Rater z's order is the cycle of styles cut open at z, forwards or backwards by the sign of `turn`.
  A response without a symbol comes last.
  """
  begins = np.arange(raters)[:, None]
  return np.where(first == symbols, -1, (turn * first + begins) % symbols)


def prompt_texts(game: TokenGame) -> list[str]:
  """The prompts in letters."""
  return _texts(game.prompts.tokens, game.stop)


def response_texts(game: TokenGame) -> list[str]:
  """The responses in letters."""
  return _texts(game.responses.tokens[0], game.stop)


def _texts(rows, stop):
  # Padding is the stop.
  return [
    ''.join(LETTERS[token] for token in row if token < stop) or EMPTY for row in rows.tolist()
  ]


def style_shares(game: TokenGame, pi: Float[np.ndarray, 'X R']) -> dict[str, list[float]]:
  """Style -> how often it is played, one number a prompt."""
  first = game.responses.tokens[0, :, 0]
  names = [*LETTERS[: game.stop], EMPTY]
  return {name: pi[:, first == token].sum(axis=1).tolist() for token, name in enumerate(names)}


def find_row(rows: Int[Array, '*batch T'], table: Int[Array, 'R T']) -> Int[Array, '*batch']:
  """Where each row of tokens stands in the table."""
  return jnp.argmax(jnp.all(rows[..., None, :] == table, axis=-1), axis=-1)


class GameRows(NamedTuple):
  """Where a comparison's prompts and responses stand in the lists of a game."""

  prompts: Int[Array, 'B']
  left: Int[Array, 'B K']
  right: Int[Array, 'B J']


def make_find_rows(game: TokenGame) -> Callable[[Comparison], GameRows]:
  """A jitted function that finds them."""
  responses = jnp.asarray(game.responses.tokens[0])

  def marked(prompts):
    return jnp.where(prompts.mask, prompts.tokens, -1)  # not even padding may be mistaken

  prompts = marked(game.prompts)

  @jax.jit
  def places(comparison):
    left, right = (find_row(side.tokens, responses) for side in (comparison.left, comparison.right))
    return GameRows(find_row(marked(comparison.prompts), prompts), left, right)

  return places


def make_look_up(
  game: TokenGame,
) -> Callable[[Float[Array, 'X R R'], Comparison], Float[Array, 'B K J']]:
  """(table of payoffs, comparison) -> what the table says of it; jitted."""
  find = make_find_rows(game)

  @jax.jit
  def look_up(table, comparison):
    asked, left, right = find(comparison)
    return table[asked[:, None, None], left[:, :, None], right[:, None, :]]

  return look_up


def make_judge(game: TokenGame) -> Callable[[Comparison], Float[Array, 'B K J']]:
  """The true preference, looked up."""
  return partial(make_look_up(game), jnp.asarray(game.payoff, jnp.float32))
