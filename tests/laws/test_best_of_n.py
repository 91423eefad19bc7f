"""Best of n of a language model on the token game: the exact policies of games, and the bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nlhf_jax.evaluation.best_of_responses import select_responses
from nlhf_jax.games import best_of_n
from nlhf_jax.models import scoring
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.structs import Prompts, Responses
from nlhf_jax.tasks.token_game import responses as token_game
from tests.laws import tiny

pytestmark = pytest.mark.slow

N, ROWS = 4, 4_000  # samples a response is selected from; prompts, half of each of the game's


@pytest.fixture(scope='module')
def played():
  """The game, the reference's exact policy [X, R], and texts of its 2 N samples to each row."""
  game = token_game.make_token_game(
    symbols=2, response_length=2, prompts=2, raters=3, styles=1.0, quality=0.5, taste=0.2, seed=3
  )
  decoder = tiny.decoder(game.stop + 1)
  params = tiny.parameters(decoder, 0)
  score = tiny.jit(lambda *arguments: scoring.log_probs(decoder, *arguments).sum(axis=-1))
  reference = np.exp(score(params, game.prompts, Responses(*game.responses[:2])))
  rows = np.arange(ROWS) % len(game.payoff)
  prompts = Prompts(*(leaf[rows] for leaf in game.prompts))
  rollout = make_rollout(
    decoder, [{'policy': 1.0}], length=game.responses.tokens.shape[-1], stop=game.stop, count=2 * N
  )
  (sampled,) = rollout({'policy': params}, prompts, jax.random.key(0))
  found = token_game.find_row(sampled.tokens, jnp.asarray(game.responses.tokens[0]))
  return game, reference / reference.sum(axis=1, keepdims=True), np.asarray(found)


@pytest.mark.parametrize('rule', best_of_n.RULES)
def test_selected_samples_of_a_model_are_the_exact_policy(played, rule):
  game, reference, found = played
  prompts = np.arange(ROWS) % len(game.payoff)

  def compare(rows, left, right):
    return np.array(
      [
        game.payoff[int(row), int(one), int(other)] + 0.5
        for row, one, other in zip(rows, left, right, strict=True)
      ]
    )

  selection = select_responses(
    rule, compare, [str(row) for row in prompts], lambda number: found[:, number].astype(str), N, 0
  )
  chosen = np.array(selection.responses, int)
  for prompt, payoff in enumerate(game.payoff):
    mu = reference[prompt]
    # By score, further samples estimate P(y > mu), so that the policy is that of a noisy score.
    exact = best_of_n.best_of_n(rule, payoff, mu, N)
    shares = np.bincount(chosen[prompts == prompt], minlength=len(mu)) / (prompts == prompt).sum()
    error = np.sqrt(exact * (1 - exact) / (prompts == prompt).sum())
    if rule != 'score':
      assert (abs(shares - exact) < 4 * error + 1e-3).all()
    kl = special.rel_entr(exact, mu).sum()
    wins = exact @ payoff @ mu + 0.5
    assert 0.01 < kl < best_of_n.kl_bound(N)
    assert 0.5 < wins < best_of_n.win_rate_bound(N)
    # What is selected wins over the reference as often as the exact policy does.
    tolerance = 0.02 if rule == 'score' else 4 * payoff.std() / np.sqrt(ROWS / 2) + 1e-3
    assert shares @ payoff @ mu + 0.5 == pytest.approx(wins, abs=tolerance)
  if selection.kl is not None:
    assert 0 < selection.kl < best_of_n.kl_bound(N)


def test_frequent_samples_of_the_reference_are_not_selected_for_their_number(played):
  """The most frequent response is selected as often as it is sampled, at most, if it is worst."""
  game, reference, _ = played
  for payoff, mu in zip(game.payoff, reference, strict=True):
    worst = int(np.argmin(payoff @ mu))
    for rule in best_of_n.RULES:
      assert best_of_n.best_of_n(rule, payoff, mu, N)[worst] <= mu[worst] + 1e-12
