"""Each family of models beside `transformers`, in one table.

python benchmarks/families.py

Small models with random weights, made and saved by `transformers`: the largest difference of logits
with padding and past sliding windows, in float32; what `transformers` reads back of an export; the
largest difference between decoding with a cache and reading at once; and that of logits with an
adapter that `peft` reads. Writes benchmarks/results/families.json.
"""

import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import peft
import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'models')]

import families  # noqa: E402
from test_families import by_cache, exported, load, ours, rows, theirs  # noqa: E402
from test_lora import with_adapter  # noqa: E402

from nlhf_jax.reporting import tables  # noqa: E402


def measure(name: str, folder: Path) -> dict[str, float | bool]:
  """The row of a family."""
  base, adapter = folder / 'model', folder / 'adapter'
  model = families.save(name, base)
  decoder, params = load(base)
  tokens, mask = rows()
  said = ours(decoder, params, tokens, mask)
  decoded = decoder.logits(params, by_cache(decoder, params, tokens, mask))
  before, after = model.state_dict(), exported(base, folder / 'again')
  values = {
    'logits': gap(said, theirs(model, tokens, mask), mask),
    'export': all(torch.equal(before[tensor], after[tensor]) for tensor in before),
    'decoding': gap(np.asarray(decoded), said, mask),
  }
  decoder, params, _ = with_adapter(base, adapter)
  in_peft = peft.PeftModel.from_pretrained(model, adapter).eval()
  said = ours(decoder, params, tokens, mask)
  return values | {'adapter': gap(said, theirs(in_peft, tokens, mask), mask)}


def gap(one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float:
  """The largest difference where there are tokens."""
  return float(np.abs(one - other)[mask].max())


if __name__ == '__main__':
  table = {}
  for name in families.FAMILIES:
    with tempfile.TemporaryDirectory() as folder:
      table[name] = measure(name, Path(folder))
  versions = {module.__name__: module.__version__ for module in (jax, transformers, torch, peft)}
  results = {'versions': versions, 'families': table}
  path = ROOT / 'benchmarks' / 'results' / 'families.json'
  path.write_text(json.dumps(results, indent=2) + '\n')
  words = {True: 'exact', False: 'NOT exact'}
  cells = [
    [words[value] if isinstance(value, bool) else f'{value:.1e}' for value in row.values()]
    for row in table.values()
  ]
  title = ', '.join(f'{name} {version}' for name, version in versions.items())
  print(tables.format_text(title, list(table), list(table['llama']), cells))
