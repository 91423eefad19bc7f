"""Figures show all values that solvers produce, also zeros and non-finite ones."""

import jax.numpy as jnp
import matplotlib.image
import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.figure import Figure

from nlhf_jax.games import matrices
from nlhf_jax.reporting import game_plots


def drawn(figure: Figure, folder) -> np.ndarray:
  """The pixels of the saved figure; checks that legends do not cover its axes."""
  path = folder / 'figure.png'
  figure.savefig(path, dpi=50)
  assert path.read_bytes().startswith(b'\x89PNG\r\n\x1a\n')
  for legend in figure.legends:
    for axes in figure.axes:
      assert not legend.get_window_extent().overlaps(axes.get_window_extent())
  return matplotlib.image.imread(path)


def in_ink(pixels: np.ndarray) -> float:
  """The fraction of pixels that are not white."""
  return (pixels[..., :3] < 0.99).any(axis=-1).mean()


@pytest.mark.parametrize('count', [1, 3, 24])
def test_convergence_plot_is_drawn(count, tmp_path):
  updates = np.array([0, 1, 10, 100])
  curves = {f'solver {i}': (updates, 0.1 / (updates + i + 1)) for i in range(count)}
  figure = game_plots.convergence(curves, 'title', 'label')
  assert in_ink(drawn(figure, tmp_path)) > 0.02
  lines = figure.axes[0].lines
  assert all(line.get_xdata().min() == 1 for line in lines)
  assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == count
  # The legend is in the order of the last values.
  names = [text.get_text() for text in figure.legends[0].get_texts()]
  assert names == [f'solver {i}' for i in range(count)]


def test_values_below_the_floor_are_drawn_there(tmp_path):
  values = jnp.array([1.0, 1e-3, 0, -1e-9, 1e-40])
  figure = game_plots.convergence({'a': (np.arange(5), values)}, '', '', floor=1e-20)
  drawn(figure, tmp_path)
  axes = figure.axes[0]
  np.testing.assert_allclose(axes.lines[0].get_ydata(), [1e-3, 1e-20, 1e-20, 1e-20])
  assert [text.get_text() for text in axes.texts] == ['1e-20 or less']
  assert axes.get_ylim()[0] == pytest.approx(1e-21)


def test_floor_is_drawn_only_if_reached(tmp_path):
  figure = game_plots.convergence({'a': ([1, 2], [1e-3, 2e-3])}, '', '')
  drawn(figure, tmp_path)
  assert not figure.axes[0].texts
  assert figure.axes[0].get_ylim() == pytest.approx((1e-3, 1e-2))


def test_non_finite_values_are_left_out(tmp_path):
  curves = {
    'ends': ([1, 2, 3], [0.1, np.nan, np.inf]),
    'never began': ([1, 2, 3], [np.nan] * 3),
    'start alone': ([0], [0.1]),
  }
  figure = game_plots.convergence(curves, '', '')
  drawn(figure, tmp_path)
  assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [1, 0, 0]
  assert len(figure.legends[0].get_texts()) == 3
  drawn(game_plots.convergence({'never began': curves['never began']}, '', ''), tmp_path)


@pytest.mark.parametrize('count', [1, 2, 6])
def test_simplex_plot_is_drawn(count, tmp_path):
  angle = np.linspace(0, 20, 100)[:, None] + np.array([0, 2.1, 4.2])
  path = (1 + np.exp(-angle[:, :1] / 10) * np.cos(angle) / 2) / 3
  path /= path.sum(axis=1, keepdims=True)
  paths = {f'solver {i}': jnp.asarray(path) for i in range(count)}
  marks = {'Nash': [1 / 3, 1 / 3, 1 / 3], 'reference': np.array([0.6, 0.3, 0.1])}
  figure = game_plots.simplex(paths, ['report', 'list', 'question'], marks, 'title')
  assert in_ink(drawn(figure, tmp_path)) > 0.01
  assert [axes.get_title() for axes in figure.axes] == list(paths)
  names = [text.get_text() for text in figure.legends[0].get_texts()]
  assert names == ['start', 'end', 'Nash', 'reference']
  ends = figure.axes[0].lines[-1].get_xydata()[0]
  np.testing.assert_allclose(ends, path[-1] @ game_plots.CORNERS)


def test_constant_path_is_drawn(tmp_path):
  paths = {'still': np.full((5, 3), 1 / 3), 'one point': np.full((1, 3), 1 / 3)}
  drawn(game_plots.simplex(paths, ['a', 'b', 'c'], {}, ''), tmp_path)


def test_matrix_of_a_few_actions_has_numbers(tmp_path):
  figure = game_plots.payoff_heatmap(
    matrices.three_raters(), ['report', 'list', 'question'], 'title'
  )
  drawn(figure, tmp_path)
  numbers = [text.get_text() for text in figure.axes[0].texts]
  assert numbers == ['0.50', '0.67', '0.33', '0.33', '0.50', '0.67', '0.67', '0.33', '0.50']


def test_matrix_of_many_actions_has_none(tmp_path):
  names = [f'a long name {i}' for i in range(43)]
  figure = game_plots.payoff_heatmap(jnp.asarray(matrices.random(43)), names, 'title')
  pixels = drawn(figure, tmp_path)
  assert max(pixels.shape[:2]) < 600  # at 50 dots an inch
  axes, bar = figure.axes
  assert not axes.texts
  assert [label.get_text() for label in axes.get_yticklabels()] == names
  assert bar.get_ylabel() == 'row beats column, probability'


def test_large_payoffs_are_not_labelled_probabilities(tmp_path):
  figure = game_plots.payoff_heatmap(2 * matrices.strict_cycle(3), 'abc', '')
  drawn(figure, tmp_path)
  assert [text.get_text() for text in figure.axes[0].texts[:3]] == ['0.00', '1.00', '-1.00']
  assert figure.axes[1].get_ylabel() == 'payoff of row'
  drawn(game_plots.payoff_heatmap(np.zeros((2, 2)), 'ab', ''), tmp_path)


def test_policy_bars_are_drawn(tmp_path):
  policies = {'reference': [0.6, 0.3, 0.1], 'Nash': jnp.array([0.3333, 0.6666, 1e-4])}
  figure = game_plots.policy_bars(policies, ['a', 'b', 'c'], 'title')
  assert in_ink(drawn(figure, tmp_path)) > 0.05
  axes = figure.axes[0]
  widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
  np.testing.assert_allclose(widths, [*policies.values()])
  assert [text.get_text() for text in axes.texts][-1] == '< 0.001'


def test_bars_sum_rare_actions(tmp_path):
  uniform = np.full(43, 1 / 43)
  policy = np.zeros(43)
  policy[[3, 40]] = 0.25, 0.75
  names = [f'bot {i}' for i in range(43)]
  figure = game_plots.policy_bars(
    {'uniform': uniform, 'Nash': policy}, names, 'title', threshold=0.05
  )
  drawn(figure, tmp_path)
  axes = figure.axes[0]
  labels = [label.get_text() for label in axes.get_yticklabels()]
  assert labels == ['bot 3', 'bot 40', 'the other 41']
  widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
  np.testing.assert_allclose(widths, [[1 / 43, 1 / 43, 41 / 43], [0.25, 0.75, 0]])
  figure = game_plots.policy_bars({'uniform': uniform}, names, 'title', threshold=0.02)
  assert len(figure.axes[0].get_yticklabels()) == 43


@pytest.mark.parametrize('log', [False, True])
def test_sweep_plot_is_drawn(log, tmp_path):
  values = np.geomspace(0.01, 1, 20)
  policy = jnp.stack([values / 2, 1 - values, values / 2], axis=1)
  methods = {'RLHF': policy, 'Nash': policy}
  figure = game_plots.policy_sweep(values, methods, ['a', 'b', 'c'], 'title', 'tau', log)
  assert in_ink(drawn(figure, tmp_path)) > 0.3
  assert [axes.get_title(loc='left') for axes in figure.axes] == ['RLHF', 'Nash']
  assert [text.get_text() for text in figure.legends[0].get_texts()] == ['c', 'b', 'a']


def test_pyplot_is_not_used():
  game_plots.policy_bars({'a': [0.5, 0.5]}, ['x', 'y'], 'title')
  assert matplotlib.pyplot.get_fignums() == []


def test_bands_surround_their_curves():
  at, values = [1, 10, 100], np.array([1e-1, 1e-2, 1e-3])
  curves = {'with': (at, values), 'without': (at, 2 * values)}
  bands = {'with': (values / 2, values * 2)}
  axes = game_plots.convergence(curves, '', 'gap', bands=bands).axes[0]
  (band,) = axes.collections
  corners = band.get_paths()[0].vertices
  assert corners[:, 1].min() == 5e-4
  assert corners[:, 1].max() == 0.2


def test_theory_lines_are_dashed_in_their_colour():
  at, values = [1, 10, 100], np.array([1e-1, 1e-2, 1e-3])
  curves = {'with': (at, values), 'without': (at, 2 * values)}
  figure = game_plots.convergence(curves, '', 'gap', theory={'with': (at, 100 * values)})
  one, closed, other = figure.axes[0].lines
  assert closed.get_linestyle() == '--' != one.get_linestyle()
  assert closed.get_color() == one.get_color() != other.get_color()
  assert [text.get_text() for text in figure.legends[0].texts] == ['without', 'with', 'closed form']
  assert figure.axes[0].get_ylim()[1] < 10  # it may leave the frame
