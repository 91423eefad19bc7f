"""Steps of a policy at a temperature: sampled gradients average to that of the tempered objective.

A model whose logits are a table by the last token, with responses of at most two tokens, which are
all listed. The steps are those of training, from the settings of a policy to the gradient that its
optimiser receives. The statistic is that of `test_estimators`.
"""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.experiments import stages
from nlhf_jax.experiments.specs import LanguageExperiment, Policy, Training
from nlhf_jax.judges.judge import probability
from nlhf_jax.sampling.token import Filters
from nlhf_jax.structs import Prompts
from nlhf_jax.training.update import initial_state
from tests.laws import tiny
from tests.laws.test_estimators import REMEMBER, THRESHOLD, assert_unbiased, errors
from tests.laws.test_mixtures import BIGRAM

SYMBOLS, STOP, LENGTH = 4, 3, 2
ROWS, BATCHES, TAU, TEMPERATURE = 4096, 16, 0.1, 0.6
RESPONSES = [(STOP,), *itertools.product(range(STOP), range(SYMBOLS))]
INDICES = np.zeros(SYMBOLS**LENGTH, np.int32)
for place, response in enumerate(RESPONSES):
  first, second = (*response, STOP)[:LENGTH]
  INDICES[first + SYMBOLS * second] = place

RANDOM = np.random.default_rng(3)
TABLES = {
  slot: RANDOM.normal(size=(SYMBOLS, SYMBOLS)).astype(np.float32)
  for slot in ('policy', 'reference')
}
PAYOFF = np.tanh(RANDOM.normal(size=(len(RESPONSES),) * 2)).astype(np.float32) / 2
PAYOFF = (PAYOFF - PAYOFF.T) / 2
ALGORITHMS = {
  'self_play': (catalogue.self_play(TAU), {'policy': 1.0}),
  'nash_md_pg': (catalogue.nash_md_pg(0.5, TAU), {'policy': 0.5, 'reference': 0.5}),
}


def judge(comparison):
  left, right = (
    jnp.asarray(INDICES)[side.tokens @ SYMBOLS ** np.arange(LENGTH)]
    for side in (comparison.left, comparison.right)
  )
  return jnp.asarray(PAYOFF)[left[:, :, None], right[:, None, :]]


def make_steps(algorithm, filters):
  """The steps of a policy with these filters."""
  blank = LanguageExperiment._make([None] * len(LanguageExperiment._fields))
  experiment = blank._replace(
    model=SimpleNamespace(decoder=BIGRAM),
    corpus=SimpleNamespace(tokenizer=SimpleNamespace(eos_token_id=STOP)),
    response_length=LENGTH,
    combined={},
    external={},
  )
  training = Training(algorithm, REMEMBER, ROWS, 1, None)
  policy = Policy(training, 'learned', probability, {}, filters=filters)
  return stages.make_policy_steps(experiment, policy, judge)


def gradients(algorithm, filters):
  """The gradient of the policy's table in each of many steps, [BATCHES, SYMBOLS^2]."""
  steps = make_steps(algorithm, filters)
  prompts = Prompts(jnp.full((ROWS, 1), STOP), jnp.ones((ROWS, 1), bool))
  found = []
  for number in range(BATCHES):
    state = initial_state(algorithm, jnp.asarray(TABLES['policy']), REMEMBER)
    state = state._replace(fixed={'reference': jnp.asarray(TABLES['reference'])})
    state, _ = steps.step(state, prompts, jax.random.key(number))
    found.append(np.array(state.optimizer, float).ravel())
  return np.array(found)


def log_chances(members, tables, temperature):
  """Log-probabilities of the listed responses under a mixture of tempered tokens."""
  logits = sum(weight * tables[slot] for slot, weight in members.items()) / temperature
  log_p = jax.nn.log_softmax(logits)
  return jnp.stack(
    [
      sum(log_p[last, token] for last, token in itertools.pairwise((STOP, *response)))
      for response in RESPONSES
    ]
  )


def exact_gradient(opponent, temperature):
  """Of -P(q > q') + tau KL(q, mu), q and mu at the temperature, the opponent q' held still."""
  gains = PAYOFF @ np.exp(log_chances(opponent, TABLES, temperature))
  log_mu = log_chances({'reference': 1.0}, TABLES, temperature)

  @tiny.jit
  @jax.grad
  def gradient(table):
    log_q = log_chances({'policy': 1.0}, {'policy': table}, temperature)
    return -jnp.sum(jnp.exp(log_q) * (gains - TAU * (log_q - log_mu)))

  return np.array(gradient(TABLES['policy']), float).ravel()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['nash_md_pg', pytest.param('self_play', marks=pytest.mark.slow)])
def test_gradients_are_those_of_the_tempered_objective(name):
  algorithm, opponent = ALGORITHMS[name]
  sampled = gradients(algorithm, Filters(temperature=TEMPERATURE))
  assert_unbiased(sampled, exact_gradient(opponent, TEMPERATURE), 0.05)
  scores, _ = errors(sampled, exact_gradient(opponent, 1.0))
  assert abs(scores).max() > THRESHOLD


@pytest.mark.slow
@pytest.mark.parametrize('fault', ['scored at 1', 'sampled at 1'])
def test_one_temperature_without_the_other_is_found(fault, monkeypatch):
  filters = Filters(temperature=TEMPERATURE)
  if fault == 'scored at 1':
    monkeypatch.setattr(stages, 'temper', lambda decoder, temperature: decoder)
  else:
    make = stages.make_rollout
    monkeypatch.setattr(stages, 'make_rollout', lambda *args, filters: make(*args))
  algorithm, opponent = ALGORITHMS['self_play']
  scores, _ = errors(gradients(algorithm, filters), exact_gradient(opponent, TEMPERATURE))
  assert abs(scores).max() > THRESHOLD


def test_temperature_one_runs_the_same_programs(monkeypatch):
  """The decoder and the sampler, by which programs are found, are those without the setting."""
  score, make_rollout = stages.scoring.make_score, stages.rollout.make_rollout
  decoders, samplers = [], []

  def make_score(decoder):
    decoders.append(decoder)
    return score(decoder)

  def sample_from(*args, **settings):
    rollout = make_rollout(*args, **settings)
    samplers.extend(rollout.args)
    return rollout

  monkeypatch.setattr(stages.scoring, 'make_score', make_score)
  monkeypatch.setattr(stages.rollout, 'make_rollout', sample_from)
  algorithm, _ = ALGORITHMS['self_play']
  for temperature in (1.0, 0.7, 0.7):
    make_steps(algorithm, Filters(temperature))
  mixtures = [*algorithm.left, *algorithm.right]
  assert make_rollout(BIGRAM, mixtures, length=LENGTH, stop=STOP).args == (samplers[0],)
  assert decoders[0] is BIGRAM
  assert samplers[0] != samplers[1] == samplers[2]
  assert decoders[0] is not decoders[1] is decoders[2]
