"""Stages: pieces of work whose outcome is stored on disk; `fit` trains one, and `load` reads it."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax

from nlhf_jax import compilation, distributed, trees
from nlhf_jax.data.batches import Examples, batches, map_chunks
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.policy_folder import write_policy
from nlhf_jax.experiments.specs import LanguageExperiment, Policy, Stage, Training
from nlhf_jax.judges.judge import Judge, with_feedback
from nlhf_jax.models import scoring, sharding
from nlhf_jax.models.decoder import temper
from nlhf_jax.progress import progress
from nlhf_jax.sampling import rollout
from nlhf_jax.sampling.dialogue_rollout import make_dialogue_rollout
from nlhf_jax.sampling.refill import chunk_sampler
from nlhf_jax.sampling.rollout import Rollout
from nlhf_jax.sampling.token import UNFILTERED, Filters
from nlhf_jax.storage import json_lines, store
from nlhf_jax.storage.locks import lock_folder
from nlhf_jax.structs import Mixture, Params, Prompts, Responses
from nlhf_jax.training import checkpoints, interrupts, loop, step_metrics
from nlhf_jax.training.async_judge import make_async_judge
from nlhf_jax.training.checkpoints import load_slots
from nlhf_jax.training.divergence import require_verdicts
from nlhf_jax.training.generation_server import connect
from nlhf_jax.training.group_weights import Groups, make_group_steps
from nlhf_jax.training.loop import Steps
from nlhf_jax.training.rollout_step import (
  MakeRollout,
  RolloutStep,
  make_rollout_step,
  make_sample,
)
from nlhf_jax.training.served_rollout import Server, make_served_rollout
from nlhf_jax.training.update import Score, Update, initial_state, make_update, moving_slots

# --- Training and loading ---


def train_all(path: str) -> bool:
  """Trains every parameter."""
  del path
  return True


def fit(
  stage: Stage,
  training: Training,
  params: Params,
  steps: Steps,
  examples: grain.MapDataset,
  evaluate: loop.Evaluate,
  trains: Callable[[str], bool] = train_all,
  known: Mapping[str, float] | None = None,
) -> dict[str, Params]:
  """Trains a stage, or loads it if it is done; returns slot -> parameters.

  Args:
    stage: its name, key and folder.
    training: its algorithm and number of steps.
    params: initial parameters of every slot.
    steps: of the training loop.
    examples: batches.
    evaluate: slots -> metrics.
    trains: path of a parameter -> whether it is trained; all slots share those that are not.
    known: metrics before the first step, where they need no measurement.

  Raises:
    Interrupted: if the user asked to stop; a checkpoint is saved first.
    UserError: if another process is training the stage; or as `loop.train` does.
  """
  if is_done(stage):
    if not describe_loss(stage, training):
      print_status(stage)
      return load(stage, training, params, trains)
    mark_undone(stage)
  own, base = trees.split(params, trains)
  state = initial_state(training.algorithm, own, training.optimizer, base)
  # Fixed slots are sharded already, and are not copied.
  state = sharding.put_parameters(state._replace(fixed={}))._replace(fixed=state.fixed)
  placed = examples.map(sharding.put_rows)
  if steps.begin:
    # Steps fold smaller numbers into the key.
    state = steps.begin(state, placed[0], jax.random.fold_in(stage.key, training.steps))
    first, placed = placed, grain.MapDataset.range(1, training.steps + 1)
    placed = placed.map(lambda number: first[number])
  with work_on(stage, steps=training.steps), contextlib.closing(steps):
    state = loop.train(
      state,
      steps.step,
      placed,
      stage.key,
      stage=stage.name,
      folder=stage.folder,
      evaluate=lambda slots: evaluate(merge_base(slots)),
      schedule=training.schedule,
      known=known,
    )
  return merge_base(state.slots)


def load(
  stage: Stage, training: Training, params: Params, trains: Callable[[str], bool] = train_all
) -> dict[str, Params]:
  """Slot -> parameters of a finished stage; the optimiser's state is not read.

  Args:
    stage: its folder.
    training: its algorithm, which names the slots.
    params: what every slot started from, as in `fit`; frozen slots still equal it.
    trains: as in `fit`.

  Raises:
    UserError: if the stage is not done, or its last checkpoint is damaged.
  """
  if not is_done(stage):
    raise UserError(
      f"the stage '{stage.name}' is not done in {stage.folder}; run nlhf_jax.main with the same "
      'config, and the same --workdir or --stages, first.'
    )
  lost = describe_loss(stage, training)
  if lost:
    raise UserError(
      f"{lost} run nlhf_jax.main again, which trains the stage '{stage.name}' to its end."
    )
  own, base = trees.split(params, trains)
  own, algorithm = sharding.put_parameters(own), training.algorithm
  slots = {slot: own for slot in algorithm.references}
  slots |= load_slots(stage.folder / 'checkpoints', {slot: own for slot in moving_slots(algorithm)})
  return merge_base(slots | ({'base': base} if base else {}))


def merge_base(slots: Mapping[str, Params]) -> dict[str, Params]:
  """Slot -> all of its parameters, those of the shared base included."""
  return {slot: trees.slot_params(slots, slot) for slot in slots if slot != 'base'}


def share_base(experiment: LanguageExperiment, slots: Mapping[str, Params]) -> dict[str, Params]:
  """Slots with their own parameters alone, and a slot `base` for those that all share, if any.

  A rollout then reads the weights under adapters once for all slots.
  """
  parts = {slot: trees.split(params, experiment.model.trains) for slot, params in slots.items()}
  _, base = next(iter(parts.values()))
  return {slot: own for slot, (own, _) in parts.items()} | ({'base': base} if base else {})


def make_batches(examples: Examples, training: Training, seed: int) -> grain.MapDataset:
  """Batches for a stage; each process reads the rows that its devices hold."""
  return batches(examples, training.batch, seed, sharding.local_rows(training.batch))


# --- Steps ---


def make_policy_update(
  training: Training,
  score: Score,
  rollout_step: RolloutStep | None = None,
  stop: int | None = None,
) -> Update:
  """The update of a policy, after a rollout step if there is one; `stop` ends responses."""
  algorithm = training.algorithm
  measure = step_metrics.make_rollout_metrics(algorithm, stop)
  return make_update(
    algorithm, score, training.optimizer, measure, training.accumulate, rollout_step, training.skip
  )


def make_policy_steps(
  experiment: LanguageExperiment, policy: Policy, judge: Judge | Groups | None
) -> Steps:
  """The steps of a policy of the experiment; `judge` is None where the algorithm uses none."""
  if isinstance(judge, Groups):
    return make_group_policy_steps(experiment, policy, judge)
  training, make = policy.training, make_policy_rollouts(experiment, policy)
  if judge and not experiment.may_abstain(policy.judge):
    judge = require_verdicts(judge)
  score = make_policy_score(experiment, policy)
  stop = experiment.corpus.tokenizer.eos_token_id
  if not policy.async_judge:
    feedback = judge and with_feedback(judge, policy.feedback)
    rollout_step = make_rollout_step(training.algorithm, make, feedback)
    return Steps(make_policy_update(training, score, rollout_step, stop))
  return make_async_judge(
    make_sample(training.algorithm, make),
    judge,
    partial(with_feedback, feedback=policy.feedback),
    make_policy_update(training, score, stop=stop),
    steps=training.steps,
    prompt_length=experiment.corpus.held_out.prompts.tokens.shape[1],
  )


def make_group_policy_steps(
  experiment: LanguageExperiment, policy: Policy, groups: Groups
) -> Steps:
  """The steps of a policy whose judge weighs groups of raters."""
  if not experiment.may_abstain(policy.judge):
    judges = {name: require_verdicts(judge) for name, judge in groups.judges.items()}
    groups = groups._replace(judges=judges)
  score = make_policy_score(experiment, policy)
  stop = experiment.corpus.tokenizer.eos_token_id
  return make_group_steps(
    make_sample(policy.training.algorithm, make_policy_rollouts(experiment, policy)),
    groups,
    policy.feedback,
    make_policy_update(policy.training, score, stop=stop),
  )


def make_policy_score(experiment: LanguageExperiment, policy: Policy) -> Score:
  """(parameters, comparison) -> scores, at the temperature that the policy is sampled at.

  All slots are scored at it, the reference among them: what is trained is the tempered policy.
  """
  return scoring.make_score(temper(experiment.model.decoder, policy.filters.temperature))


def make_policy_rollouts(experiment: LanguageExperiment, policy: Policy) -> MakeRollout:
  """A function mixtures -> rollout, which samples as the policy trains.

  Raises:
    UserError: if a generation server is to sample, and its key or a package is missing.
  """
  if not policy.served:
    return partial(make_rollout, experiment, filters=policy.filters)
  settings, model = experiment.generation_server, experiment.model
  server = Server(
    client=connect(settings),
    folder=Path(settings.folder),
    write=lambda params, folder: write_policy(experiment, params, folder, merged=False),
    adapters=model.lora is not None,
    tolerated_gap=settings.tolerated_gap,
  )
  return partial(
    make_served_rollout,
    server,
    model.decoder,
    length=experiment.response_length,
    stop=experiment.corpus.tokenizer.eos_token_id,
    filters=policy.filters,
  )


def make_rollout(
  experiment: LanguageExperiment,
  mixtures: Sequence[Mixture],
  count: int = 1,
  filters: Filters = UNFILTERED,
) -> Rollout:
  """A rollout of the experiment's decoder, up to its response length or stop token.

  In an experiment with a dialogue it samples conversations, of turns of that length.
  """
  make = rollout.make_rollout
  if experiment.dialogue:
    make = partial(make_dialogue_rollout, dialogue=experiment.dialogue)
  return make(
    experiment.model.decoder,
    mixtures,
    length=experiment.response_length,
    stop=experiment.corpus.tokenizer.eos_token_id,
    count=count,
    filters=filters,
  )


def respond(
  rollout: Rollout,
  params: Mapping[str, Params],
  prompts: Prompts,
  key: jax.Array,
  label: str,
  batch: int,
) -> tuple[Responses, ...]:
  """Responses to any number of prompts, `batch` of which are decoded at a time.

  Raises:
    Interrupted: between chunks of them, if the user asked to stop.
  """
  count = len(prompts.tokens)
  sample, size = chunk_sampler(rollout, params, key, count, batch)
  with progress(count, label, 'prompt') as bar:

    def one_chunk(chunk, number):
      interrupts.check(label)
      responses = sample(chunk, number)
      bar.update(min(len(chunk.tokens), count - bar.done))
      return responses

    return map_chunks(one_chunk, prompts, size)


# --- The folder of a stage ---


def is_done(stage: Stage) -> bool:
  """Whether the stage is finished."""
  note = json_lines.read_sealed(stage.folder / 'stage.json')
  return note is not None and note['done']


def describe_loss(stage: Stage, training: Training) -> str | None:
  """What is wrong with the last checkpoint of a finished stage; None if nothing is."""
  folder = stage.folder / 'checkpoints'
  damage = None
  if training.steps:
    damage = distributed.value_from_first(lambda: checkpoints.find_damage(folder, training.steps))
  return damage and f'the checkpoint of step {training.steps} in {folder} {damage};'


def mark_undone(stage: Stage) -> None:
  """Notes that a finished stage has lost its last checkpoint, so that it is trained to its end."""
  path = stage.folder / 'stage.json'
  json_lines.write_sealed(path, json_lines.read_sealed(path) | {'done': False})


def print_status(stage: Stage) -> None:
  """Prints that the stage exists already, and what differs from how it would be made now."""
  note = json_lines.read_sealed(stage.folder / 'stage.json')
  print(f'{stage.name}: {"found" if note["done"] else "resuming"} in {stage.folder}')
  if note['code'] != stage.code:
    print('  started with another version of the code; delete the folder to train it again')
  machines = {name: note.get(name, now) for name, now in count_machines().items()}
  if not note['done'] and machines != count_machines():
    print(
      f'  stopped on {_describe_machines(machines)}, now {_describe_machines(count_machines())}; '
      'batches are the same, and numbers differ by rounding'
    )
  before = note.get('incidental', {})
  for name, value in stage.incidental.items():
    if before.get(name, value) != value:
      print(f'  started with {name}={before[name]}, now {value}, which determines no result')
  logged = json_lines.read(stage.folder / 'metrics.jsonl')
  skipped = sum(record.get('skipped_updates', 0) for record in logged)
  if skipped:
    print(f'  {skipped} of its updates were not finite and left out (on_divergence=skip)')


def count_machines() -> dict[str, int]:
  """What a stage runs on, which determines no more than how its numbers are rounded."""
  return {'devices': jax.device_count(), 'processes': jax.process_count()}


def _describe_machines(counts: Mapping[str, int]) -> str:
  devices, processes = counts['devices'], counts['processes']
  return f'{devices} device{"s"[: devices > 1]} of {processes} process{"es"[: 2 * (processes > 1)]}'


@contextlib.contextmanager
def work_on(stage: Stage, **facts: Any) -> Iterator[None]:
  """Locks the stage's folder, and records its settings and the time spent on it in `stage.json`.

  The stage is done when the block ends without an error. A change of the code does not invalidate
  a stage, which may have taken days to train; `print_status` reports it.

  Raises:
    UserError: if another process is training the stage.
  """
  path = stage.folder / 'stage.json'
  facts |= {'done': False, 'seconds': 0.0, 'code': stage.code}
  facts |= {'compile_seconds': 0.0, 'compiled_programs': 0}
  facts |= {'settings': stage.settings, 'incidental': stage.incidental}
  with lock_folder(stage.folder):
    known = json_lines.read_sealed(path)
    if known:
      facts = known
      print_status(stage)
    if not facts['done']:
      facts |= count_machines()
      json_lines.write_sealed(path, facts)
    start, done = time.monotonic(), facts['done']
    programs, compiling = compilation.count_programs(), compilation.compile_seconds()
    try:
      yield
      facts['done'] = True
    finally:
      if not done:
        facts['seconds'] += time.monotonic() - start
        for name, value in (
          ('compile_seconds', compilation.compile_seconds() - compiling),
          ('compiled_programs', compilation.count_programs() - programs),
        ):
          facts[name] = facts.get(name, 0) + value  # stages of earlier versions lack them
        json_lines.write_sealed(path, facts)
    store.push()
