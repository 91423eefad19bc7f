"""A prompter paid in exploitability: four prompts, three responses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.games import chosen_prompts, exact
from nlhf_jax.games.chosen_prompts import PromptGame
from nlhf_jax.games.game import Game

pytestmark = pytest.mark.usefixtures('float64')

REWARDS = np.array([[0.3, 0, -0.1], [0, 0, 0], [0, 0, 0], [0.4, 0, 0]])
CYCLE = np.array([[0, -0.2, 0.3], [0.2, 0, -0.4], [-0.3, 0.4, 0]])
MU = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.4, 0.3, 0.3], [0.02, 0.49, 0.49]])
RHO = np.array([0.4, 0.3, 0.2, 0.1])
LOGITS = np.array([[0.3, -0.2, 0.5], [0.1, -0.3, 0.2], [0, 0.4, -0.1], [-0.2, 0.2, 0.3]])


def make(tau, prompter_tau=0.1):
  payoff = REWARDS[:, :, None] - REWARDS[:, None]
  payoff[1] = CYCLE
  games = Game(jnp.asarray(payoff), jnp.log(jnp.asarray(MU)), jnp.full(4, tau))
  return PromptGame(games, jnp.log(jnp.asarray(RHO)), jnp.asarray(prompter_tau))


def close(found, printed, tolerance=0.51e-8):
  np.testing.assert_allclose(found, printed, atol=tolerance, rtol=0)


def test_exploitabilities_of_the_reference():
  printed = {
    0.1: (0.08167371, 0.04837783, 0, 0.06484965),
    0.02: (0.11978349, 0.11592847, 0, 0.31375954),
    0.0: (0.13, 0.14, 0, 0.392),
  }
  for tau, gaps in printed.items():
    close(chosen_prompts.gains_over_reference(make(tau)), gaps)


# The prompter paid minus the win rate against mu, and in exploitability; the value of the latter.
PROMPTERS = {
  (0.1, 0.1): (
    (0.28787959, 0.30121343, 0.32575067, 0.08515632),
    (0.50765985, 0.27291782, 0.11216010, 0.10726223),
    0.05783901,
  ),
  (0.1, 0.02): (
    (0.02838880, 0.11251728, 0.84263441, 0.01645951),
    (0.79482243, 0.11280294, 0.00669450, 0.08568013),
    0.06794063,
  ),
  (0.02, 0.1): (
    (0.28802840, 0.22451155, 0.47710987, 0.01035018),
    (0.27686779, 0.19979820, 0.04178586, 0.48154816),
    0.15657594,
  ),
  (0.02, 0.02): (
    (0.00496396, 0.00451440, 0.99052156, 0.00000008),
    (0.00024533, 0.00015174, 0.00000031, 0.99960262),
    0.26771579,
  ),
}


@pytest.mark.parametrize('taus', PROMPTERS)
def test_raw_win_rate_flees_where_nothing_is_learned(taus):
  game, (raw, regret, value) = make(*taus), PROMPTERS[taus]
  gains = chosen_prompts.gains_over_reference(game)
  close(np.exp(chosen_prompts.best_prompter(game, -gains)), raw)
  close(np.exp(chosen_prompts.best_prompter(game, gains)), regret)
  close(chosen_prompts.prompter_value(game, gains), value)
  assert regret[2] < RHO[2] < raw[2]  # the prompt on which all responses tie
  close(regret[2], RHO[2] * np.exp(-value / taus[1]), 2e-8)


def test_prompt_without_a_verdict_keeps_its_share():
  game = make(0.1)
  payment = chosen_prompts.gains_over_reference(game).at[1].set(jnp.nan)
  found = np.exp(chosen_prompts.best_prompter(game, payment))
  known = np.array([0, 2, 3])
  tilted = RHO[known] * np.exp(payment[known] / 0.1)
  close(found[1], RHO[1])
  close(found[known], (1 - RHO[1]) * tilted / tilted.sum())
  assert np.isfinite(chosen_prompts.prompter_value(game, payment))


# At the equilibria, paid without the policy's own KL.
LEFT_OUT = {
  (0.1, 0.1): (0.35256305, 0.35173621, 0.26264843, 0.03305231),
  (0.1, 0.02): (0.12825976, 0.40063307, 0.47086940, 0.00023777),
  (0.02, 0.1): (0.40218391, 0.32416741, 0.22272257, 0.05092610),
  (0.02, 0.02): (0.34283709, 0.36860907, 0.28569687, 0.00285697),
}


@pytest.fixture(scope='module')
def nash():
  return jax.jit(jax.vmap(lambda game: exact.equilibrium(game, tolerance=1e-18).log_pi))


@pytest.mark.parametrize('taus', LEFT_OUT)
def test_prompter_returns_to_the_data_once_all_is_solved(nash, taus):
  game = make(*taus)
  log_pi = nash(game.games)
  gaps = chosen_prompts.exploitabilities(game, log_pi)
  close(np.exp(chosen_prompts.best_prompter(game, gaps)), RHO)
  close(chosen_prompts.prompter_value(game, gaps), 0)
  spent = jnp.sum(jnp.exp(log_pi) * (log_pi - game.games.log_reference), axis=1)
  found = np.exp(chosen_prompts.best_prompter(game, gaps - game.games.tau * spent))
  close(found, LEFT_OUT[taus])


# The shared policy, the prompter, e_x and the value.
SHARED = {
  (0.1, 0.1): (
    (0.63913294, 0.20928978, 0.15157728),
    (0.48142397, 0.33702565, 0.12462472, 0.05692565),
    (0.07789852, 0.07100780, 0.01206911, 0.00302773),
    0.05937014,
  ),
  (0.1, 0.02): (
    (0.64778988, 0.20417281, 0.14803732),
    (0.56549176, 0.41792256, 0.01264962, 0.00393605),
    (0.07505546, 0.07476111, 0.01291703, 0.00343100),
    0.06813084,
  ),
  (0.02, 0.1): (
    (0.79568975, 0.01072949, 0.19358076),
    (0.43287080, 0.36832017, 0.10939187, 0.08941716),
    (0.07676933, 0.08938886, 0.00853377, 0.05768609),
    0.06887185,
  ),
  (0.02, 0.02): (
    (0.78362458, 0.01414570, 0.20222972),
    (0.50922421, 0.43702384, 0.00661505, 0.04713690),
    (0.08108787, 0.08378350, 0.00807999, 0.06121711),
    0.07625939,
  ),
  # A prompter that may not leave the data trains on rho.
  (0.1, 1e9): (
    (0.60872172, 0.22240828, 0.16887000),
    RHO,
    (0.08901481, 0.05743025, 0.00919989, 0.00172057),
    0.05484703,
  ),
  (0.02, 1e9): (
    (0.83289804, 0.00727810, 0.15982386),
    RHO,
    (0.06231747, 0.11039963, 0.00966354, 0.04652698),
    0.06463228,
  ),
}


@pytest.fixture(scope='module')
def solve_shared():
  return jax.jit(chosen_prompts.solve_shared_policy)


@pytest.mark.parametrize('taus', SHARED)
def test_shared_policy_has_the_printed_digits(solve_shared, taus):
  game, (policy, prompter, gaps, value) = make(*taus), SHARED[taus]
  found = solve_shared(game)
  # At a price of 1e9 log-probabilities lose digits to rounding.
  tolerance = 0.51e-8 if taus[1] < 1 else 1e-4
  close(np.exp(found.log_pi), policy, tolerance)
  close(np.exp(found.log_prompter), prompter, tolerance)
  shared = jnp.broadcast_to(found.log_pi, (4, 3))
  close(chosen_prompts.exploitabilities(game, shared), gaps, tolerance)
  if taus[1] < 1:
    close(found.value, value)


def test_prompter_gradient_has_the_printed_digits():
  game = make(0.1)
  payment, logits = chosen_prompts.gains_over_reference(game), jnp.array([0.2, -0.1, 0.3, 0])
  close(jax.nn.softmax(logits), (0.27287215, 0.20214866, 0.30157037, 0.22340882))

  def objective(logits):
    return chosen_prompts.prompter_objective(game, jax.nn.log_softmax(logits), payment)

  close(jax.grad(objective)(logits), (0.02327396, 0.01076006, -0.02282763, -0.01120640))
  # Self-play pays every prompt 1/2, so that only the price is left.
  tie = lambda x: chosen_prompts.prompter_objective(game, jax.nn.log_softmax(x), jnp.full(4, 0.5))
  close(jax.grad(tie)(game.log_data), 0)


def test_policy_gradient_has_the_printed_digits():
  game = make(0.1)

  def loss(logits):
    gaps = chosen_prompts.exploitabilities(game, jax.nn.log_softmax(logits))
    return chosen_prompts.prompter_value(game, gaps), gaps

  (value, gaps), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(LOGITS))
  close(gaps, (0.22607574, 0.00256660, 0.00455263, 0.01707003))
  close(value, 0.14978064)
  q = np.exp(chosen_prompts.best_prompter(game, gaps))
  close(q, (0.85783825, 0.06883016, 0.04680721, 0.02652437))
  printed = (
    (0.09927682, 0.00146443, -0.10074124),
    (0.00020396, 0.00112255, -0.00132651),
    (0.00048511, -0.00069003, 0.00020492),
    (0.00060922, -0.00023922, -0.00037000),
  )
  close(-gradient, printed)


def test_prompter_and_exploiter_are_one_policy_of_two_turns():
  game, log_pi = make(0.1), jax.nn.log_softmax(jnp.asarray(LOGITS))
  joint = np.exp(chosen_prompts.prompt_and_response(game, log_pi))
  gaps = chosen_prompts.exploitabilities(game, log_pi)
  prompter = np.exp(chosen_prompts.best_prompter(game, gaps))
  np.testing.assert_allclose(joint.sum(1), prompter, atol=1e-14)
  exploiters = np.exp(chosen_prompts.exploiters(game, log_pi))
  np.testing.assert_allclose(joint / joint.sum(1, keepdims=True), exploiters, atol=1e-14)


def test_exploitability_is_convex_in_the_policy():
  game, random = make(0.1), np.random.default_rng(0)
  one, other = random.dirichlet(np.ones(3), (2, 4))
  share = np.linspace(0, 1, 11)[:, None, None]
  along = jnp.log(jnp.asarray((1 - share) * one + share * other))
  gaps = np.asarray(jax.vmap(lambda p: chosen_prompts.exploitabilities(game, p))(along))
  assert (gaps[2:] - 2 * gaps[1:-1] + gaps[:-2] > 0).all()
