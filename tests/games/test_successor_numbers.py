"""Methods after Nash-MD on one cyclic game, against independently simulated numbers.

Duality gaps are of the unregularised game, max (P p) - min (p P), of the last policy and of the
average of them all. Numbers in texts are compared as printed, to half a unit in the last place.
"""

import numpy as np
import pytest

from nlhf_jax.games import exact, matrices, solvers
from nlhf_jax.games.game import make_game
from tests.games.solving import assert_printed, at, free_extragradient, gap, nash, path

pytestmark = pytest.mark.usefixtures('float64')

# P(b > a) = .9, P(c > b) = .9, P(a > c) = .8.
PAYOFF = matrices.rock_paper_scissors(0.4, 0.3, 0.4)
REFERENCE = np.array([0.2, 0.5, 0.3])
SIZE = 0.3
REGULARISED = '.2749 .2797 .4454'


@pytest.fixture
def game():
  return make_game(PAYOFF, REFERENCE, 0.1)


def run(game, make, numbers, updates=2000):
  """The last policy, and the duality gaps of it and of the average."""
  found = path(make, game, np.array([updates]), None, numbers)
  free = at(game, 0)
  return (
    np.exp(found.last[0]),
    2 * float(gap(free, found.last[0])),
    2 * float(gap(free, found.average[0])),
  )


def test_equilibrium_has_the_published_values():
  assert_printed(exact.maximal_lottery(PAYOFF), '.3636 .2727 .3636')


def test_multiplicative_weights_cycle_out_to_a_vertex(game):
  policy, last, average = run(game, solvers.mwu, (SIZE,))
  assert_printed([last, average], '0.77 0.010')
  assert policy.max() > 0.95
  np.testing.assert_array_equal(run(game, solvers.sppo, (SIZE,))[0], policy)


@pytest.mark.parametrize(
  ('make', 'number'),
  [
    (solvers.inpo, 1 / SIZE),
    (solvers.self_play, SIZE),
    (solvers.extragradient, SIZE),
    (solvers.mirror_prox, SIZE),
    (solvers.mmd, SIZE),
  ],
)
def test_regularised_methods_reach_the_regularised_equilibrium(game, make, number):
  policy, last, average = run(game, make, (number,))
  assert_printed([last, average], '0.0588 .060')
  assert_printed(policy, REGULARISED)
  np.testing.assert_allclose(policy, np.exp(nash(game)), rtol=0, atol=5e-15)


@pytest.mark.parametrize('make', [solvers.extragradient, solvers.mirror_prox])
def test_egpo_and_nash_mp_equal_inpo(game, make):
  inpo, *_ = run(game, solvers.inpo, (1 / SIZE,))
  policy, *_ = run(game, make, (SIZE,))
  np.testing.assert_allclose(policy, inpo, rtol=0, atol=1.5e-15)


def test_nash_mp_parameters_convert_to_a_step(game):
  """Its beta .1 and eta .03 are the step (eta / beta) / (1 + eta), pulling eta / (1 + eta)."""
  times = np.arange(100)
  own = path(solvers.extragradient, game, times, None, (0.03 / 0.1 / 1.03,)).last
  ours = path(solvers.mirror_prox, game, times, None, (SIZE,)).last
  np.testing.assert_allclose(own, ours, rtol=0, atol=1e-13)


def test_nash_md_is_biased(game):
  policy, last, average = run(game, solvers.nash_md, (SIZE,))
  assert_printed([last, average], '0.0557 .057')
  assert_printed(policy, '.2741 .2752 .4507')
  assert_printed(abs(policy - np.exp(nash(game))).max(), '5e-3')


@pytest.mark.parametrize(
  ('make', 'printed'),
  [(free_extragradient, '6.9e-3 1.5e-3'), (solvers.optimistic_mwu, '6.7e-3 1.5e-3')],
)
def test_optimistic_steps_converge_slowly(game, make, printed):
  policy, last, average = run(game, make, (SIZE,))
  assert_printed([last, average], printed)
  assert abs(policy - exact.maximal_lottery(PAYOFF)).max() < 0.01
  assert run(game, make, (SIZE,), 4000)[1] < last / 2


# Of printed gaps near rounding, 6.5e-14, 1e-8 and 1e-15, only the magnitude is checked.
@pytest.mark.parametrize(
  ('make', 'numbers', 'updates', 'smallest', 'largest', 'average'),
  [
    (solvers.mpo, (SIZE, 50), 2000, 6e-14, 7e-14, '2.5e-3'),
    (solvers.comal, (1 / SIZE, 200), 4000, 0.5e-8, 1.5e-8, '5e-3'),
    (solvers.mmd_ema, (SIZE, 0.02), 4000, 0, 3e-15, '2e-3'),
  ],
)
def test_moving_references_lead_to_the_equilibrium(
  game, make, numbers, updates, smallest, largest, average
):
  policy, last, average_gap = run(game, make, numbers, updates)
  assert smallest <= last <= largest
  assert_printed(average_gap, average)
  assert_printed(policy, '.3636 .2727 .3636')


def test_references_that_move_too_often_diverge(game):
  policy, last, average = run(game, solvers.comal, (1 / SIZE, 6), 4000)
  assert_printed([last, average], '0.72 5.7e-3')
  assert policy.max() > 0.9
