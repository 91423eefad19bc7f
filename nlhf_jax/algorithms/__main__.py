"""Prints the catalogue: `python -m nlhf_jax.algorithms`."""

import inspect
from collections.abc import Iterator

from nlhf_jax.algorithms.algorithm import Side, always
from nlhf_jax.algorithms.catalogue import ALGORITHMS
from nlhf_jax.algorithms.described import describe
from nlhf_jax.algorithms.selection import unchanged

# Arguments with which the algorithms are made and printed; others are 1.
ARGUMENTS = {
  **{'tau': 0.06, 'beta': 0.125, 'eta': 0.18, 'rate': 0.02, 'ratio': 0.25, 'temperature': 2.0},
  **{'every': 25, 'reset': 150, 'samples': 5, 'queue': 4, 'rounds': 2, 'candidates': 7, 'keep': 4},
  **{'epsilon': 0.1, 'delta': 1.0, 'weight': 0.1, 'desirable': 1.0, 'undesirable': 1.0},
  **{'r_max': 2.0, 'responses': 2, 'opponents': 4, 'k': 4, 'psi': 'log_odds', 'clip': 0.2},
  **{'gamma': 0.5, 'log_z': 0.5, 'forward': 0.1, 'reverse': 0.1, 'alpha': 0.001},
}


def describe_side(side: Side | None) -> str:
  """Mixtures as products of powers, with the number of responses from each."""
  if side is None or isinstance(side, str):
    return side or ''
  texts = [
    ' '.join(slot if weight == 1 else f'{slot}^{describe(weight)}' for slot, weight in mix.items())
    for mix in side
  ]
  counts = {text: texts.count(text) for text in texts}
  return ', '.join(f'{count} x {text}' if count > 1 else text for text, count in counts.items())


def blocks() -> Iterator[str]:
  """Each algorithm as a few lines, in the order of the catalogue."""
  for name, make in ALGORITHMS.items():
    parameters = list(inspect.signature(make).parameters)
    algorithm = make(**{parameter: ARGUMENTS.get(parameter, 1) for parameter in parameters})
    references = algorithm.references.items()
    facts = {
      'left': describe_side(algorithm.left),
      'right': describe_side(algorithm.right),
      'select': '' if algorithm.select is unchanged else describe(algorithm.select),
      'loss': describe(algorithm.loss),
      'references': ', '.join(f'{slot} {describe(rule)}' for slot, rule in references),
      'step': '' if algorithm.step is always else describe(algorithm.step),
    }
    lines = [f'  {fact:<11} {text}' for fact, text in facts.items() if text]
    yield '\n'.join([f'{name}({", ".join(parameters)}): {make.__doc__.splitlines()[0]}', *lines])


def main() -> None:
  """Prints the whole catalogue."""
  print('\n\n'.join(blocks()))
  arguments = ', '.join(f'{name} {describe(value)}' for name, value in ARGUMENTS.items())
  print('\nPrinted with', arguments)


if __name__ == '__main__':
  main()
