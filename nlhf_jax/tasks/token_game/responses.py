"""A language-model game small enough to list: every response to every prompt, and every payoff.

Responses are all sequences of a few symbols up to a length. Their first symbol is their style.
Raters value quality, and each has an order of the styles, so that each rater is transitive and the
population is not. The reference is no part of the game: it is the policy that training starts from.
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
EMPTY = '∅'  # shown for a response without symbols


class TokenGame(NamedTuple):
  """X prompts, the same R responses to each, and P(y > y'|x) - 1/2.

  Tokens are the symbols, 0 to V - 2, and `stop`, V - 1, which also ends prompts.
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
  """The game of a seed.

  A rater's score of a response is `styles` times the rank of its style, plus a quality that all
  raters share, plus a taste of the rater's own.

  Args:
    symbols: number of symbols besides the stop.
    response_length: in tokens; the stop is one of them, unless the response is cut before.
    prompts: number of prompts; they are the shortest sequences of symbols, from the empty one on.
    raters: number of raters.
    styles: score of one rank in a rater's order of styles.
    quality: standard deviation of the shared quality of a response.
    taste: standard deviation of a rater's own taste.
    seed: seed of the random numbers.
  """
  listed = all_responses(symbols, response_length)
  first = listed.tokens[0, :, 0]
  payoff = []
  for prompt in range(prompts):
    random = np.random.default_rng([seed, prompt])
    scores = styles * style_ranks(first, symbols, raters, int(random.choice([-1, 1])))
    scores = scores + quality * random.normal(size=len(first))
    payoff.append(matrices.population(scores + taste * random.normal(size=scores.shape)))
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
  # A token is part of the response unless the token before it is the stop.
  before = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  return Responses(tokens[None], (before != symbols)[None])


def shortest_prompts(symbols: int, count: int) -> Prompts:
  """The `count` shortest sequences of symbols, each ended by the stop, padded on the left."""
  sequences = itertools.chain.from_iterable(
    itertools.product(range(symbols), repeat=size) for size in itertools.count()
  )
  rows = list(itertools.islice(sequences, count))
  longest = max(map(len, rows))
  tokens = np.array([(*[symbols] * (longest - len(row)), *row, symbols) for row in rows], np.int32)
  mask = np.arange(longest + 1) >= longest - np.array([[len(row)] for row in rows])
  return Prompts(tokens, mask)


def style_ranks(
  first: Int[np.ndarray, 'R'], symbols: int, raters: int, turn: int
) -> Int[np.ndarray, 'Z R']:
  """Each rater's rank of each response's style; higher is better.

  The order of rater z is the cycle of styles, cut open at z, forwards if `turn` is 1 and backwards
  if it is -1. A response without symbols comes last.
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
  """Style -> its probability under the policy, for each prompt."""
  first = game.responses.tokens[0, :, 0]
  names = [*LETTERS[: game.stop], EMPTY]
  return {name: pi[:, first == token].sum(axis=1).tolist() for token, name in enumerate(names)}


def find_row(rows: Int[Array, '*batch T'], table: Int[Array, 'R T']) -> Int[Array, '*batch']:
  """The index of each row of tokens in the table."""
  return jnp.argmax(jnp.all(rows[..., None, :] == table, axis=-1), axis=-1)


class GameRows(NamedTuple):
  """Indices of a comparison's prompts and responses in the lists of a game."""

  prompts: Int[Array, 'B']
  left: Int[Array, 'B K']
  right: Int[Array, 'B J']


def make_find_rows(game: TokenGame) -> Callable[[Comparison], GameRows]:
  """A jitted function that finds the indices."""
  responses = jnp.asarray(game.responses.tokens[0])

  def marked(prompts):
    return jnp.where(prompts.mask, prompts.tokens, -1)  # padding matches only padding

  prompts = marked(game.prompts)

  @jax.jit
  def find_rows(comparison):
    left, right = (find_row(side.tokens, responses) for side in (comparison.left, comparison.right))
    return GameRows(find_row(marked(comparison.prompts), prompts), left, right)

  return find_rows


def make_look_up(
  game: TokenGame,
) -> Callable[[Float[Array, 'X R R'], Comparison], Float[Array, 'B K J']]:
  """A jitted function: (table of payoffs, comparison) -> the payoff of each of its pairs."""
  find = make_find_rows(game)

  @jax.jit
  def look_up(table, comparison):
    prompts, left, right = find(comparison)
    return table[prompts[:, None, None], left[:, :, None], right[:, None, :]]

  return look_up


def make_judge(game: TokenGame) -> Callable[[Comparison], Float[Array, 'B K J']]:
  """The judge that looks up the true preference."""
  return partial(make_look_up(game), jnp.asarray(game.payoff, jnp.float32))
