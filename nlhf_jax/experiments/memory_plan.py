"""Plans how much memory training a policy needs on each device, without having the devices.

What stays in memory between steps (weights, optimiser states) follows from shapes and the sharding
table. What a step needs besides is read from the compiler's memory analysis of its programs
(`step_memory`). The best of n responses that a tournament selects is planned as a policy is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from nlhf_jax.errors import UserError
from nlhf_jax.experiments import memory_advice, step_memory
from nlhf_jax.experiments.judge_config import external_shapes, find_judges, selecting_judge
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.language.stage_settings import stages_of_judges
from nlhf_jax.experiments.model_config import (
  check_before_data,
  make_mesh,
  make_model_without_tokenizer,
)
from nlhf_jax.experiments.program_memory import parameter_bytes, split_shapes
from nlhf_jax.experiments.specs import Policy, Training
from nlhf_jax.judges.registry import EXTERNAL
from nlhf_jax.models import sharding
from nlhf_jax.reporting import formatting

MOST_LAYERS = 4096


class Machine(NamedTuple):
  """The devices to train on.

  Attributes:
    devices: of a topology, which need not be there; without any, CPUs are simulated.
    count: how many there are.
    memory: bytes of each.
  """

  devices: Sequence[Any]
  count: int
  memory: float


class MemoryUse(NamedTuple):
  """Bytes that training one policy needs on each device."""

  slots: int
  optimizer: int
  kept: int  # judges, and policies trained before
  update: int  # gradients and activations
  rollout: int  # copies of the weights, caches and activations; or activations of the judge

  @property
  def lasting(self) -> int:
    """The memory in use between steps."""
    return self.slots + self.optimizer + self.kept

  @property
  def peak(self) -> int:
    """The memory in use between steps, plus the larger of update and rollout."""
    return self.lasting + max(self.update, self.rollout)


class Plan(NamedTuple):
  """The memory use of a policy, and notes on how it was found."""

  use: MemoryUse
  notes: Sequence[str]


def start(config: ConfigDict, machine: Machine) -> dict[str, MemoryUse]:
  """Prints the memory use of every policy of a config, and what makes those fit that do not.

  Args:
    config: of an experiment that trains language models.
    machine: to train it on.
  """
  jax.config.update('jax_platforms', 'cpu')
  if not machine.devices:
    jax.config.update('jax_num_cpu_devices', machine.count)
  check(config)
  count, plans = config.tournament.best_of, {}
  with sharding.use_devices(machine.devices):
    for name in [*config.policies, *[f'best_of_{count}'] * bool(count)]:
      print(f'{name}: compiling its programs ...', flush=True)
      plans[name] = make_plan(config, name, machine)
    uses = {name: plan.use for name, plan in plans.items()}
    print_table(uses, describe_mesh(config), machine.memory)
    for note in dict.fromkeys(note for plan in plans.values() for note in plan.notes):
      print(note)
    for name in config.policies:
      if uses[name].peak > machine.memory:
        memory_advice.print_advice(config, name, machine, make_plan)
  return uses


def check(config: ConfigDict) -> None:
  """Checks a config, without regard to the memory of this machine.

  Raises:
    UserError: if a setting is wrong.
  """
  language_config.check_settings(config)
  if not config.model.hf and config.model.layers > MOST_LAYERS:
    raise UserError(
      f'config.model.layers={config.model.layers} is more than the {MOST_LAYERS} that are planned.'
    )
  check_before_data(config)


def make_plan(config: ConfigDict, name: str, machine: Machine, lasting: bool = False) -> Plan:
  """The plan of a policy of the config, or of the best of n responses in its tournament.

  Args:
    config: of the experiment.
    name: of the policy, or `best_of_n`.
    machine: to train it on.
    lasting: compile nothing, and leave update and rollout at 0.

  Raises:
    UserError: if a setting is wrong.
  """
  # Before the mesh is set: arrays cannot be made on devices that are absent.
  model = make_model_without_tokenizer(config)
  policies = {
    other: language_config.make_policy(row, other, config) for other, row in config.policies.items()
  }
  models, external, policy = *count_kept(config, policies, name), policies.get(name)
  with make_mesh(config):
    own, base = split_shapes(model)
    kept = models * parameter_bytes(own) + external
    if policy is None:  # the slot is SFT
      use = MemoryUse(parameter_bytes(own) + parameter_bytes(base), 0, kept, 0, 0)
      if lasting:
        return Plan(use, ())
      rollout, notes = step_memory.plan_best_of(config, model, machine.memory)
      return Plan(use._replace(rollout=rollout), notes)
    if policy.opponent:
      kept += parameter_bytes(own)
      kept += parameter_bytes(jax.eval_shape(policy.opponent.optimizer.init, own))
    training, notes = fill_batch(policy.training, name)
    state = step_memory.state_shapes(model, training)
    slots = parameter_bytes(state.params) + parameter_bytes(state.fixed)
    use = MemoryUse(slots, parameter_bytes(state.optimizer), kept, 0, 0)
    if lasting:
      return Plan(use, notes)
    policy = policy._replace(training=training)
    update, rollout, more = step_memory.plan_step(config, model, policy, machine.memory)
    notes += [f'{name}: {note}' for note in more]
    return Plan(use._replace(update=update, rollout=rollout), notes)


def count_kept(config: ConfigDict, policies: Mapping[str, Policy], name: str) -> tuple[int, int]:
  """What is in memory beside a policy: the number of trained models, and bytes of other judges.

  These are judges, and the policies that are trained before it; all of them, if it is none.
  """
  used = {*language_config.make_panel(config), *selecting_judge(config)}
  used |= {policy.judge for policy in policies.values()}
  used = find_judges(config).members(used)
  # A judge has as many trained parameters as a policy; the base is shared.
  count = len(stages_of_judges(used)) + bool(config.held_apart)
  for other, policy in policies.items():
    if other == name:
      count += policy.voting.ensemble if policy.voting else 0  # judges, while it trains
      break
    count += len(policy.entries)
  external = [external_shapes(config, judge) for judge in EXTERNAL if judge in used]
  return count, sum(parameter_bytes(shapes) for shapes in external if shapes)


def fill_batch(training: Training, name: str) -> tuple[Training, list[str]]:
  """The training with a batch that the mesh can split, and a note if it is another one."""
  shards, parts = sharding.example_shards(), training.accumulate
  rows = training.batch // parts
  if rows % shards == 0:
    return training, []
  batch = (rows + -rows % shards) * parts
  note = (
    f'{name}: a batch of {training.batch} in {parts} parts cannot be split over the {shards} '
    f'devices that hold different examples; a run refuses it, and this plan is for {batch}.'
  )
  return training._replace(batch=batch), [note]


def describe_mesh(config: ConfigDict) -> str:
  """The axes of the mesh of a config."""
  with make_mesh(config):
    mesh = jax.sharding.get_mesh()
    return 'one device' if mesh.empty else ', '.join(f'{k}={v}' for k, v in mesh.shape.items())


def print_table(uses: Mapping[str, MemoryUse], shape: str, memory: float) -> None:
  """Prints the memory use of every policy."""
  heads = (*MemoryUse._fields, 'peak', f'of {memory / 1e9:.4g} GB')
  cells = [
    [
      *(f'{value / 1e9:.4g}' for value in (*use, use.peak)),
      'fits' if use.peak <= memory else 'does NOT fit',
    ]
    for use in uses.values()
  ]
  print(formatting.format_text(f'\nGigabytes on each device ({shape}):', list(uses), heads, cells))
