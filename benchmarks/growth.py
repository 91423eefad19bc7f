"""How the parts of a step grow with batch, lengths, vocabulary, width and devices, in a plot.

python benchmarks/growth.py

Each is changed alone, from the small model of `training.py` at a batch of 8; every point is a
process of its own. Slopes are those between the two largest points: 1 is linear, 2 quadratic.
Devices are simulated, and share this machine: there the best that can be is that nothing is lost.
Writes benchmarks/results/growth.json and growth.png.
"""

import json
import math
import os
import statistics
import sys
from pathlib import Path

import environments
import jax
import matplotlib.pyplot as plt
from tqdm import tqdm
from training import MODELS, Settings, ours

from nlhf_jax.models import sharding

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
PARTS = ('rollout', 'update', 'step')
AXES = {
  'batch': (2, 8, 32),
  'response_length': (16, 64, 256),
  'prompt_length': (16, 64, 256),
  'vocabulary': (1024, 4096, 16_384),
  'width': (64, 128, 256, 512),
  'devices': (1, 2, 4),
}
# What should happen, before it is measured.
LAWS = {
  'batch': 'linear, once weights are read faster than rows are multiplied with them',
  'response_length': 'linear, and quadratic where attention outweighs the layers: from 6 widths on',
  'prompt_length': 'linear in the prompts read; rollouts less than that, they read them once',
  'vocabulary': 'flat while the head is smaller than the layers, then linear',
  'width': 'quadratic; linear where attention and sampling outweigh the layers',
  'devices': 'flat: the same work, and what devices say to one another',
}


def settings_at(axis: str, value: int) -> Settings:
  """The settings with one of them changed."""
  base = Settings(MODELS['small'], batch=8, runs=3)
  if axis == 'vocabulary':
    return base._replace(model=base.model | {'vocab_size': value})
  if axis == 'width':
    hidden = 8 * round(688 * value / 256 / 8)
    wide = {'hidden_size': value, 'intermediate_size': hidden}
    return base._replace(model=base.model | wide)
  return base if axis == 'devices' else base._replace(**{axis: value})


def measure(axis: str, value: int) -> dict[str, float]:
  """Part -> median seconds."""
  count = value if axis == 'devices' else 1
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={count}'
  command = [sys.executable, __file__, '--only', json.dumps(settings_at(axis, value)._asdict())]
  said = environments.said(command, env=os.environ | {'XLA_FLAGS': flags})
  return {part: statistics.median(said['parts'][part]) for part in PARTS}


def slope(points: dict[int, float]) -> float:
  """Of the logarithms, between the two largest points."""
  (x, y), (x2, y2) = sorted(points.items())[-2:]
  return math.log(y2 / y) / math.log(x2 / x)


def plot(found: dict, path: Path) -> None:
  """A panel an axis, both scales logarithmic."""
  figure, panels = plt.subplots(2, 3, figsize=(12, 7), layout='constrained')
  for panel, (axis, points) in zip(panels.flat, found['axes'].items(), strict=True):
    for part in PARTS:
      values = [1e3 * seconds[part] for seconds in points['seconds'].values()]
      label = f'{part}, slope {points["slopes"][part]:.2f}'
      panel.loglog(list(points['seconds']), values, marker='o', label=label)
    panel.set_xlabel(axis.replace('_', ' '))
    panel.set_ylabel('ms')
    panel.grid(alpha=0.3, which='both')
    panel.legend(frameon=False)
  figure.savefig(path, dpi=110)


def main() -> None:
  """Measures, plots and writes all of it."""
  found = {'machine': environments.machine(), 'axes': {}}
  with tqdm(total=sum(map(len, AXES.values())), unit='point') as bar:
    for axis, values in AXES.items():
      seconds = {}
      for value in values:
        bar.set_description(f'{axis} {value}')
        seconds[value] = measure(axis, value)
        bar.update()
      slopes = {part: slope({v: taken[part] for v, taken in seconds.items()}) for part in PARTS}
      found['axes'][axis] = {'expected': LAWS[axis], 'seconds': seconds, 'slopes': slopes}
  plot(found, RESULTS / 'growth.png')
  (RESULTS / 'growth.json').write_text(json.dumps(found, indent=2) + '\n')
  for axis, points in found['axes'].items():
    told = ', '.join(f'{part} {value:.2f}' for part, value in points['slopes'].items())
    print(f'{axis}: slopes {told} (expected: {points["expected"]})')


if __name__ == '__main__':
  if '--only' in sys.argv:
    jax.set_mesh(sharding.make_mesh(0, 1, 1)) if jax.device_count() > 1 else None
    print(json.dumps(ours(Settings(**json.loads(sys.argv[-1])), play_alone=True)))
  else:
    main()
