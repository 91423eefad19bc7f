"""The tabular experiment: from its command to its files, and its error messages."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax import command, main
from nlhf_jax.experiments.tabular import run as tabular
from nlhf_jax.experiments.tabular.config import make_experiment
from nlhf_jax.games import matrices
from tests import described_runs

CONFIG = '--config=configs/tabular.py'
SIGNATURE = b'\x89PNG'


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  root = Path(__file__).parents[2]
  monkeypatch.chdir(root)
  monkeypatch.syspath_prepend(str(root))


@pytest.fixture
def solved(tmp_path):
  """A function that runs the command with few updates and returns its results."""

  def solved(config, *overrides):
    arguments = [config, f'--workdir={tmp_path}', *(f'--config.{text}' for text in overrides)]
    assert main.main(['main', *arguments]) == 0
    # Strictly JSON: no Infinity, no NaN.
    return json.loads((tmp_path / 'results.json').read_text(), parse_constant=pytest.fail)

  return solved


def test_the_default_game_is_solved_by_every_solver(solved, tmp_path, capsys):
  results = solved(CONFIG)
  assert described_runs.undescribed(tmp_path, 'tabular') == set()
  np.testing.assert_allclose(
    results['equilibrium'][0], [0.60304022, 0.17380593, 0.22315385], atol=6e-9
  )
  np.testing.assert_allclose(results['maximal_lottery'][0], [1 / 3] * 3, atol=1e-9)
  at_tau = (
    'self_play nash_ema mmd extragradient optimistic best_response newton anderson proximal_point'
  )
  for label in at_tau.split():
    assert results['solvers'][label]['gap_tau'][-1] < 1e-15, label
  for label in ('mpo', 'mmd_ema', 'comal', 'optimistic_mwu'):
    assert results['solvers'][label]['gap'][-1] < 1e-4, label
  for label in ('mwu', 'regret_matching', 'regret_matching_plus'):
    assert results['solvers'][label]['average_gap'][-1] < 1e-2, label
  assert results['solvers']['nash_md_decreasing']['gap_tau'][-1] < 1e-8
  assert results['solvers']['fictitious_play']['gap'][-1] < 1e-2  # an average already
  assert 1e-6 < results['solvers']['nash_md']['gap_tau'][-1] < 1e-4  # biased at a constant step
  assert results['solvers']['mwu']['gap'][-1] > 0.1  # its last iterate diverges

  files = {path.name for path in tmp_path.iterdir()}
  figures = {name for name in files if name.endswith('.png')}
  assert figures == {
    f'{name}.png'
    for name in (
      'gap_tau',
      'gap_tau_average',
      'gap',
      'gap_average',
      'simplex',
      'preferences',
      'policies',
    )
  }
  assert all((tmp_path / name).read_bytes().startswith(SIGNATURE) for name in figures)
  assert files - figures == {'.lock', 'config.json', 'results.json', 'report.html'}
  page = (tmp_path / 'report.html').read_text()
  assert page.count('<figure id=') == page.count('<figcaption>') == len(figures)
  assert page.count('class="plot"') == len(figures) - 1  # the matrix is drawn by the page
  assert '<img' not in page
  printed = capsys.readouterr().out
  for label in results['solvers']:
    assert f'>{label}<' in page
    assert f'\n  {label} ' in printed
  assert 'Condorcet winner none' in printed


@pytest.mark.parametrize('game', ['bradley_terry', 'blotto', 'prompts'])
def test_games_of_other_sizes_run(solved, game):
  results = solved(
    f'{CONFIG}:{game}',
    'only=self_play,newton',
    'solvers.self_play.updates=10',
    'solvers.newton.updates=30',
  )
  assert list(results['solvers']) == ['self_play', 'newton']
  assert max(results['equilibrium_gap']) < 1e-11
  for payoff, lottery in zip(results['payoff'], results['maximal_lottery'], strict=True):
    assert max(np.array(payoff) @ lottery) < 1e-9
  assert results['solvers']['newton']['gap_tau'][-1] < 1e-11


@pytest.mark.slow
def test_every_game_of_the_config_can_be_built():
  config = command.load_config('configs/tabular.py')
  for game, arguments in runpy.run_path('configs/tabular.py')['GAMES'].items():
    if game != 'file':
      built = make_experiment(command.load_config(f'configs/tabular.py:{game}'), game)
      assert built.name == game
      assert list(built.runs) == list(config.solvers)
      assert len(built.table.names) == arguments.get('actions', built.game.payoff.shape[-1])
      assert built.start.shape == built.game.log_reference.shape


def test_zero_tau_leaves_out_regularised_solvers(solved):
  results = solved(
    f'{CONFIG}:strict_cycle', 'tau=0', 'start=0.5, 0.3, 0.2', 'solvers.proximal_point.updates=400'
  )
  assert 'equilibrium' not in results
  assert not {'newton', 'anderson', 'nash_md_decreasing', 'comal'} & results['solvers'].keys()
  assert results['solvers']['proximal_point']['gap'][-1] < 1e-12
  assert 'gap_tau' not in results['solvers']['mwu']


def test_a_single_action_is_its_own_equilibrium(solved):
  results = solved(
    f'{CONFIG}:random', 'game.actions=1', 'only=nash_md,regret_matching,anderson,newton'
  )
  assert results['equilibrium'] == [[1.0]]
  for row in results['solvers'].values():
    assert row['last'] == [[1.0]]
    assert row['gap_tau'][-1] == 0


def test_groups_that_never_met_are_not_compared(solved, tmp_path, capsys):
  path = tmp_path / 'votes.csv'
  path.write_text('left,right,winner\na,b,left\nc,d,left\na,b,right\n')
  results = solved(f'{CONFIG}:file', f'game.path={path}', 'only=mmd')
  assert results['groups'] == [[['a', 'b'], ['c', 'd']]]
  assert 'rlhf' not in results  # whose rewards would compare the groups
  (facts,) = results['choice']
  assert (facts['condorcet'], facts['borda'], facts['copeland'], facts['minimax']) == (
    None,
    [],
    [],
    [],
  )
  assert results['maximal_lottery_is_unique'] == [False]
  np.testing.assert_allclose(results['maximal_lottery'][0], [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-9)
  sentence = 'The actions fall into 2 groups that never met: a, b; c, d.'
  printed, page = capsys.readouterr().out, (tmp_path / 'report.html').read_text()
  assert sentence in printed
  assert sentence in page
  assert 'Nash (not unique)' in printed
  assert 'Borda winner none' in printed


def test_names_from_files_are_escaped(solved, tmp_path, capsys):
  path = tmp_path / 'mine.csv'
  path.write_text(',<b>,plain\n<b>,0.5,0.7\nplain,0.3,0.5\n')
  results = solved(f'{CONFIG}:file', f'game.path={path}', 'only=mmd')
  assert results['actions'] == ['<b>', 'plain']
  assert results['choice'][0]['condorcet'] == '<b>'
  assert results['solvers']['mmd']['updates'] == 10_000
  np.testing.assert_allclose(results['equilibrium'][0][0], 0.880797, atol=6e-7)
  page = (tmp_path / 'report.html').read_text()
  assert '<b>&lt;b&gt;</b> beats every other action' in page
  assert 'Condorcet winner <b>' in capsys.readouterr().out


def test_names_may_contain_dollar_signs(solved, tmp_path):
  path = tmp_path / 'mine.csv'
  path.write_text(',$\\frac$,$5 or $9\n$\\frac$,0.5,0.7\n$5 or $9,0.3,0.5\n')
  results = solved(f'{CONFIG}:file', f'game.path={path}', 'only=newton', 'solvers.newton.updates=9')
  assert results['actions'] == ['$\\frac$', '$5 or $9']


def test_rlhf_is_left_out_without_a_fit(solved, tmp_path, capsys):
  path = tmp_path / 'votes.csv'
  path.write_text('left,right,winner\na,b,a\nb,a,a\n')
  results = solved(f'{CONFIG}:file', f'game.path={path}', 'only=newton', 'solvers.newton.updates=9')
  assert 'rlhf' not in results
  assert 'best Bradley-Terry fit has no finite rewards' in capsys.readouterr().out
  assert 'best Bradley-Terry fit has no finite rewards' in (tmp_path / 'report.html').read_text()


def test_runs_remove_figures_of_other_games(solved, tmp_path):
  solved(CONFIG, 'only=newton', 'solvers.newton.updates=9')
  assert (tmp_path / 'simplex.png').exists()
  solved(f'{CONFIG}:bradley_terry', 'only=newton', 'solvers.newton.updates=9')
  assert not (tmp_path / 'simplex.png').exists()


@pytest.mark.parametrize(
  ('payoff', 'undefeated', 'borda'),
  [
    ([[0, 0, 0.1], [0, 0, 0], [-0.1, 0, 0]], ['a', 'b'], ['a']),
    (matrices.strict_cycle(3), [], ['a', 'b', 'c']),
    (matrices.rock_paper_scissors(0.1, 0.1, 0.2), [], ['b']),
  ],
)
def test_all_tied_winners_are_named(payoff, undefeated, borda):
  printed = tabular.social_choice(('a', 'b', 'c'), np.array(payoff))
  assert printed['undefeated'] == undefeated
  assert printed['borda'] == borda
  assert printed['condorcet'] is None


@pytest.mark.parametrize(
  ('source', 'overrides', 'expected'),
  [
    ('', ['tau=-1'], 'config.tau=-1.0 must be at least 0'),
    ('', ['tau=nan'], 'config.tau=nan must be'),
    ('', ['tau=4'], 'config.solvers.nash_md: a step of 0.5 at tau=4 goes 2 of the way'),
    ('', ['solvers.mwu.arguments.eta=0'], 'config.solvers.mwu.arguments.eta=0.0 must be above 0'),
    ('', ['solvers.mwu.solver=nush_md'], "config.solvers.mwu.solver: there is no 'nush_md'"),
    ('', ['solvers.mwu.solver=nash_ema'], "'nash_ema' got ['eta']: missing a required argument"),
    ('', ['solvers.mwu.updates=0'], 'config.solvers.mwu.updates=0 must be at least 1'),
    ('', ['solvers.mwu.solver=maximal_lottery'], 'config.solvers.mwu'),
    ('', ['only=nash_md, mvu'], "config.only: there is no solver 'mvu'; choose from nash_md"),
    ('', ['reference=0.5, 0.5'], "config.reference='0.5, 0.5' must be 3 probabilities"),
    ('', ['reference=1, 0, 0'], "config.reference='1, 0, 0' must be 3 probabilities above 0"),
    ('', ['reference=even'], "config.reference='even' must be numbers separated by commas"),
    ('', ['start=0.5, 0.6, 0.2'], 'config.start='),
    ('', ['sampling=0.5, 0.5'], "config.sampling='0.5, 0.5' must be 3 probabilities"),
    ('', ['tau=0', 'only=comal'], 'config.solvers.comal needs config.tau above 0'),
    ('', ['tau=4', 'only=comal'], 'it must be at most 1 / tau = 0.25'),
    ('', ['tau=0', 'only=newton'], 'config.solvers.newton needs config.tau above 0'),
    ('', ['game.name=poker'], "config.game.name: there is no 'poker'"),
    ('', ['game.name=blotto', 'game.soldiers=3'], '--config.game.soldiers'),
    (':poker', [], "there is no game 'poker'; use one of three_raters"),
    (':rater_types', ['game.e=0.5'], 'config.game.e=0.5 must be in [-1/3, 1/3]'),
    (':bradley_terry', ['game.rewards=1, x'], "config.game.rewards='1, x' must be numbers"),
    (':file', [], 'config.game.path is empty'),
    (':file', ['game.path=none.csv'], 'none.csv'),
  ],
)
def test_invalid_settings_give_one_sentence(capsys, tmp_path, source, overrides, expected):
  arguments = [
    CONFIG + source,
    f'--workdir={tmp_path}',
    *(f'--config.{text}' for text in overrides),
  ]
  assert main.main(['main', *arguments]) == 2
  printed = capsys.readouterr().err
  assert expected in printed
  assert printed.count('\n') == 1
  assert not (tmp_path / 'results.json').exists()
