"""The program `nlhf COMMAND [FLAGS]`, also `python -m nlhf_jax COMMAND [FLAGS]`.

Commands:
  run     runs an experiment: nlhf run --config=nash_md
  export  writes a trained policy in the Hugging Face layout
  plan    prints the memory that training needs on a number of devices
  compare writes a page that compares two runs: nlhf compare RUN RUN
  list    lists the shipped configs

`nlhf COMMAND --help` lists the flags of a command; `nlhf --version` prints the version.
"""

import ast
import importlib
import sys
from collections.abc import Iterator, Sequence

from nlhf_jax import __version__, command, configs

MODULES = {
  'run': 'nlhf_jax.main',
  'export': 'nlhf_jax.export',
  'plan': 'nlhf_jax.plan',
  'compare': 'nlhf_jax.compare',
}


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a command; returns the exit status.

  Args:
    arguments: the name of the program, then the command and its flags; by default those with which
      Python was started.
  """
  program, *rest = sys.argv if arguments is None else arguments
  name, *flags = rest or ['']
  if name in MODULES:
    return importlib.import_module(MODULES[name]).main([f'{program} {name}', *flags])
  if name in ('help', '--help', '-h'):
    return command.print_quietly(__doc__)
  if name == '--version':
    return command.print_quietly(f'nlhf_jax {__version__}')
  if name == 'list' and not flags:
    return command.print_quietly('\n'.join(list_configs()))
  choices = f'must be one of {", ".join((*MODULES, "list"))}; nlhf --help explains them.'
  if not name:
    problem = f'the first argument {choices}'
  elif name == 'list':
    problem = f"nlhf list takes no arguments; leave '{flags[0]}' out."
  else:
    problem = f"the command '{name}' {choices}"
  print(f'error: {problem}', file=sys.stderr)
  return 2


def list_configs() -> Iterator[str]:
  """Each shipped config, with the first line of its docstring."""
  names = configs.names()
  width = max(map(len, names))
  for name in names:
    tree = ast.parse((configs.FOLDER / f'{name}.py').read_text())
    yield f'{name:<{width}}  {(ast.get_docstring(tree) or "").partition(chr(10))[0]}'


if __name__ == '__main__':
  sys.exit(main())
