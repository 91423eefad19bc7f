"""Loading a model takes no more memory, and reads no more of its files, than it needs."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.models.reading import read_model, write_model

PROGRAM = """
import sys
from pathlib import Path

import jax

from nlhf_jax.models import architectures, weights
from nlhf_jax.models.transformer import make_decoder

def of_process(field):
  return 1024 * int(next(
    line.split()[1] for line in open('/proc/self/status') if line.startswith(field)
  ))

folder = Path(sys.argv[1])
family, sizes = architectures.read_architecture(folder)
shapes = jax.eval_shape(make_decoder(sizes).init, jax.random.key(0))
here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
jax.block_until_ready(jax.device_put(jax.numpy.zeros(3), here))
if sys.argv[2] == 'write':
  zeros = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)
  weights.save(folder, family, zeros, 'float32', most=int(sys.argv[3]))
else:
  before = of_process('VmRSS')
  Path('/proc/self/clear_refs').write_text('5')  # resets the peak
  params = jax.block_until_ready(weights.load(folder, family, shapes, lambda path, leaf: here))
  held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
  print(of_process('VmHWM') - before - held, held, largest)
"""


@pytest.mark.slow
@pytest.mark.skipif(
  not Path('/proc/self/clear_refs').exists(), reason='only Linux reports peak memory'
)
def test_loading_holds_one_tensor_and_one_file(tmp_path):
  (tmp_path / 'config.json').write_text(
    '{"model_type": "llama", "vocab_size": 16384, "hidden_size": 512, "intermediate_size": 2048, '
    '"num_hidden_layers": 8, "num_attention_heads": 8, "max_position_embeddings": 64, '
    '"rms_norm_eps": 1e-5, "tie_word_embeddings": true}'
  )
  shard = 40 * 10**6

  def run(task):
    done = subprocess.run(
      [sys.executable, '-c', PROGRAM, str(tmp_path), task, str(shard)],
      cwd=Path(__file__).parents[2],
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout

  run('write')
  files = list(tmp_path.glob('*.safetensors'))
  assert len(files) > 4
  # The least of three: on a busy machine, memory that is free already is returned late.
  read = [tuple(map(int, re.findall(r'-?\d+', run('read')))) for _ in range(3)]
  beside, held, largest = min(read)
  assert held > 2 * (largest + shard)
  assert beside < largest + max(file.stat().st_size for file in files)


@pytest.mark.slow
def test_four_processes_read_their_shares_and_hash_once(tmp_path):
  folder = tmp_path / 'model'
  size = write_model(folder, width=256, layers=4, vocabulary=8192)
  assert len(list(folder.glob('*.safetensors'))) == 4
  time.sleep(2.5)  # digests of young files are not kept
  first, second = (read_model(4, folder) for _ in range(2))
  assert [row.hashed for row in first] == [size, 0, 0, 0]
  assert [row.hashed for row in second] == [0, 0, 0, 0]
  assert len({row.fingerprint for row in first + second}) == 1
  for row in first + second:
    assert row.weights <= 1.2 * row.share < 0.4 * size
