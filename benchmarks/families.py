"""Compares each family of models with `transformers`, in one table.

python benchmarks/families.py

Small models with random weights are made and saved by `transformers`. The columns are the largest
difference of logits in float32, with padding and beyond sliding windows; whether an export is
loaded by `transformers` bit for bit; the largest difference between cached decoding and prefill;
and that of logits with an adapter that `peft` loads. Writes benchmarks/results/families.json.
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
sys.path.insert(0, str(ROOT))

from nlhf_jax.reporting import formatting  # noqa: E402
from tests.models import families  # noqa: E402
from tests.models.test_families import (  # noqa: E402
  decode_in_steps,
  exported,
  load,
  ours,
  rows,
  theirs,
)
from tests.models.test_lora import save_adapter  # noqa: E402


def measure(name: str, folder: Path) -> dict[str, float | bool]:
  """The table's row of a family."""
  base, adapter = folder / 'model', folder / 'adapter'
  model = families.save(name, base)
  decoder, params = load(base)
  tokens, mask = rows()
  logits = ours(decoder, params, tokens, mask)
  decoded = decoder.logits(params, decode_in_steps(decoder, params, tokens, mask, step=1))
  before, after = model.state_dict(), exported(base, folder / 'again')
  values = {
    'logits': gap(logits, theirs(model, tokens, mask), mask),
    'export': all(torch.equal(before[tensor], after[tensor]) for tensor in before),
    'decoding': gap(np.asarray(decoded), logits, mask),
  }
  decoder, params, _ = save_adapter(base, adapter)
  in_peft = peft.PeftModel.from_pretrained(model, adapter).eval()
  logits = ours(decoder, params, tokens, mask)
  return values | {'adapter': gap(logits, theirs(in_peft, tokens, mask), mask)}


def gap(one: np.ndarray, other: np.ndarray, mask: np.ndarray) -> float:
  """The largest difference at real tokens."""
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
  print(formatting.format_text(title, list(table), list(table['llama']), cells))
