"""AlpacaEval's length-controlled win rate: the predicted win rate at equal lengths.

Dubois et al., "Length-Controlled AlpacaEval" (arXiv 2404.04475), as the published code computes it.
For one policy, and each instruction i,

  logit P(response beats reference) = phi tanh(L_i) + psi d_i + theta,

where L_i is the length of the reference minus that of the response, in characters, divided by the
standard deviation of this difference (and not centred), and d_i is the difficulty of the
instruction, the same for all policies. The length-controlled win rate is the mean prediction
without the length term.

Judgements of two *anchors*, the reference prompted to be brief and to be verbose, are included in
the fit with a small weight and without theta. They stabilise phi and psi across policies. They are
a published file, `df_gamed.csv` of the data set `tatsu-lab/alpaca_eval`, and not part of this
package.

The L1-penalised likelihood is maximised to rounding error, while the published code stops at a
tolerance. Several strengths of the penalty are almost equally good, so the two may select different
ones; this moves a win rate by up to 0.2 points.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from nlhf_jax.errors import UserError

ANCHOR_WEIGHT = 0.1  # of one row of an anchor, relative to a row of the policy
STRENGTHS = np.logspace(-4, 4, 10)  # inverse weights of the penalty to select from
FOLDS = 5

Vector = Float[np.ndarray, 'n']


class Weights(NamedTuple):
  """phi, the coefficient of the length term, psi, of the difficulty, and theta, of the policy."""

  length: float
  difficulty: float
  policy: float


class Anchors(NamedTuple):
  """Judgements of the anchors; `preference` is the probability that the anchor won."""

  length: Vector
  difficulty: Vector
  preference: Vector


def read_difficulty(path: str | Path) -> Vector:
  """The difficulty of each instruction, in the order of the evaluation set.

  Args:
    path: a CSV file with the column `instruction_difficulty`, and the index of the instruction in
      `index` or the first column; if an index occurs twice, the first row is used.
  """
  rows, index = _read_csv(path, 'instruction_difficulty')
  found: dict[int, float] = {}
  for number, row in enumerate(rows, start=1):
    place = int(_number(path, number, row, index))
    found.setdefault(place, _number(path, number, row, 'instruction_difficulty'))
  if sorted(found) != list(range(len(found))):
    raise UserError(f"{path}: column '{index}' must number the instructions from 0, with no gap.")
  return np.array([found[place] for place in range(len(found))])


def read_anchors(path: str | Path) -> Anchors:
  """Reads judgements of the anchors.

  Args:
    path: a CSV file with the columns `std_delta_len`, the difference of lengths in standard
      deviations, `instruction_difficulty`, and one whose name begins with `preference`: the
      probability that the anchor won.
  """
  rows, _ = _read_csv(path, 'std_delta_len', 'instruction_difficulty')
  preference = next((name for name in rows[0] if name.startswith('preference')), 'preference')
  columns = ('std_delta_len', 'instruction_difficulty', preference)
  table = np.array(
    [[_number(path, i, row, name) for name in columns] for i, row in enumerate(rows, start=1)]
  )
  bad = np.flatnonzero((table[:, 2] < 0) | (table[:, 2] > 1))
  if len(bad):
    raise UserError(f"{path}, row {bad[0] + 1}: '{preference}' is not between 0 and 1.")
  return Anchors(*table.T)


def _read_csv(path, *columns) -> tuple[list[dict[str, str]], str]:
  """The rows, and the name of the column that identifies them."""
  try:
    with Path(path).open(newline='', encoding='utf-8-sig') as lines:
      rows = list(csv.DictReader(lines))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f"cannot read '{path}' ({error}); give a CSV file.") from None
  if not rows:
    raise UserError(f'{path} has no rows; give a CSV file with a header.')
  for column in columns:
    if column not in rows[0]:
      raise UserError(f"{path}: column '{column}' is missing; it has {list(rows[0])}.")
  return rows, 'index' if 'index' in rows[0] else next(iter(rows[0]))


def _number(path, number, row, column) -> float:
  try:
    value = float(row[column])
    if np.isfinite(value):
      return value
  except (KeyError, TypeError, ValueError):
    pass
  raise UserError(f"{path}, row {number}: '{column}' is {row.get(column)!r}, not a number.")


def fit(length: Vector, difficulty: Vector, preference: Vector, anchors: Anchors) -> Weights:
  """The weights of one policy, with the penalty that cross-validation selects.

  Args:
    length: length of the reference minus that of the response, in characters, by instruction.
    difficulty: of the instruction.
    preference: probability that the response beats the reference. Rows where it is NaN only count
      for the standard deviation of `length`.
    anchors: judgements to include.

  Raises:
    UserError: if all lengths differ by the same amount.
  """
  spread = np.std(length, ddof=1) if len(length) > 1 else 0.0
  if not spread > 0:
    raise UserError(
      'length control needs responses of several lengths; all of them differ from the reference '
      'by the same length.'
    )
  known = np.isfinite(preference)
  policy = np.stack([np.tanh(length / spread), difficulty, np.ones(len(length))], axis=1)[known]
  anchored = np.stack([np.tanh(anchors.length), anchors.difficulty, 0 * anchors.length], axis=1)
  x = np.concatenate([anchored, policy])
  y = np.concatenate([anchors.preference, preference[known]])
  weight = np.concatenate([np.full(len(anchored), ANCHOR_WEIGHT), np.ones(len(policy))])
  # The folds of scikit-learn's GroupKFold, for groups of one size: the last row is in the first.
  fold = np.arange(len(y))[::-1] % FOLDS
  losses = np.zeros(len(STRENGTHS))
  for k in range(FOLDS):
    fitted = np.zeros(3)
    for i, strength in enumerate(STRENGTHS):
      fitted = lasso(x[fold != k], y[fold != k], weight[fold != k], strength, fitted)
      losses[i] += np.mean(weight[fold == k] * _cross_entropy(x[fold == k] @ fitted, y[fold == k]))
  return Weights(*lasso(x, y, weight, STRENGTHS[np.argmin(losses)], np.zeros(3)).tolist())


def lasso(
  x: Float[np.ndarray, 'n k'],
  y: Vector,
  weight: Vector,
  strength: float,
  start: Float[np.ndarray, 'k'],
) -> Float[np.ndarray, 'k']:
  """L1-penalised logistic regression on probabilities y, without an intercept: the minimiser w of

    strength sum_i weight_i CE(y_i, sigmoid(x_i w)) + |w|_1,

  by Newton's method: each quadratic model is minimised by coordinate descent, and steps are halved
  until the objective decreases.
  """

  def objective(w):
    return strength * np.sum(weight * _cross_entropy(x @ w, y)) + np.sum(np.abs(w))

  w = start
  for _ in range(100):
    p = expit(x @ w)
    gradient = strength * ((weight * (p - y)) @ x)
    hessian = strength * (x.T * (weight * p * (1 - p))) @ x
    step = _lasso_of_quadratic(hessian, hessian @ w - gradient, w) - w
    now = objective(w)
    while objective(w + step) > now + 1e-12 * abs(now):
      step = step / 2
    w = w + step
    if np.max(np.abs(step)) < 1e-9:
      break
  return w


def _lasso_of_quadratic(hessian, slope, w):
  """Minimises w H w / 2 - slope w + |w|_1, starting from w."""
  w = w.copy()
  for _ in range(1000):
    before = w.copy()
    for j in range(len(w)):
      partial = slope[j] - hessian[j] @ w + hessian[j, j] * w[j]
      w[j] = np.sign(partial) * max(abs(partial) - 1, 0) / max(hessian[j, j], 1e-300)
    if np.max(np.abs(w - before)) < 1e-12:
      break
  return w


def _cross_entropy(logit, y):
  return np.logaddexp(0, logit) - y * logit


def predict(weights: Weights, difficulty: Vector) -> Vector:
  """Predicted probability that the policy beats the reference at equal length."""
  return expit(weights.difficulty * difficulty + weights.policy)


def win_rate(predictions: Vector) -> tuple[float, float]:
  """Mean of the predictions and its standard error, both in percent."""
  error = (
    np.std(predictions, ddof=1) / np.sqrt(len(predictions)) if len(predictions) > 1 else np.nan
  )
  return 100 * float(np.mean(predictions)), 100 * float(error)
