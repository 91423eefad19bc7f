"""Prints the catalogue: `python -m nlhf_jax.algorithms`."""

import inspect
from collections.abc import Iterator

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import Algorithm, Side, always
from nlhf_jax.algorithms.naming import shown
from nlhf_jax.algorithms.selection import unchanged

# Values for the arguments of rows, so that each can be made and shown; others get 1.
ARGUMENTS = {
  **{'tau': 0.06, 'beta': 0.125, 'eta': 0.18, 'rate': 0.02, 'ratio': 0.25, 'temperature': 2.0},
  **{'every': 25, 'reset': 150, 'samples': 5, 'queue': 4, 'rounds': 2, 'candidates': 7, 'keep': 4},
  **{'epsilon': 0.1, 'delta': 1.0, 'weight': 0.1, 'desirable': 1.0, 'undesirable': 1.0},
  **{'gamma': 0.5, 'log_z': 0.5, 'forward': 0.1, 'reverse': 0.1, 'alpha': 0.001},
}


def of_side(side: Side | None) -> str:
  """Mixtures as products of powers, and how many responses each of them gives."""
  if side is None or isinstance(side, str):
    return side or ''
  texts = [
    ' '.join(slot if weight == 1 else f'{slot}^{shown(weight)}' for slot, weight in player.items())
    for player in side
  ]
  counts = {text: texts.count(text) for text in texts}
  return ', '.join(f'{count} x {text}' if count > 1 else text for text, count in counts.items())


def blocks() -> Iterator[str]:
  """The rows in the order of the catalogue, each as a few lines."""
  rows = list(inspect.getmembers(catalogue, inspect.isfunction))
  rows = [make for _, make in rows if inspect.signature(make).return_annotation is Algorithm]
  for make in sorted(rows, key=lambda make: make.__code__.co_firstlineno):
    takes = list(inspect.signature(make).parameters)
    row = make(**{name: ARGUMENTS.get(name, 1) for name in takes})
    facts = {
      'left': of_side(row.left),
      'right': of_side(row.right),
      'select': '' if row.select is unchanged else shown(row.select),
      'loss': shown(row.loss),
      'references': ', '.join(f'{slot} {shown(rule)}' for slot, rule in row.references.items()),
      'step': '' if row.step is always else shown(row.step),
    }
    lines = [f'  {name:<11} {text}' for name, text in facts.items() if text]
    yield '\n'.join(
      [f'{make.__name__}({", ".join(takes)}): {make.__doc__.splitlines()[0]}', *lines]
    )


def main() -> None:
  """The whole catalogue."""
  print('\n\n'.join(blocks()))
  print('\nShown with', ', '.join(f'{name} {shown(value)}' for name, value in ARGUMENTS.items()))


if __name__ == '__main__':
  main()
