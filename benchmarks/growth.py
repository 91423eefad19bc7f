"""Time of rollout and update against batch, lengths, vocabulary, width and devices, in a plot.

python benchmarks/growth.py

One size is changed at a time, from the small model of `training.py` at a batch of 8; every point is
measured in a process of its own. Slopes are between the two largest points: 1 is linear, 2
quadratic. Devices are simulated on this machine, so that the best result is a constant time. Writes
benchmarks/results/growth.json and growth.png. With `--programs`, programs are compiled and not run:
see `program_growth.py`.
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
import program_growth
from matplotlib import ticker
from tqdm import tqdm
from training import MODELS, Settings, ours

from nlhf_jax.models import sharding

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
PARTS = ('rollout', 'update')
AXES = {
  'batch': (2, 8, 32),
  'response_length': (16, 64, 256),
  'prompt_length': (16, 64, 256),
  'vocabulary': (1024, 4096, 16_384),
  'width': (64, 128, 256, 512),
  'devices': (1, 2, 4),
}
# Predictions, written before the measurement.
LAWS = {
  'batch': 'linear once the products take longer than reading the weights',
  'response_length': 'linear; quadratic where attention outweighs the layers, from 6 widths on',
  'prompt_length': 'linear in prefill; less for rollouts, which prefill once',
  'vocabulary': 'constant while the head is smaller than the layers, then linear',
  'width': 'quadratic; linear where attention and sampling outweigh the layers',
  'devices': 'constant: the same work, plus communication',
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
  """part -> median seconds; and `peak`, the maximum bytes of the process."""
  count = value if axis == 'devices' else 1
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={count}'
  command = [sys.executable, __file__, '--only', json.dumps(settings_at(axis, value)._asdict())]
  measured = environments.run_json(command, env=os.environ | {'XLA_FLAGS': flags})
  seconds = {part: statistics.median(measured['parts'][part]) for part in PARTS}
  return seconds | {'peak': measured['peak']}


def slope(points: dict[int, float]) -> float:
  """The slope of the logarithms between the two largest points."""
  (x, y), (x2, y2) = sorted(points.items())[-2:]
  return math.log(y2 / y) / math.log(x2 / x)


def plot(found: dict, path: Path) -> None:
  """One panel a size, with logarithmic scales."""
  figure, panels = plt.subplots(2, 3, figsize=(12, 7), layout='constrained')
  for panel, (axis, curve) in zip(panels.flat, found['axes'].items(), strict=True):
    for part in PARTS:
      values = [1e3 * point[part] for point in curve['points'].values()]
      label = f'{part}, slope {curve["slopes"][part]:.2f}'
      panel.loglog(list(curve['points']), values, marker='o', label=label)
    panel.set_xticks(list(curve['points']), list(curve['points']))
    panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter('{x:g}')
    for one in (panel.xaxis, panel.yaxis):
      one.set_minor_locator(ticker.NullLocator())
    panel.set_xlabel(axis.replace('_', ' '))
    panel.set_ylabel('ms')
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
  figure.savefig(path, dpi=110)


def main() -> None:
  """Measures all points, and writes the results and the plot."""
  found = {'machine': environments.machine(), 'axes': {}}
  with tqdm(total=sum(map(len, AXES.values())), unit='point') as bar:
    for axis, values in AXES.items():
      points = {}
      for value in values:
        bar.set_description(f'{axis} {value}')
        points[value] = measure(axis, value)
        bar.update()
      slopes = {part: slope({v: taken[part] for v, taken in points.items()}) for part in PARTS}
      found['axes'][axis] = {'expected': LAWS[axis], 'points': points, 'slopes': slopes}
  plot(found, RESULTS / 'growth.png')
  (RESULTS / 'growth.json').write_text(json.dumps(found, indent=2) + '\n')
  for axis, curve in found['axes'].items():
    slopes = ', '.join(f'{part} {value:.2f}' for part, value in curve['slopes'].items())
    print(f'{axis}: slopes {slopes} (expected: {curve["expected"]})')


if __name__ == '__main__':
  if '--programs' in sys.argv:
    program_growth.main('--seconds' in sys.argv)
  elif '--only' in sys.argv:
    jax.set_mesh(sharding.make_mesh(0, 1, 1)) if jax.device_count() > 1 else None
    print(json.dumps(ours(Settings(**json.loads(sys.argv[-1])), PARTS)))
  else:
    main()
