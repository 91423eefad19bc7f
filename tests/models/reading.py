"""Pretrained models of random weights, and what each of several processes reads of one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.test_distributed import ROOT, start_processes

CONFIG = {
  'model_type': 'llama',
  'num_attention_heads': 4,
  'rms_norm_eps': 1e-5,
  'max_position_embeddings': 64,
  'tie_word_embeddings': True,
}
WRITING = """
import sys
from pathlib import Path

import jax
import numpy as np

from nlhf_jax.models import architectures, weights
from nlhf_jax.models.transformer import make_decoder

folder, random = Path(sys.argv[1]), np.random.default_rng(0)
family, sizes = architectures.read_architecture(folder)
shapes = jax.eval_shape(make_decoder(sizes).init, jax.random.key(0))
params = jax.tree.map(lambda leaf: random.random(leaf.shape, np.float32), shapes)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
weights.save(folder, family, params, 'float32', most=int(size / 3.5))
"""
# Bytes from the disk are those that the system counts, pages that it reads ahead included.
READING = """
import json, sys
from pathlib import Path

import jax

from nlhf_jax import distributed
from nlhf_jax.models import architectures, sharding, weights
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.storage import hub, model_files

def from_disk():
  counts = Path('/proc/self/io')
  return int(counts.read_text().split('read_bytes: ')[1].split()[0]) if counts.exists() else 0

folder = Path(sys.argv[1])
distributed.join(sys.argv[2].partition('=')[2])
model_files.keep_digests(folder.parent)
digest = hub.fingerprint(str(folder))
hashed, disk = model_files.bytes_read(), from_disk()
family, sizes = architectures.read_architecture(folder)
shapes = jax.eval_shape(make_decoder(sizes).init, jax.random.key(0))
with jax.set_mesh(sharding.make_mesh(0, jax.process_count(), 1)):
  params = weights.load(folder, family, shapes, sharding.parameter_sharding)
shards = [shard for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards]
share = sum(shard.data.nbytes for shard in shards)
read = model_files.bytes_read() - hashed
print(json.dumps([digest, hashed, read, share, from_disk() - disk]), file=sys.stderr)
"""


class Read(NamedTuple):
  """What a process read of a model: its fingerprint, and bytes.

  `hashed` are read for the fingerprint, `weights` of the weights, of which the process holds
  `share`; `disk` came from the disk while the weights were read, and not from memory.
  """

  fingerprint: str
  hashed: int
  weights: int
  share: int
  disk: int


def write_model(folder: Path, width: int, layers: int, vocabulary: int) -> int:
  """Writes a model of random weights in four files; returns the bytes of its folder."""
  folder.mkdir()
  sizes = {'hidden_size': width, 'intermediate_size': 4 * width, 'num_hidden_layers': layers}
  (folder / 'config.json').write_text(json.dumps(CONFIG | sizes | {'vocab_size': vocabulary}))
  subprocess.run([sys.executable, '-c', WRITING, str(folder)], cwd=ROOT, check=True)
  return sum(path.stat().st_size for path in folder.iterdir())


def read_model(count: int, folder: Path) -> list[Read]:
  """Loads a model in several processes, each of which holds a part; what each of them read."""
  programs = start_processes(count, [sys.executable, '-c', READING, str(folder)])
  printed = [program.communicate(timeout=500)[1] for program in programs]
  assert not any(program.returncode for program in programs), printed
  return [Read(*json.loads(text.splitlines()[-1])) for text in printed]
