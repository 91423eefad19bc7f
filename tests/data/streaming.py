"""Reads a file as a run does and records a digest of every batch, to be killed and resumed.

python tests/data/streaming.py FILE FOLDER STEPS SIZE

makes a corpus of FILE, goes on in FOLDER/batches where it stopped, and ends with its peak memory.
"""

import hashlib
import json
import sys
from pathlib import Path

import jax

from nlhf_jax.data import dataset
from nlhf_jax.data.batches import batches, swap_sides


def make(path: Path, folder: Path) -> dataset.Corpus:
  """The corpus of a file of graded comparisons."""
  data = dataset.FileData(
    path=str(path),
    schema='graded',
    split='',
    part='1/1',
    skip_bad=False,
    held_out=0.01,
    prompt_length=128,
    response_length=64,
    vocabulary=512,
  )
  return dataset.make_file_corpus(data, seed=0, pretrained='', folder=folder)


def main() -> None:
  path, folder, steps, size = sys.argv[1:]
  corpus = make(Path(path), Path(folder))
  source = swap_sides(batches(corpus.train.comparisons, int(size), seed=0))
  noted = Path(folder) / 'batches'
  done = noted.read_text().count('\n') if noted.exists() else 0
  with noted.open('a') as file:
    for step in range(done, int(steps)):
      digest = hashlib.sha256()
      for leaf in jax.tree.leaves(source[step]):
        digest.update(str(leaf.shape).encode() + leaf.tobytes())
      print(step, digest.hexdigest(), file=file, flush=True)
  # Of this program only: getrusage includes the peak of the process that started it.
  status = Path('/proc/self/status').read_text()
  peak = 1024 * int(status.split('VmHWM:')[1].split()[0])
  print(json.dumps({'peak': peak, 'train': corpus.account['train']['comparisons']}))


if __name__ == '__main__':
  main()
