"""Stages: pieces of work whose outcome is kept, and what they are made of."""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
from tqdm import tqdm

from nlhf_jax import distributed, trees
from nlhf_jax.data.batches import Examples, batches, map_chunks
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.specs import LanguageExperiment, Policy, Stage, Training
from nlhf_jax.judges.judge import Judge, told
from nlhf_jax.models import scoring, sharding
from nlhf_jax.sampling import rollout
from nlhf_jax.sampling.rollout import Rollout
from nlhf_jax.sampling.token import UNFILTERED, Filters
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Mixture, Params, Prompts, Responses, TrainState
from nlhf_jax.training import interrupts, loop, step_metrics
from nlhf_jax.training.async_judge import Ahead, make_ahead
from nlhf_jax.training.rollout_step import Feedback, MakeRollout, make_play, make_sample
from nlhf_jax.training.update import Score, Update, initial_state, make_update


def fit(
  stage: Stage,
  training: Training,
  params: Params,
  step: loop.Step,
  examples: grain.MapDataset,
  evaluate: loop.Evaluate,
  trains: Callable[[str], bool] = lambda path: True,
  begin: Callable[[TrainState, Any, jax.Array], TrainState] | None = None,
) -> dict[str, Params]:
  """Trains, unless it is done; returns slot -> parameters.

  Args:
    stage: what to call it and where to keep it.
    training: how.
    params: what every slot starts from.
    step: of the loop.
    examples: what it learns from.
    evaluate: slots to scalars.
    trains: says of the path of a parameter whether it is trained; all slots share the others.
    begin: (state, batch, key) -> state, of a step that takes the batch of the one after it.
  """

  def whole(slots):
    return {slot: trees.slot_params(slots, slot) for slot in slots if slot != 'base'}

  own, base = trees.split(params, trains)
  state = initial_state(training.algorithm, own, training.optimizer, base)
  # What does not move lies where it should, and is not copied.
  state = sharding.put_parameters(state._replace(fixed={}))._replace(fixed=state.fixed)
  placed = examples.map(sharding.put_rows)
  if begin:
    # Steps fold in the numbers below that of all of them.
    state = begin(state, placed[0], jax.random.fold_in(stage.key, training.steps))
    first, placed = placed, grain.MapDataset.range(1, training.steps + 1)
    placed = placed.map(lambda number: first[number])
  with noted(stage, steps=training.steps):
    state = loop.train(
      state,
      step,
      placed,
      stage.key,
      stage=stage.name,
      steps=training.steps,
      folder=stage.folder,
      evaluate=lambda slots: evaluate(whole(slots)),
      evaluate_every=training.evaluate_every,
    )
  return whole(state.slots)


def make_step(
  training: Training, score: Score, make_rollout: MakeRollout, feedback: Feedback | None
) -> loop.Step:
  """A step of the loop: play, be judged, update."""
  play = make_play(training.algorithm, make_rollout, feedback)
  update = make_update_of(training, score)

  def step(state, batch, key):
    # Playing takes the key folded with 0 and 1.
    return update(state, play(state.slots, batch, key), jax.random.fold_in(key, 2))

  return step


def make_update_of(training: Training, score: Score) -> Update:
  """The update of a policy that plays."""
  algorithm = training.algorithm
  measure = step_metrics.of_play(algorithm)
  return make_update(algorithm, score, training.optimizer, measure, training.accumulate)


def make_policy_step(
  experiment: LanguageExperiment, policy: Policy, judge: Judge | None
) -> loop.Step:
  """The step of a policy of the experiment."""
  return make_step(
    policy.training,
    scoring.make_score(experiment.model.decoder),
    partial(make_rollout, experiment),
    judge and told(judge, policy.feedback),
  )


def make_policy_ahead(experiment: LanguageExperiment, policy: Policy, judge: Judge) -> Ahead:
  """The same of one that learns from responses while the next ones are judged."""
  training = policy.training
  return make_ahead(
    make_sample(training.algorithm, partial(make_rollout, experiment)),
    judge,
    partial(told, report=policy.feedback),
    make_update_of(training, scoring.make_score(experiment.model.decoder)),
    steps=training.steps,
    prompt_length=experiment.corpus.held_out.prompts.tokens.shape[1],
  )


def batches_of(examples: Examples, training: Training, seed: int) -> grain.MapDataset:
  """Batches for a stage, of which each process reads the rows that its devices hold."""
  return batches(examples, training.batch, seed, sharding.local_rows(training.batch))


@contextlib.contextmanager
def noted(stage: Stage, **facts) -> Iterator[None]:
  """Notes what determines the stage and the seconds spent on it; only a kill loses some of them.

  Code determines it too, but a change of code does not throw away what took days to train: it is
  pointed out.

  Raises:
    UserError: if another process is at work on the stage.
  """
  path = stage.folder / 'stage.json'
  facts |= {'done': False, 'seconds': 0.0, 'code': stage.code, 'settings': stage.settings}
  with alone(stage.folder):
    if json_lines.exists(path):
      facts = json_lines.read_json(path)
      print(f'{stage.name}: {"found" if facts["done"] else "going on"} in {stage.folder}')
      if facts['code'] != stage.code:
        print('  begun with another version of the code; delete the folder to make it anew')
    else:
      json_lines.write_json(path, facts)
    start, done = time.monotonic(), facts['done']
    try:
      yield
      facts['done'] = True
    finally:
      if not done:
        facts['seconds'] += time.monotonic() - start
        json_lines.write_json(path, facts)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
  """Keeps other processes out of a folder, as long as they ask here.

  Raises:
    UserError: if one is inside.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / '.lock').open('w') as lock:
    taken = False
    try:
      if distributed.is_first():
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      taken = True
    if distributed.of_any(taken):
      raise UserError(f'another run is at work in {folder}; wait for it to end.')
    yield


def make_rollout(
  experiment: LanguageExperiment,
  mixtures: Sequence[Mixture],
  count: int = 1,
  filters: Filters = UNFILTERED,
) -> Rollout:
  """A rollout of the experiment's decoder, to its length and stop token."""
  return rollout.make_rollout(
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
  """Responses to any number of prompts, `batch` of them at a time.

  Raises:
    Interrupted: between chunks, if the user asked to stop.
  """
  with tqdm(total=len(prompts.tokens), desc=label, unit='prompt', mininterval=0.5) as bar:

    def one_chunk(chunk, number):
      interrupts.check(label)
      responses = rollout(params, chunk, jax.random.fold_in(key, number))
      bar.update(min(len(chunk.tokens), bar.total - bar.n))
      return responses

    return map_chunks(one_chunk, prompts, batch)
