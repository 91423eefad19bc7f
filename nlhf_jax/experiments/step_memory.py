"""The memory of a policy's step: shapes of what its programs take, and the largest of them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from nlhf_jax.algorithms.algorithm import DATA, POLICY, needs_judge, sampled_mixtures
from nlhf_jax.experiments import program_memory
from nlhf_jax.experiments.dialogue_config import conversation_length
from nlhf_jax.experiments.judge_config import find_judges
from nlhf_jax.experiments.program_memory import TooLargeError, shard_parameters, shard_rows
from nlhf_jax.experiments.specs import Model, Policy, Training
from nlhf_jax.judges.registry import TRAINED
from nlhf_jax.models import scoring
from nlhf_jax.models.decoder import temper
from nlhf_jax.sampling.sampler import make_sampler
from nlhf_jax.sampling.token import Filters
from nlhf_jax.structs import Comparison, Mixture, Prompts, Responses
from nlhf_jax.training import step_metrics
from nlhf_jax.training.opponent_play import OPPONENT
from nlhf_jax.training.rollout_step import make_sample
from nlhf_jax.training.update import initial_state, make_update


class SampleSettings(NamedTuple):
  """What is sampled: `count` responses to each of `batch` prompts from every mixture."""

  mixtures: list[Mixture]
  count: int
  batch: int
  filters: Filters


def plan_step(
  config: ConfigDict, model: Model, policy: Policy, memory: float
) -> tuple[int, int, list[str]]:
  """Bytes of update and rollout on each device of the current mesh, and notes on them.

  Args:
    config: of the experiment.
    model: of its policies.
    policy: one of them.
    memory: bytes of a device.
  """
  training, notes = policy.training, []
  compiled = program_memory.for_compiler(model)
  comparison = shard_rows(comparison_shapes(config, policy))
  score = scoring.make_score(temper(compiled.decoder, policy.filters.temperature))
  algorithm = training.algorithm
  measure = step_metrics.make_rollout_metrics(algorithm)
  update = make_update(
    algorithm, score, training.optimizer, measure, training.accumulate, skip=training.skip
  )
  state = state_shapes(compiled, training)
  updating = _fit(
    notes, 'update', partial(program_memory.measure_update, update, model, state, comparison)
  )
  rollout = 0
  if sampled_mixtures(algorithm) and not policy.served:
    mixtures = [POLICY, OPPONENT] if policy.opponent else sampled_mixtures(algorithm)
    sampling = SampleSettings(mixtures, 1, training.batch, policy.filters)

    def slots(model):
      found = state_shapes(model, training).slots
      if policy.opponent:
        found |= {'opponent': shard_parameters(program_memory.split_shapes(model)[0])}
      return found

    rollout = _plan_rollout(config, model, slots, sampling, memory, notes)
  if policy.opponent:
    notes.append(
      'what an opponent reads beyond the prompt, its update, and the pass of the reference over '
      'its responses are not planned.'
    )
  if needs_judge(algorithm):
    pairs = comparison.payoff.shape
    judging = partial(_plan_judging, config, model, policy.judge, pairs)
    rollout = max(rollout, _fit(notes, 'judge', judging))
  return updating, rollout, notes


def plan_best_of(config: ConfigDict, model: Model, memory: float) -> tuple[int, list[str]]:
  """Bytes of sampling the candidates of the best of n, and of judging all pairs of them."""
  section, notes = config.tournament, []
  count = section.best_of
  batch = min(max(section.batch // count, 1), section.prompts)
  sampling = SampleSettings([{'policy': 1.0}], 2 * count, batch, Filters(**section.filters))

  def slots(model):
    own, base = program_memory.split_shapes(model)
    return {'policy': shard_parameters(own)} | ({'base': shard_parameters(base)} if base else {})

  rollout = _plan_rollout(config, model, slots, sampling, memory, notes)
  judging = partial(_plan_judging, config, model, section.best_of_judge, (batch, count, count))
  return max(rollout, _fit(notes, 'judge', judging)), notes


def _fit(notes: list[str], what: str, measure: Callable[[], int]) -> int:
  """The bytes that are measured; if the compiler refuses the program, those that it asks for."""
  try:
    return measure()
  except TooLargeError as error:
    notes.append(
      f'the compiler refuses a program of the {what}, which needs {error.needed / 1e9:.4g} GB '
      f'where a device has {error.available / 1e9:.4g}.'
    )
    return error.needed


def _plan_rollout(config, model, slots, sampling, memory, notes) -> int:
  length = conversation_length(config)  # a conversation needs what one response of its length does

  def sampler(model):
    settings = sampling.count, sampling.filters
    return make_sampler(model.decoder, sampling.mixtures, length, 0, *settings)

  prompts = prompt_shapes(config, sampling.batch)
  if program_memory.is_extrapolated(model, sampler(model)):
    depths = ' and '.join(map(str, program_memory.DEPTHS))
    notes.append(
      f'decoding was compiled with {depths} layers, and extrapolated to {len(model.sizes.layers)}.'
    )
  measure = partial(program_memory.measure_rollout, model, slots, sampler, prompts, memory)
  return _fit(notes, 'rollout', measure)


def _plan_judging(config, model, judge, pairs) -> int:
  """Bytes of the trained networks of a judge that compares [B, K, J] pairs; the largest one."""
  (rows, left, right), length = pairs, conversation_length(config) + 1  # with a separator
  most = 0
  for name in find_judges(config).members([judge]):
    if name in TRAINED:
      both = name == 'learned'
      count, responses = (left * right, 2) if both else (left + right, 1)
      tokens = config.data.prompt_length + responses * length
      most = max(most, program_memory.measure_judging(model, rows * count, tokens))
  return most


# --- Shapes ---


def state_shapes(model: Model, training: Training) -> Any:
  """The shapes of a training state, on the current mesh."""
  own, base = program_memory.split_shapes(model)
  optimizer = training.optimizer
  return shard_parameters(
    jax.eval_shape(
      lambda own, base: initial_state(training.algorithm, own, optimizer, base), own, base
    )
  )


def prompt_shapes(config: ConfigDict, rows: int) -> Prompts:
  """The shapes of prompts."""
  shape = rows, config.data.prompt_length
  return Prompts(*(jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, bool)))


def comparison_shapes(config: ConfigDict, policy: Policy) -> Comparison:
  """The shapes of what an update learns from."""
  training = policy.training
  algorithm, rows, length = training.algorithm, training.batch, conversation_length(config)
  prompts = prompt_shapes(config, rows)

  def responses(length, types):
    shape = rows, 1, length
    return Responses(*(jax.ShapeDtypeStruct(shape, dtype) for dtype in types))

  types = (jnp.int32, bool) if policy.served else (jnp.int32, bool, jnp.float32, jnp.float32)
  sampled = responses(length, types)

  def make_rollout(mixtures):
    one = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sampled)
    return lambda params, prompts, key: tuple(one() for _ in mixtures)

  batch: Comparison | Prompts = prompts
  if algorithm.left == DATA:
    left, right = (responses(config.data.response_length, types[:2]) for _ in range(2))
    payoff = jax.ShapeDtypeStruct((rows, 1, 1), jnp.float32)
    given = (right, payoff) if algorithm.right == DATA else ()
    batch = Comparison(prompts, left, *given)
  sample = make_sample(algorithm, make_rollout)
  comparison = jax.eval_shape(sample, {}, batch, program_memory.make_key())
  if needs_judge(algorithm):
    pairs = (*comparison.left.tokens.shape[:2], comparison.right.tokens.shape[1])
    payoff = jax.ShapeDtypeStruct(pairs, jnp.float32)
    return comparison._replace(payoff=payoff)
  return comparison
