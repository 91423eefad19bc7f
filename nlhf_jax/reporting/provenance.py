"""How a report was made: the command, the settings, the code, the device and the time."""

import importlib
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax

import nlhf_jax
from nlhf_jax import compilation, configs
from nlhf_jax.storage import json_lines


class Made(NamedTuple):
  """How a page was made: facts by name, settings as (name, default, value), seconds by stage."""

  facts: Mapping[str, str]
  defaults: str  # the config whose values are the defaults; empty if the settings are unknown
  settings: list[tuple[str, str, str]]
  seconds: Mapping[str, float]


def describe(workdir: Path, seconds: Mapping[str, float]) -> Made:
  """How the run in a work directory was made, as far as this process knows."""
  config = read_config(workdir)
  source, changed = '', []
  if config:
    source, defaults = find_defaults(config)
    changed = differences(defaults, config)
  devices = jax.devices()
  facts = {
    'Command': _command(),
    'Version': f'nlhf_jax {nlhf_jax.__version__}',
    'Commit': _commit(),
    'Device': f'{len(devices)} \u00d7 {devices[0].device_kind} ({devices[0].platform})',
    'Software': f'Python {platform.python_version()}, JAX {jax.__version__}',
    'Seed': str(config['seed']) if 'seed' in config else '',
    'Programs compiled': f'{_count_programs(workdir):,}',
  }
  return Made({name: fact for name, fact in facts.items() if fact}, source, changed, seconds)


def describe_comparison(command: str) -> Made:
  """How a page on several runs was made, by a command."""
  facts = {'Command': command, 'Version': f'nlhf_jax {nlhf_jax.__version__}', 'Commit': _commit()}
  return Made({name: fact for name, fact in facts.items() if fact}, '', [], {})


def read_config(workdir: Path) -> dict[str, Any]:
  """The config of a run; empty without a readable one."""
  try:
    config = json_lines.read_json(workdir / 'config.json')
  except (OSError, ValueError):
    return {}
  return config if isinstance(config, dict) else {}


def find_defaults(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
  """The name and the settings of the shipped config with the fewest differences from this one."""
  experiment = config.get('experiment')
  arguments = ['file'] if config.get('data', {}).get('source') == 'file' else []
  found = {}
  for name in configs.names():
    shipped = _shipped(name, *arguments)
    if shipped and shipped['experiment'] == experiment:
      found[':'.join([name, *arguments])] = shipped
  if not found:
    return '', dict(config)
  preferred = configs.EXAMPLES.get(experiment, '')
  name = min(
    found,
    key=lambda one: (
      len(differences(found[one], config)),
      one.partition(':')[0] != preferred,
      one,
    ),
  )
  return name, found[name]


@cache
def _shipped(name: str, *arguments: str) -> dict[str, Any]:
  """The settings of a shipped config; empty if it does not take the arguments."""
  try:
    config = importlib.import_module(f'{configs.__name__}.{name}').get_config(*arguments)
  except (TypeError, ValueError):
    return {}
  return json.loads(json.dumps(config.to_dict()))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
  """The fields in which two configs differ, each with both values; an en dash for none."""
  old, new = flatten(before), flatten(after)
  show = lambda fields, name: json.dumps(fields[name]) if name in fields else '\u2013'
  return [
    (name, show(old, name), show(new, name))
    for name in {**old, **new}
    if (name in old, old.get(name)) != (name in new, new.get(name))
  ]


def flatten(section: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """The values of a section and of those in it, by their names with dots."""
  found = {}
  for name, value in section.items():
    found |= (
      flatten(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
    )
  return found


def _command() -> str:
  """The command line of this process, if it is one that runs an experiment."""
  given = [text for text in sys.argv[1:] if text != 'run']
  if not any(text.startswith('--config') for text in given):
    return ''
  return shlex.join(['nlhf', 'run', *given])


@cache
def _commit() -> str:
  """The commit of the checkout that the package is imported from, and whether it was changed."""
  root = Path(nlhf_jax.__file__).parents[1]
  if not (root / '.git').exists():
    return ''
  git = ['git', '-C', str(root)]
  try:
    read = lambda *words: subprocess.run(
      [*git, *words], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
    changed = read('status', '--porcelain', '--', 'nlhf_jax', 'configs')
    return read('rev-parse', '--short=12', 'HEAD') + (', with changes' if changed else '')
  except (OSError, subprocess.SubprocessError):
    return ''


def _count_programs(workdir: Path) -> int:
  """Of the process that compiled most, by the learning curves; without any, of this process."""
  path = workdir / 'metrics.jsonl'
  counts = [row['compiled_programs'] for row in json_lines.read(path) if 'compiled_programs' in row]
  return max(counts) if counts else compilation.count_programs()
