"""The configs that are shipped, importable as `nlhf_jax.configs.NAME`.

In a wheel they lie beside this file, in the folder `configs`; in the repository in `configs` at its
top level. This module is the package of both, so that `from nlhf_jax.configs import base` works in
either place.
"""

from pathlib import Path

_HERE = Path(__file__).parent
FOLDER = next(path for path in (_HERE / 'configs', _HERE.parent / 'configs') if path.is_dir())

__path__ = [str(FOLDER)]


# The kinds of experiments, each a folder in nlhf_jax/experiments, and a shipped config of the kind.
EXAMPLES = {
  'evaluate': 'evaluate',
  'judges': 'preferences',
  'language': 'nash_md',
  'sample_complexity': 'sample_complexity',
  'tabular': 'tabular',
  'token_game': 'token_game',
}


def names() -> list[str]:
  """The names of the shipped configs, without `base`, which the others are made of."""
  return sorted(path.stem for path in FOLDER.glob('*.py') if path.stem != 'base')
