"""Preference games from counts, win probabilities or payoffs.

Functions return A = P - 1/2 in double precision, [K, K], or [X, K, K] for games on X prompts. A
missing entry is NaN; a pair without any data counts as 1/2. `files.py` reads files.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from nlhf_jax.errors import UserError


class Table(NamedTuple):
  """A preference game with names; `notes` are sentences on how the data were processed."""

  names: tuple[str, ...]  # of the K actions; '1', '2', ... if they have none
  payoff: np.ndarray  # [K, K] or [X, K, K]
  notes: tuple[str, ...]
  met: np.ndarray | None = None  # whether there are data of a pair, as payoff; None: of all


def from_counts(
  wins: ArrayLike, ties: ArrayLike | None = None, prior: float = 0.0, names: Sequence[str] = ()
) -> Table:
  """P = (wins + ties / 2 + prior) / (comparisons + 2 prior), and 1/2 for a pair that never met.

  Args:
    wins: how often row was preferred to column, [K, K] or [X, K, K]; may be fractions. A missing
      entry is 0 if its mirror entry is missing too.
    ties: number of ties, symmetric and of the same shape; each counts as half a win for both.
    prior: wins added to both sides of every pair.
    names: of the actions.

  Raises:
    UserError: that names the first entry that is not a count.
  """
  wins = np.asarray(wins, float)
  ties = np.zeros_like(wins) if ties is None else np.asarray(ties, float)
  names = check_names(wins, names)
  if ties.shape != wins.shape:
    raise UserError(f'ties of shape {ties.shape} must be of the shape of wins, {wins.shape}.')
  if not 0 <= prior < np.inf:
    raise UserError(f'prior={prior} must be at least 0, and finite.')
  wins, ties = (np.where(np.isnan(x) & np.isnan(mirror(x)), 0, x) for x in (wins, ties))
  itself = np.eye(len(names), dtype=bool)
  for what, counts in (('wins', wins), ('ties', ties)):
    wrong = ~((counts >= 0) & (counts < np.inf))
    refuse(wrong, counts, names, f'is no count of {what}', 'write a finite number of at least 0')
    problem = f'is a count of {what} of an action against itself'
    refuse(itself & (counts > 0), counts, names, problem, 'write 0 there or leave it empty')
  problem = 'is not the count of ties of the mirror entry'
  refuse(ties != mirror(ties), ties, names, problem, 'write all ties of a pair into both')
  met = wins + mirror(wins) + ties
  if not met.any():
    raise UserError('there are no comparisons; a game needs at least one.')
  total = np.where(met + 2 * prior > 0, met + 2 * prior, 1)
  notes = describe_counts(upper_entries(met), upper_entries(ties), prior)
  return Table(names, (wins - mirror(wins)) / (2 * total), notes, met > 0)


def describe_counts(met: np.ndarray, ties: np.ndarray, prior: float) -> tuple[str, ...]:
  """Sentences about the comparisons and the ties of all pairs, [pairs]."""
  some, count = met[met > 0], len(met)
  notes = [
    f'{met.sum():.10g} comparisons, {some.min():.10g} to {some.max():.10g} of a pair that met.'
  ]
  if len(some) < count:
    notes.append(f'{count - len(some)} of {count} pairs never met: 1/2.')
  if ties.any():
    notes.append(f'{ties.sum():.10g} of the comparisons are ties, half a win for both.')
  if prior:
    notes.append(f'{prior:g} wins added to both sides of every pair.')
  return tuple(notes)


def from_preferences(
  preferences: ArrayLike, tolerance: float = 1e-6, names: Sequence[str] = ()
) -> Table:
  """Win probabilities of row over column, which add up to 1 over a pair.

  Args:
    preferences: [K, K] or [X, K, K]; 1/2 or missing on the diagonal. Where one entry of a pair is
      missing, it is the complement of the other.
    tolerance: how far the sum of a pair may be from 1; both entries are moved equally.
    names: of the actions.

  Raises:
    UserError: that names the first entry outside of [0, 1], or the pair furthest from sum 1.
  """
  preferences = np.asarray(preferences, float)
  names = check_names(preferences, names)
  outside = (preferences < 0) | (preferences > 1)
  kind = 'payoffs' if (preferences < 0).any() else 'counts'
  remedy = f'correct it, or call the numbers {kind} if they are that (entries={kind})'
  refuse(outside, preferences, names, 'is no probability in [0, 1]', remedy)
  return make_antisymmetric(preferences, 1, tolerance, names)


def from_payoffs(
  payoffs: ArrayLike, tolerance: float = 1e-6, scale: float = 1.0, names: Sequence[str] = ()
) -> Table:
  """What row gains from column, which adds up to 0 over a pair, divided by `scale`.

  Args:
    payoffs: M, [K, K] or [X, K, K]; 0 or missing on the diagonal. Where one entry of a pair is
      missing, it is minus the other.
    tolerance: how far M + M^T may be from 0, in the unit of M; (M - M^T) / 2 removes it.
    scale: A is M / scale, a probability minus 1/2 if a sure win gains scale / 2.
    names: of the actions.

  Raises:
    UserError: that names the first infinite entry, or the pair whose sum is furthest from 0.
  """
  payoffs = np.asarray(payoffs, float)
  names = check_names(payoffs, names)
  if not 0 < scale < np.inf:
    raise UserError(f'scale={scale} must be above 0, and finite.')
  refuse(np.isinf(payoffs), payoffs, names, 'is not finite', 'correct it')
  table = make_antisymmetric(payoffs, 0, tolerance, names)
  payoff, notes = table.payoff / scale, table.notes
  if scale != 1:
    notes += (f'Payoffs divided by {scale:g}.',)
  largest = abs(payoff).max()
  if largest > 0.5:
    notes += (f'Payoffs reach {largest:.4g}, more than the 1/2 that a sure win is worth.',)
  return table._replace(payoff=payoff, notes=notes)


def make_antisymmetric(
  values: np.ndarray, total: int, tolerance: float, names: tuple[str, ...]
) -> Table:
  """(values - values^T) / 2, where entries of a pair add up to `total`; fills in what is missing.

  Raises:
    UserError: that names the worst pair, if it misses `total` by more than `tolerance`.
  """
  if not 0 <= tolerance < np.inf:
    raise UserError(f'tolerance={tolerance} must be at least 0, and finite.')
  absent = np.isnan(values)
  both = absent & mirror(absent)
  values = np.where(absent, total - mirror(values), values)
  values = np.where(both, total / 2, values)
  defect = abs(values + mirror(values) - total)
  worst = np.unravel_index(defect.argmax(), defect.shape)
  if defect[worst] > tolerance:
    raise UserError(describe_unbalanced(values, worst, total, tolerance, names))
  missing, lone, count = (
    upper_entries(both).sum(),
    upper_entries(absent ^ mirror(absent)).sum(),
    upper_entries(both).size,
  )
  notes = []
  if missing:
    notes.append(f'{missing} of {count} pairs are missing: {"1/2" if total else "0"}.')
  if lone:
    notes.append(f'{lone} of {count} pairs have one of their two entries, which gave the other.')
  if defect[worst] > 1e-12 * max(1, abs(values).max()):  # less is rounding of double precision
    notes.append(f'Noise of at most {defect[worst]:.3g} removed by (M - M^T) / 2.')
  return Table(names, (values - mirror(values)) / 2, tuple(notes), ~both)


def describe_unbalanced(
  values: np.ndarray, worst: Sequence, total: int, tolerance: float, names: tuple[str, ...]
) -> str:
  """The message about the pair whose sum is furthest from `total`."""
  *prompt, i, j = worst
  where = describe_entry(names, worst)
  here, there = values[tuple(worst)], values[(*prompt, j, i)]
  hint = ''
  if total == 0 and (values >= 0).all():
    kind = 'probabilities' if values.max() <= 1 else 'counts'
    hint = f', or call the numbers {kind} if they are that (entries={kind})'
  if i == j:
    return (
      f'{where}: {here:.6g} is of an action against itself; write {total / 2:g} there or leave it '
      f'empty{hint}.'
    )
  return (
    f'{where}: {here:.6g} and its mirror entry, {there:.6g}, add up to '
    f'{here + there:.6g} instead of {total}, which is off by {abs(here + there - total):.3g} with '
    f'tolerance={tolerance:g}; correct them, or raise the tolerance if this is noise{hint}.'
  )


def check_names(values: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
  """The names, or numbers if there are none; refuses equal names and shapes that do not fit."""
  if values.ndim not in (2, 3) or values.shape[-1] != values.shape[-2] or not values.size:
    raise UserError(
      f'the numbers must be square, [K, K], or [X, K, K] for X prompts; these are of the shape '
      f'{list(values.shape)}.'
    )
  actions = values.shape[-1]
  if actions < 2:
    raise UserError('there is one action; a game needs at least two.')
  names = tuple(names) or tuple(str(action + 1) for action in range(actions))
  if len(names) != actions:
    raise UserError(f'there are {len(names)} names for {actions} actions; give each action one.')
  for number, name in enumerate(names):
    if not name.isprintable():
      raise UserError(f'the name of action {number + 1}, {name!r}, has control characters in it.')
    if not name:
      raise UserError(f'action {number + 1} has an empty name; give it one.')
    if name in names[:number]:
      same = names.index(name) + 1
      raise UserError(f"actions {same} and {number + 1} are both named '{name}'; rename one.")
  return names


def mirror(values: np.ndarray) -> np.ndarray:
  """The transposed matrices: entries of column against row."""
  return values.swapaxes(-1, -2)


def upper_entries(values: np.ndarray) -> np.ndarray:
  """The entries above the diagonal, of all prompts, [pairs]."""
  return values[..., *np.triu_indices(values.shape[-1], 1)].ravel()


def describe_entry(names: Sequence[str], index: Sequence) -> str:
  """The position of an entry, for messages."""
  *prompt, i, j = map(int, index)
  words = [f'prompt {number + 1}' for number in prompt]
  for what, number in (('row', i), ('column', j)):
    name = '' if names[number] == str(number + 1) else f" ('{names[number]}')"
    words.append(f'{what} {number + 1}{name}')
  return ', '.join(words)


def refuse(
  wrong: np.ndarray, values: np.ndarray, names: Sequence[str], problem: str, remedy: str
) -> None:
  """Raises UserError that names the first entry where `wrong` is true, if there is any."""
  if wrong.any():
    first = tuple(np.argwhere(wrong)[0])
    raise UserError(f'{describe_entry(names, first)}: {values[first]:g} {problem}; {remedy}.')
