"""Invalid games and steps are refused with a message."""

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.games import exact, matrices, solvers
from nlhf_jax.games.game import make_game

RPS = matrices.rock_paper_scissors()
BAD = [
  ([[0, np.nan], [0.1, 0]], None, 0.1, r'payoff\[0, 1\] is nan; it must be finite'),
  ([[0, np.inf], [-np.inf, 0]], None, 0.1, r'payoff\[0, 1\] is inf'),
  (np.where(np.arange(5)[:, None, None] == 3, np.nan, RPS), None, 0.1, r'payoff\[3, 0, 0\] is nan'),
  ([[0.0, 0.1, 0.2], [-0.1, 0.0, 0.3]], None, 0.1, r'square matrix, not .* shape \(2, 3\)'),
  ([0.0, 0.1], None, 0.1, r'shape \(2,\)'),
  (np.zeros((0, 0)), None, 0.1, r'shape \(0, 0\)'),
  (
    *([[0, 0.25], [0.25, 0]], None, 0.1),
    r'not antisymmetric: \[0, 1\] is 0\.25 and \[1, 0\] is 0\.25, which add up to 0\.5 ',
  ),
  ([[0.5, 0.2], [-0.2, 0.5]], None, 0.1, r'\[0, 0\] is 0\.5 and \[0, 0\] is 0\.5.* up to 1 '),
  (
    *(np.stack([RPS, RPS + 1e-6 * np.eye(3)[[1, 0, 2]]]), None, 0.1),
    r'\[1, 0, 1\] is -0\.499999 and \[1, 1, 0\] is 0\.500001, which add up to 2e-06 ',
  ),
  (RPS, None, -0.1, r'tau=-0\.1 must be at least 0'),
  (RPS, None, np.nan, 'tau=nan must be'),
  (RPS, None, np.inf, 'tau=inf must be .* finite'),
  (RPS, [0.5, 0.5, 0], 0.1, r'reference\[2\] is 0\.0; .*leave it out'),
  (RPS, [0.5, 0.7, -0.2], 0.1, r'reference\[2\] is -0\.2'),
  (RPS, [0.5, np.nan, 0.5], 0.1, r'reference\[1\] is nan'),
  (RPS, [0.5, 0.5], 0.1, r'3 actions a probability; its shape is \(2,\)'),
  (RPS, np.array(0.5), 0.1, r'its shape is \(\)'),
  (RPS, [0.5, 0.5, 0.5], 0.1, r'must sum to 1; it sums to 1\.5'),
]


@pytest.mark.parametrize(('payoff', 'reference', 'tau', 'message'), BAD)
def test_invalid_games_are_refused(payoff, reference, tau, message):
  with pytest.raises(UserError, match=message):
    make_game(payoff, reference, tau)


def test_linear_program_refuses_invalid_games():
  with pytest.raises(UserError, match='not antisymmetric'):
    exact.maximal_lottery(np.array([[0.0, 0.3], [0.3, 0.0]]))


def test_payoffs_may_miss_antisymmetry_by_rounding():
  make_game(RPS + 1e-12)
  make_game(1e9 * matrices.with_equilibrium(matrices.random(5), np.full(5, 0.2)))


EXPLICIT = (solvers.nash_md, solvers.self_play, solvers.extragradient, solvers.optimistic)
IMPLICIT = (solvers.mmd, solvers.mirror_prox)


def begin(solver, tau):
  one = make_game(RPS, None, tau)
  return solver.init(one, one.log_reference)


@pytest.mark.parametrize('make', EXPLICIT)
def test_steps_beyond_the_reference_are_refused(make):
  with pytest.raises(UserError, match=r'step of 10\.5 at tau=0\.1 goes 1\.05 .* at most 1 / tau'):
    begin(make(10.5), 0.1)
  begin(make(10.0), 0.1)
  begin(make(10.5), 0.0)


def test_inverse_and_implicit_steps_have_other_limits():
  with pytest.raises(UserError, match='must be at most 1 / tau = 10'):
    begin(solvers.inpo(0.05), 0.1)
  for make in IMPLICIT:
    begin(make(1e6), 0.1)
  begin(solvers.mwu(1e6), 0.1)


@pytest.mark.parametrize('eta', [0.0, -1.0, np.nan])
@pytest.mark.parametrize('make', [*EXPLICIT, *IMPLICIT, solvers.mwu, solvers.optimistic_mwu])
def test_invalid_steps_are_refused(make, eta):
  with pytest.raises(UserError, match='must be above 0, and finite'):
    begin(make(eta), 0.1)


@pytest.mark.parametrize('make', [*EXPLICIT, solvers.mwu])
def test_infinite_steps_are_refused(make):
  with pytest.raises(UserError, match=r'step, inf .* must be above 0, and finite'):
    begin(make(np.inf), 0.1)


@pytest.mark.parametrize('eta', [0.0, -1.0, np.nan])
def test_invalid_inverse_steps_are_refused(eta):
  for solver in (solvers.inpo(eta), solvers.comal(eta, 10)):
    with pytest.raises(UserError, match='must be above 0, and finite'):
      begin(solver, 0.1)


def test_decreasing_step_needs_positive_tau():
  with pytest.raises(UserError, match='step, inf at tau=0, must be'):
    begin(solvers.nash_md_decreasing(), 0.0)
