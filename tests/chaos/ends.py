"""What a run leaves that must not depend on interruptions, as digests."""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as orbax

from nlhf_jax.storage import json_lines

# Times, numbers of compiled programs and of bytes read, the version of the code, and checksums.
TIMES = ('seconds', 'compile_seconds', 'seconds_per_step', 'tokens_per_second')
COUNTS = ('compiled_programs', 'stage_programs', 'model_bytes_read')
UNSTABLE = (*TIMES, *COUNTS, 'code', json_lines.CHECK)
# Files of a finished run that are compared; pages and figures are drawn from these.
WHOLE = ('data.json', 'config.json', 'samples.jsonl', 'results.json')
CURVES = 'metrics.jsonl'

_one_at_a_time = threading.Lock()


def read_end(workdir: Path) -> dict[str, str]:
  """Name of a file or checkpoint in the work directory -> digest of what is in it.

  Learning curves are `metrics.jsonl`; everything else is results, records, data and parameters.
  """
  found = {}
  paths = [workdir / name for name in WHOLE]
  paths += workdir.glob(f'**/{CURVES}')
  paths += workdir.glob('stages/*/stage.json')
  paths += workdir.glob('policies/**/*.json*')
  for path in paths:
    if path.is_file():
      found[str(path.relative_to(workdir))] = _digest_of_json(path)
  for folder in workdir.glob('stages/data-*'):
    for path in folder.iterdir():
      found[str(path.relative_to(workdir))] = _digest(path.read_bytes())
  for folder in workdir.glob('stages/*/checkpoints'):
    found[str(folder.relative_to(workdir))] = _digest_of_checkpoint(folder)
  return found


def _digest_of_json(path: Path) -> str:
  """Of the stable fields or, if the file is damaged, of its bytes."""
  try:
    text = path.read_text()
    lines = text.splitlines() if path.suffix == '.jsonl' else [text]
    return _digest(json.dumps([_stable(json.loads(line)) for line in lines], sort_keys=True))
  except ValueError:
    return _digest(path.read_bytes())


def _stable(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _stable(item) for name, item in value.items() if name not in UNSTABLE}
  return [_stable(item) for item in value] if isinstance(value, list) else value


def _digest_of_checkpoint(folder: Path) -> str:
  try:
    with _one_at_a_time, orbax.training.Checkpointer(folder.absolute()) as checkpointer:
      latest = checkpointer.latest
      tree = None if latest is None else checkpointer.load(latest.step)
  except Exception as error:  # whatever a damaged file makes of the many that orbax raises
    return f'unreadable: {type(error).__name__}'
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    array = np.asarray(leaf)
    digest.update(f'{path} {array.dtype} {array.shape}'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def _digest(content: str | bytes) -> str:
  content = content.encode() if isinstance(content, str) else content
  return hashlib.sha256(content).hexdigest()
