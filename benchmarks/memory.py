"""Plans Nash-MD at 1B, 8B and 70B on 1, 8, 64 and 256 devices, and prints the table of the docs.

python benchmarks/memory.py            # plans all, in five minutes on two cores
python benchmarks/memory.py --table    # prints the table of the results as they are

Devices have 80 GB and are simulated; no weights are needed, only the sizes of Llama 3. With
`--topology=v5e:16x16` the size 8b is planned by the compiler for TPUs instead (extra `[tpu]`).
Writes benchmarks/results/memory.json; cases that are there already are not planned again.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import environments
import jax
from tqdm import tqdm

from nlhf_jax import command
from nlhf_jax.experiments import memory_plan, topology
from nlhf_jax.models import sharding

RESULTS = Path(__file__).parent / 'results' / 'memory.json'
SIZES = {
  '1b': (16, 2048, 32, 8, 8192, True),
  '8b': (32, 4096, 32, 8, 14_336, False),
  '70b': (80, 8192, 64, 8, 28_672, False),
}
FIELDS = (
  'num_hidden_layers',
  'hidden_size',
  'num_attention_heads',
  'num_key_value_heads',
  'intermediate_size',
  'tie_word_embeddings',
)
DEVICES = (1, 8, 64, 256)
MEMORY = 80e9
MOST_PARTS = 64  # devices that one copy of the parameters is split over; the others have copies


def make_config(size: str, devices: int, folder: Path):
  """The config of a policy, one example a device and at least 64, with its layers recomputed."""
  message = dict(zip(FIELDS, SIZES[size], strict=True))
  message |= {'model_type': 'llama', 'vocab_size': 128_256, 'max_position_embeddings': 8192}
  (folder / 'config.json').write_text(json.dumps(message))
  config = command.load_config('nash_md')
  config.data.update(prompt_length=512, response_length=512)
  config.model.update(hf=str(folder), compute='bfloat16', remat='layers')
  config.mesh.update(data=0, fsdp=min(devices, MOST_PARTS))
  batch = max(64, devices)
  config.policies.nash_md.update(batch=batch, accumulate=max(64 // devices, 1))
  return config


def measure(size: str, devices: int, name: str) -> dict:
  """Bytes of the parts on each device, and the notes of the plan."""
  found, memory = (), MEMORY
  if name:
    found = topology.find_devices(name)
    devices, memory = len(found), topology.device_memory(found[0])
  else:
    jax.config.update('jax_num_cpu_devices', devices)
  machine = memory_plan.Machine(found, devices, memory)
  with tempfile.TemporaryDirectory() as folder, sharding.use_devices(found):
    plan = memory_plan.make_plan(make_config(size, devices, Path(folder)), 'nash_md', machine)
  facts = {'peak': plan.use.peak, 'notes': list(plan.notes), 'memory': memory}
  return plan.use._asdict() | facts


def table(results: dict) -> str:
  """The table of the docs, in gigabytes."""
  lines = ['| parameters | devices | between steps | update | rollout | peak | fits |']
  lines.append('|---|---|---|---|---|---|---|')
  for case, found in results.items():
    size, where = case.split(' on ')
    lasting = found['slots'] + found['optimizer'] + found['kept']
    parts = [lasting, found['update'], found['rollout'], found['peak']]
    cells = [f'{part / 1e9:.3g}' if part < 1e12 else f'{part / 1e9:,.0f}' for part in parts]
    fits = 'yes' if found['peak'] <= found['memory'] else 'no'
    where += f' of {found["memory"] / 1e9:.3g} GB'
    lines.append(f'| {" | ".join([size.upper(), where, *cells, fits])} |')
  return '\n'.join(lines)


def main(name: str) -> None:
  """Plans what has not been planned yet, each in a process of its own."""
  results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  cases = {f'{size} on {count}': (size, count, '') for size in SIZES for count in DEVICES}
  if name:
    cases = {f'8b on {name}': ('8b', 0, name)}
  for case, wanted in tqdm(cases.items()):
    if case not in results:
      run = [sys.executable, __file__, '--only', *wanted]
      results[case] = environments.run_json(run, env=os.environ | {'JAX_PLATFORMS': 'cpu'})
      RESULTS.write_text(json.dumps(results, indent=2) + '\n')
  print(table(results))


if __name__ == '__main__':
  if '--only' in sys.argv:
    size, devices, name = sys.argv[2:5]
    print(json.dumps(measure(size, int(devices), name)))
  elif '--table' in sys.argv:
    print(table(json.loads(RESULTS.read_text())))
  else:
    main(next((flag.partition('=')[2] for flag in sys.argv if '--topology=' in flag), ''))
