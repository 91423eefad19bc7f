"""What four processes read of a pretrained model of 500 MB in four files, at two starts.

python benchmarks/model_reads.py

The processes are on this machine, over loopback; each holds a quarter of every large array. At the
first start the first process computes the digests of the files too. Before each start the system
is asked to drop the files from memory, so that `disk` shows what is really read; of one machine,
each page is read by the process that needs it first.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.models.reading import read_model, write_model

SIZES = {'width': 1024, 'layers': 7, 'vocabulary': 8192}


def drop_from_memory(folder: Path) -> None:
  """Asks the system to read the files of a folder from the disk the next time."""
  for path in folder.iterdir():
    with path.open('rb') as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
  """Prints a line for each process and start."""
  with tempfile.TemporaryDirectory() as place:
    folder = Path(place) / 'model'
    size = write_model(folder, **SIZES)
    files = len(list(folder.glob('*.safetensors')))
    print(f'{size / 1e6:.1f} MB in {files} files')
    time.sleep(2.5)  # digests of young files are not kept
    for start in ('first', 'second'):
      drop_from_memory(folder)
      for number, row in enumerate(read_model(4, folder)):
        print(
          f'{start} start, process {number}: {row.hashed / 1e6:.1f} MB for digests, '
          f'{row.weights / 1e6:.1f} MB of weights, {row.weights / row.share:.3f} times its share '
          f'of {row.share / 1e6:.1f} MB; {row.disk / 1e6:.1f} MB from the disk'
        )


if __name__ == '__main__':
  main()
