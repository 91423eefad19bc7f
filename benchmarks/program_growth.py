"""Bytes and text of compiled programs against devices, batch, lengths, vocabulary and depth.

python benchmarks/growth.py --programs [--seconds]

One size is changed at a time, from a model of 4 layers of width 64. The programs of a step of
self-play are compiled, and not run, so that only seconds depend on the machine: `--seconds` records
them, and is for an idle one. Bytes are those that a device needs besides the state of training.
Writes benchmarks/results/program_growth.json and .png.
"""

import json
import os
import sys
import time
from pathlib import Path

import environments
import jax
import matplotlib.pyplot as plt
from matplotlib import ticker
from tqdm import tqdm

from nlhf_jax import command
from nlhf_jax.experiments import memory_plan, program_memory

RESULTS = Path(__file__).parent / 'results'
SIZES = {'layers': 4, 'width': 64, 'heads': 4, 'key_heads': 2, 'head_size': 16, 'hidden': 128}
BASE = {'batch': 32, 'prompt_length': 64, 'response_length': 64, 'vocabulary': 1024}
AXES = {
  'devices': (1, 2, 4, 8),
  'batch': (8, 32, 128),
  'prompt_length': (64, 512, 4096),
  'response_length': (64, 512, 4096),
  'vocabulary': (1024, 16_384, 262_144),
  'layers': (4, 8, 16, 32),
}
LABELS = {'update': 'MB a device, update', 'rollout': 'MB a device, rollout', 'text': 'MB of text'}


def make_config(axis: str, value: int):
  """The config with one size changed."""
  config = command.load_config('nash_md')
  settings = SIZES | BASE | {axis: value}
  config.model.update({name: settings[name] for name in SIZES}, remat='layers')
  config.data.update({name: settings[name] for name in BASE if name != 'batch'})
  config.mesh.update(data=1, fsdp=settings.get('devices', 1))
  config.policies.self_play.update(batch=settings['batch'], judge='lengths')
  config.judges = 'lengths'  # which has no weights
  return config


def measure(axis: str, value: int, seconds: bool) -> dict[str, float]:
  """Bytes of update and rollout on each device, characters of the update's text, and seconds."""
  texts, compile_program = [], program_memory.compile_program

  def recorded(lowered):
    compiled, program = compile_program(lowered)
    texts.append(len(compiled.as_text()))
    return compiled, program

  count = value if axis == 'devices' else 1
  jax.config.update('jax_num_cpu_devices', count)
  program_memory.compile_program = recorded
  start = time.perf_counter()
  plan = memory_plan.make_plan(
    make_config(axis, value), 'self_play', memory_plan.Machine((), count, 80e9)
  )
  found = {'update': plan.use.update, 'rollout': plan.use.rollout, 'text': texts[0]}
  return found | ({'seconds': time.perf_counter() - start} if seconds else {})


def plot(axes: dict, path: Path) -> None:
  """One panel a size, with logarithmic scales."""
  figure, panels = plt.subplots(2, 3, figsize=(10, 5.5), layout='constrained')
  for panel, (axis, points) in zip(panels.flat, axes.items(), strict=True):
    for name, label in LABELS.items():
      panel.loglog(
        list(points), [1e-6 * point[name] for point in points.values()], 'o-', label=label
      )
    if all('seconds' in point for point in points.values()):
      panel.loglog(list(points), [point['seconds'] for point in points.values()], 'o:', label='s')
    panel.set_xticks(list(points), list(points))
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    panel.set_xlabel(axis.replace('_', ' '))
    panel.grid(alpha=0.3)
  panels.flat[0].legend(frameon=False, fontsize=8)
  figure.savefig(path, dpi=80)


def main(seconds: bool) -> None:
  """Measures all points, each in a process of its own, and writes the results and the plot."""
  axes, script = {}, Path(__file__)
  for axis, value in tqdm([(axis, value) for axis, values in AXES.items() for value in values]):
    wanted = [axis, value, *['--seconds'] * seconds]
    run = [sys.executable, script, *wanted]
    found = environments.run_json(run, env=os.environ | {'JAX_PLATFORMS': 'cpu'})
    axes.setdefault(axis, {})[value] = found
  RESULTS.joinpath('program_growth.json').write_text(
    json.dumps({'machine': environments.machine(), 'axes': axes}, indent=2) + '\n'
  )
  plot(axes, RESULTS / 'program_growth.png')


if __name__ == '__main__':
  print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), '--seconds' in sys.argv)))
