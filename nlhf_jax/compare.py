"""Compares two finished runs on one page: `nlhf compare RUN RUN [--to=FILE.html]`.

RUN is the work directory of a run. Both runs are of one kind of experiment. The page shows the
settings that differ, win rates and learning curves of both, all figures that both have, and their
responses to the same prompts. `python -m nlhf_jax.compare` does the same.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from nlhf_jax import __version__, command
from nlhf_jax.errors import UserError
from nlhf_jax.storage.texts import printable

TO = 'compare.html'
HELP = f'{__doc__}\nFlags:\n  --to: the page to write; default {TO}\n'


def main(arguments: Sequence[str]) -> int:
  """Writes the page of two runs; returns the exit status."""
  _, *given = arguments
  if '--help' in given or '-h' in given:
    return command.print_quietly(HELP)
  if '--version' in given:
    return command.print_quietly(f'nlhf_jax {__version__}')
  try:
    runs, to = parse(given)
    # Imported late, so that a mistake in the arguments does not wait for JAX.
    page = importlib.import_module('nlhf_jax.reporting.comparison_page')
    page.write(to, *map(page.read_run, runs))
  except UserError as error:
    print(f'error: {printable(str(error))}', file=sys.stderr)
    return 2
  return command.print_quietly(f'Comparison: {printable(str(to))}')


def parse(given: Sequence[str]) -> tuple[list[Path], Path]:
  """The two work directories, and the page to write.

  Raises:
    UserError: if there are not two different folders, or a flag is unknown.
  """
  flags = [text for text in given if text.startswith('-')]
  runs = [Path(text) for text in given if not text.startswith('-')]
  to = TO
  for flag in flags:
    name, _, value = flag.partition('=')
    if name != '--to' or not value:
      raise UserError(f"'{flag}' is not a flag of nlhf compare; the only one is --to=FILE.html.")
    to = value
  if len(runs) != 2:
    raise UserError(
      f'nlhf compare takes the work directories of two runs, not {len(runs)}: '
      'nlhf compare runs/nash_md runs/inpo.'
    )
  if runs[0].resolve() == runs[1].resolve():
    raise UserError(f"'{runs[0]}' and '{runs[1]}' are the same run; give two different ones.")
  if Path(to).is_dir():
    raise UserError(f"--to: '{to}' is a folder; give the name of a page, such as {to}/{TO}.")
  return runs, Path(to)


if __name__ == '__main__':
  sys.exit(main(sys.argv))
