"""Law: accumulating the gradient over parts of a batch gives the update of the whole batch."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import DATA, LEFT
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import sections
from nlhf_jax.experiments.training_config import make_training
from nlhf_jax.judges.learned import make_preference_network
from nlhf_jax.models import architectures, scoring
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.structs import Comparison, Prompts, Responses, Scores
from nlhf_jax.training import step_metrics
from nlhf_jax.training.update import accumulate_gradient, initial_state, make_update

BATCH, VOCABULARY, WIDTH = 6, 11, 8
DECODER = make_decoder(
  architectures.small(
    VOCABULARY, WIDTH, layers=1, heads=2, key_heads=1, head_size=4, hidden=16, rotary_base=1e4
  )
)
ROWS = {
  'sft': catalogue.sft(),
  'dpo': catalogue.dpo(beta=0.3),
  'simpo': catalogue.simpo(beta=0.3, gamma=0.1),
  'rso': catalogue.rso(beta=0.5, gamma=0.3, candidates=4, keep=2),
  'nash_md_pg': catalogue.nash_md_pg(beta=0.125, tau=0.1),
  'mpo': catalogue.mpo(tau=0.1, eta=2.0, every=5, reset=10),
  'rspo': catalogue.rspo(eta=2.0, samples=3, every=5, forward=0.1, reverse=0.1),
  'inpo': catalogue.inpo(tau=0.1, eta=0.4, every=5),
  'egpo': catalogue.egpo(tau=0.1, temperature=1.5),
}


def some_parameters(seed):
  random = np.random.default_rng(seed)
  shapes = jax.eval_shape(DECODER.init, jax.random.key(0))
  return jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(size=leaf.shape, scale=0.5), leaf.dtype), shapes
  )


def some_table(seed):
  """Parameters of a bigram policy, which compiles quickly."""
  random = np.random.default_rng(seed)
  return {'logits': jnp.asarray(random.normal(size=(VOCABULARY, VOCABULARY)), jnp.float32)}


def score(params, comparison):
  log_p = jax.nn.log_softmax(params['logits'])

  def of_side(responses):
    if responses is None:
      return None
    before = jnp.roll(responses.tokens, 1, axis=-1)
    before = before.at[..., 0].set(comparison.prompts.tokens[:, -1:])
    return jnp.where(responses.mask, log_p[before, responses.tokens], 0)

  return Scores(of_side(comparison.left), of_side(comparison.right))


def some_comparison(algorithm, batch=BATCH, length=5):
  """Random responses of random lengths, as many as the algorithm samples, with random payoffs."""
  random = np.random.default_rng(0)

  def responses(side):
    shape = (batch, 1 if side == DATA else len(side), length)
    mask = np.arange(length) < random.integers(1, length + 1, size=(*shape[:2], 1))
    values = jnp.asarray(random.normal(size=shape), jnp.float32)
    return Responses(jnp.asarray(random.integers(VOCABULARY, size=shape)), mask, values, values)

  prompts = jnp.asarray(random.integers(VOCABULARY, size=(batch, 3)))
  left = responses(algorithm.left)
  comparison = Comparison(Prompts(prompts, jnp.ones_like(prompts, bool)), left)
  if algorithm.right is None:
    return comparison
  right = left if algorithm.right == LEFT else responses(algorithm.right)
  payoff = random.uniform(-0.5, 0.5, size=(batch, left.tokens.shape[1], right.tokens.shape[1]))
  return comparison._replace(right=right, payoff=jnp.asarray(payoff, jnp.float32))


def updated(algorithm, score, measure, params, comparison, accumulate):
  """The state and metrics after one SGD step, from slots that differ."""
  optimizer = optax.sgd(1.0)
  state = initial_state(algorithm, params(0), optimizer)
  others = {slot: params(seed) for seed, slot in enumerate(state.fixed, 1)}
  state = state._replace(fixed=others)
  update = make_update(algorithm, score, optimizer, measure, accumulate)
  return update(state, comparison, jax.random.key(0))


@pytest.mark.parametrize('name', list(ROWS))
def test_parts_give_the_update_of_the_whole_batch(name):
  algorithm = ROWS[name]
  measure = (
    step_metrics.demonstration_metrics
    if name == 'sft'
    else step_metrics.make_rollout_metrics(algorithm)
  )
  comparison = some_comparison(algorithm)
  whole, parts = (
    updated(algorithm, score, measure, some_table, comparison, accumulate) for accumulate in (1, 3)
  )
  chex.assert_trees_all_close(parts, whole, rtol=1e-4, atol=1e-5)
  moved = jax.tree.map(
    lambda new, old: abs(new - old).max(), whole[0].slots['policy'], some_table(0)
  )
  # The first update of EGPO is its look-ahead step.
  assert max(jax.tree.leaves(moved)) > 0.01 or name == 'egpo'


def test_parts_give_the_update_of_a_judge():
  network = make_preference_network(DECODER, WIDTH, separator=1)
  algorithm = catalogue.preference_model()
  whole, parts = (
    updated(
      algorithm,
      network.logit,
      step_metrics.preference_metrics,
      lambda seed: network.init(some_parameters(seed)) | {'token': jnp.ones(WIDTH)},
      some_comparison(algorithm),
      accumulate,
    )
    for accumulate in (1, 2)
  )
  chex.assert_trees_all_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_shared_responses_stay_shared_in_each_part():
  comparison = some_comparison(ROWS['rspo'])
  comparison = comparison._replace(right=comparison.left)

  def differentiate(part, weight):
    assert part.right is part.left
    assert weight.shape == (len(comparison.payoff) // 3,)
    return (jnp.mean(part.payoff), part.left.tokens), {}

  (_, tokens), _ = accumulate_gradient(differentiate, comparison, jnp.ones(BATCH), 3)
  np.testing.assert_array_equal(tokens, comparison.left.tokens)


def test_parts_take_less_memory():
  comparison = some_comparison(ROWS['dpo'], batch=64, length=20)
  params, read = some_parameters(0), scoring.make_score(DECODER)

  def differentiate(part, weight):
    def total(params):
      scores = read(params, part)
      return jnp.mean(scores.left) - jnp.mean(scores.right), scores

    return jax.value_and_grad(total, has_aux=True)(params)

  def temporary(run):
    return (
      jax.jit(run).lower(comparison, jnp.ones(64)).compile().memory_analysis().temp_size_in_bytes
    )

  parts = temporary(partial(accumulate_gradient, differentiate, count=8))
  assert parts < 0.3 * temporary(differentiate)


def section(algorithm, **arguments):
  return base.training(
    algorithm, steps=2, batch=6, learning_rate=1e-3, evaluate_every=1, **arguments
  )


def refused(row):
  sections.check(sections.training_sections(row, 'config.it'))
  make_training(row, 'config.it')


def test_config_sets_the_number_of_parts():
  row = section('dpo', beta=0.1)
  row.accumulate = 3
  assert make_training(row, 'config.dpo').accumulate == 3


@pytest.mark.parametrize(
  ('row', 'accumulate', 'sentence'),
  [
    (
      section('dpo', beta=0.1),
      4,
      r'config\.it\.batch=6 must be a multiple of config\.it\.accumulate=4',
    ),
    (section('kto', beta=0.1, desirable=1.0, undesirable=1.0), 2, "accumulate=2: 'kto' compares"),
    (section('sft'), 0, r'config\.it\.accumulate=0 must be at least 1'),
  ],
)
def test_batches_that_cannot_be_split_are_refused(row, accumulate, sentence):
  row.accumulate = accumulate
  with pytest.raises(UserError, match=sentence):
    refused(row)


@pytest.mark.parametrize(
  ('field', 'value', 'sentence'),
  [
    (
      'name',
      'adam',
      r"config\.it\.optimizer\.name='adam' must be one of adamw, adafactor, rmsprop",
    ),
    ('rounding', 'up', r"config\.it\.optimizer\.rounding='up' must be one of nearest, stochastic"),
    ('name', 'rmsprop', r'config\.it\.optimizer\.b1=0\.9: rmsprop has no momentum'),
  ],
)
def test_unknown_optimisers_are_refused(field, value, sentence):
  row = section('sft')
  row.optimizer[field] = value
  with pytest.raises(UserError, match=sentence):
    refused(row)
