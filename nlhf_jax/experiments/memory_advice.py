"""Finds settings with which a policy fits into memory: each is tried before it is printed."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from nlhf_jax.errors import UserError

Change = dict[str, Any]  # field, such as mesh.fsdp -> value


def print_advice(config: ConfigDict, name: str, machine: Any, make_plan: Callable) -> None:
  """Prints changes with which a policy was found to fit, or that none of those tried is enough.

  Args:
    config: in which the policy does not fit.
    name: of the policy.
    machine: to train it on.
    make_plan: that of `memory_plan`.
  """
  print(f'\n{name}: looking for settings with which it fits ...', flush=True)
  change, peak = find_fitting(config, name, machine, make_plan)
  flags = ' '.join(f'--config.{field}={value}' for field, value in change.items())
  if peak <= machine.memory:
    print(f'{name} fits, at {peak / 1e9:.4g} GB, with:\n  {flags}')
  else:
    tried = f' With all that was tried it needs {peak / 1e9:.4g} GB:\n  {flags}' if flags else ''
    print(f'{name} needs more devices, more memory or a smaller model.{tried}')


def find_fitting(
  config: ConfigDict, name: str, machine: Any, make_plan: Callable
) -> tuple[Change, int]:
  """The changes of the config that were made, one after the other, and the peak with all of them.

  Each is aimed at the part that is largest after those before. The search ends when the policy
  fits, or when there is nothing left to change.
  """
  config, made = copy.deepcopy(config), {}
  use = make_plan(config, name, machine).use
  while use.peak > machine.memory:
    for change in possible_changes(config, name, use, machine.count):
      changed = copy.deepcopy(config)
      changed.update_from_flattened_dict(change)
      try:
        lasting = make_plan(changed, name, machine, lasting=True).use
      except UserError:  # the algorithm does not take the change
        continue
      if lasting.lasting <= machine.memory:
        found = make_plan(changed, name, machine).use
      else:  # too large whatever its programs need
        found = lasting._replace(update=use.update, rollout=use.rollout)
      if found.peak < use.peak:
        config, use, made = changed, found, made | change
        break
    else:
      break
  return made, use.peak


def possible_changes(config: ConfigDict, name: str, use: Any, devices: int) -> Iterator[Change]:
  """Changes that reduce the largest part of a policy's memory, those that cost least first."""
  row, model = config.policies[name], config.model
  fsdp, tensor = config.mesh.fsdp, config.mesh.tensor
  shards, field = devices // tensor, f'policies.{name}'
  rows = row.batch // row.accumulate
  if fsdp < shards and rows % shards == 0:  # all parameters are sharded
    yield {'mesh.data': 0, 'mesh.fsdp': shards}
  if model.compute == 'float32':
    yield {'model.compute': 'bfloat16'}
  if use.update >= use.rollout:
    if model.remat != 'layers':
      yield {'model.remat': 'layers'}
    if rows % (2 * shards) == 0:
      yield {f'{field}.accumulate': 2 * row.accumulate}
  else:
    if fsdp > 1 and 'sampling' in config.mesh and config.mesh.sampling != 'gathered':
      yield {'mesh.sampling': 'gathered'}
    if row.batch % (2 * shards * row.accumulate) == 0:
      yield {f'{field}.batch': row.batch // 2}
  if model.weights == 'float32':
    yield {'model.weights': 'bfloat16'}
  if not model.lora.rank:  # one copy of the weights, and a small optimiser
    yield {'model.lora.rank': 16}
