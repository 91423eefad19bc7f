"""Makes stages: their keys, and folders named after the settings that determine them."""

import functools
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from nlhf_jax.experiments.specs import Stage
from nlhf_jax.storage import json_lines

# Settings that change no number of a stage, or no more than how its numbers are rounded.
INCIDENTAL = (
  'accumulate',
  'checkpoint_minutes',
  'evaluate_every',
  'missing_verdicts',
  'on_divergence',
  'remat',
)


def make_stage(name: str, settings: Mapping[str, Any], seed: int, folder: Path) -> Stage:
  """Makes a stage, whose folder is named after a digest of the settings that determine it."""
  settings, incidental = split_settings(settings)
  digest = json_lines.json_digest(settings)
  return Stage(
    name,
    key_from_name(seed, name),
    folder / f'{name}-{digest}',
    settings,
    incidental,
    code_digest(),
  )


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """The settings without those that are incidental at any depth; and these, by their path."""
  kept, incidental = {}, {}
  for name, value in settings.items():
    if name in INCIDENTAL:
      incidental[name] = value
    elif isinstance(value, Mapping):
      kept[name], below = split_settings(value)
      incidental |= {f'{name}.{path}': found for path, found in below.items()}
    else:
      kept[name] = value
  return kept, incidental


def key_from_name(seed: int, name: str) -> jax.Array:
  """A random key that depends on the seed and the name alone."""
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


@functools.cache
def code_digest() -> str:
  """A digest of this package's source."""
  code = hashlib.sha256()
  for source in sorted(Path(__file__).parents[1].rglob('*.py')):
    code.update(source.read_bytes())
  return code.hexdigest()[:10]
