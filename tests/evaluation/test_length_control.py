"""The fit of length control finds the minimum of its objective."""

import numpy as np
import pytest
from scipy import optimize

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import length_control
from nlhf_jax.evaluation.benchmarks.length_control import Anchors

TRUE = np.array([-1.5, 0.8, -0.6])


@pytest.fixture(scope='module')
def judged():
  """Made-up judgements of a policy by known weights."""
  random = np.random.default_rng(0)
  length, difficulty = random.normal(-200, 500, 400), random.normal(0, 1, 400)
  features = np.stack([np.tanh(length / length.std(ddof=1)), difficulty, np.ones(400)], axis=1)
  return length, difficulty, 1 / (1 + np.exp(-features @ TRUE))


@pytest.fixture(scope='module')
def anchors():
  random = np.random.default_rng(1)
  length, difficulty = random.normal(0, 1, 600), random.normal(0, 1, 600)
  logit = np.stack([np.tanh(length), difficulty], axis=1) @ TRUE[:2]
  return Anchors(length, difficulty, 1 / (1 + np.exp(-logit)))


def test_known_weights_are_recovered(judged, anchors):
  np.testing.assert_allclose(length_control.fit(*judged, anchors), TRUE, atol=2e-3)


def test_anchors_affect_only_length_and_difficulty(judged, anchors):
  length, difficulty, preference = judged
  flat = anchors._replace(preference=np.full(600, 0.5))
  weights = length_control.fit(length, difficulty, preference, flat)
  assert abs(weights.length) < abs(TRUE[0]) - 0.02
  assert abs(weights.difficulty) < abs(TRUE[1]) - 0.02
  assert weights.policy == pytest.approx(TRUE[2], abs=0.15)


def test_rows_without_verdict_are_not_fitted(judged, anchors):
  length, difficulty, preference = judged
  some = np.where(np.arange(400) % 3 == 0, np.nan, preference)
  np.testing.assert_allclose(length_control.fit(length, difficulty, some, anchors), TRUE, atol=4e-3)


@pytest.mark.parametrize('strength', [1e-4, 0.02, 0.3, 3.0, 1e4])
def test_lasso_reaches_its_minimum(strength):
  random = np.random.default_rng(2)
  x, y, weight = random.normal(size=(200, 3)), random.uniform(size=200), random.uniform(size=200)

  def objective(halves):
    w = halves[:3] - halves[3:]
    loss = np.sum(weight * (np.logaddexp(0, x @ w) - y * (x @ w)))
    return strength * loss + halves.sum()

  w = length_control.lasso(x, y, weight, strength, np.zeros(3))
  found = objective(np.concatenate([np.maximum(w, 0), np.maximum(-w, 0)]))
  best = optimize.minimize(objective, np.zeros(6), bounds=[(0, None)] * 6, tol=1e-12)
  assert found <= best.fun + 1e-7 * abs(best.fun)
  start = random.normal(size=3)
  np.testing.assert_allclose(length_control.lasso(x, y, weight, strength, start), w, atol=1e-7)
  # Optimality: a weight is zero exactly where the gradient is smaller than the penalty.
  p = 1 / (1 + np.exp(-x @ w))
  slope = -strength * (weight * (p - y)) @ x
  np.testing.assert_allclose(np.where(w != 0, slope, 0), np.sign(w), atol=1e-6)
  assert np.all(np.abs(slope) <= 1 + 1e-6)


@pytest.mark.parametrize('length', [np.full(10, 3.0), np.zeros(10), np.ones(1)])
def test_equal_length_differences_are_refused(length, anchors):
  rows = len(length)
  with pytest.raises(UserError, match='several lengths'):
    length_control.fit(length, np.zeros(rows), np.full(rows, 0.5), anchors)


def test_difficulties_are_ordered_by_index(tmp_path):
  path = tmp_path / 'difficulty.csv'
  path.write_text(',instruction_difficulty\n1,0.5\n0,-2\n1,7\n')
  np.testing.assert_array_equal(length_control.read_difficulty(path), [-2, 0.5])


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('index,difficulty\n0,1\n', "column 'instruction_difficulty' is missing"),
    ('index,instruction_difficulty\n0,hard\n', "row 1: 'instruction_difficulty' is 'hard'"),
    ('index,instruction_difficulty\n0,nan\n', "row 1: 'instruction_difficulty' is 'nan'"),
    ('index,instruction_difficulty\n0,1\n2,1\n', 'with no gap'),
    ('index,instruction_difficulty\n', 'has no rows'),
  ],
)
def test_bad_table_of_difficulties_is_refused(tmp_path, content, message):
  path = tmp_path / 'difficulty.csv'
  path.write_text(content)
  with pytest.raises(UserError, match=message):
    length_control.read_difficulty(path)


def test_anchors_are_read_from_published_columns(tmp_path):
  path = tmp_path / 'gamed.csv'
  header = 'model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\n'
  path.write_text(header + 'verbose,0.7,0,-1.5,0.2,False\n')
  anchors = length_control.read_anchors(path)
  assert [column.tolist() for column in anchors] == [[-1.5], [0.2], [0.7]]
  path.write_text(header + 'verbose,1.7,0,-1.5,0.2,False\n')
  with pytest.raises(UserError, match='row 1'):
    length_control.read_anchors(path)
