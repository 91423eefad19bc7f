"""The rollout step: which mixtures respond, and what the judge compares."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import DATA, LEFT, Algorithm, mixture
from nlhf_jax.algorithms.losses import likelihood
from nlhf_jax.judges.judge import antisymmetric, probability, vote, with_feedback
from nlhf_jax.structs import Comparison, Prompts, Responses
from nlhf_jax.training.rollout_step import make_rollout_step

KEY = jax.random.key(0)
PROMPTS = Prompts(jnp.array([[10, 20], [30, 40]]), jnp.array([[True, True], [False, True]]))
PARAMS = {'policy': 1, 'reference': 2, 'snapshot': 3}
POLICY, REFERENCE, SNAPSHOT = (mixture(**{slot: 1.0}) for slot in PARAMS)
HALF = mixture(policy=0.5, reference=0.5)


def responses(tokens):
  tokens = jnp.asarray(tokens)
  return Responses(tokens, jnp.ones_like(tokens, bool), -tokens / 1.0, tokens / 1.0)


class Sampler:
  """Samples one token: the last of the prompt plus 1000 times the mixture of parameters."""

  def __init__(self):
    self.calls = []  # mixtures
    self.keys = []

  def __call__(self, mixtures):
    self.calls.append(list(mixtures))

    def rollout(params, prompts, key):
      self.keys.append(key)
      means = [sum(weight * params[slot] for slot, weight in m.items()) for m in mixtures]
      return tuple(responses(prompts.tokens[:, -1:, None] + 1000 * w) for w in means)

    return rollout


class Feedback:
  """A hundredth of the difference of the tokens; records its arguments."""

  def __init__(self):
    self.calls = []

  def __call__(self, comparison, key):
    self.calls.append((comparison, key))
    left, right = (side.tokens[..., 0] for side in (comparison.left, comparison.right))
    return (left[:, :, None] - right[:, None, :]) / 100


def run_step(left, right, batch=PROMPTS):
  sampler, feedback = Sampler(), Feedback()
  row = Algorithm(left, right, likelihood, {})
  return make_rollout_step(row, sampler, feedback)(PARAMS, batch, KEY), sampler, feedback


def names(side):
  return np.asarray(side.tokens[..., 0]).tolist()


def test_both_sides_respond_and_a_judge_compares_them():
  comparison, sampler, feedback = run_step([POLICY], [HALF])
  assert sampler.calls == [[POLICY, HALF]]
  assert comparison.prompts is PROMPTS
  assert names(comparison.left) == [[1020], [1040]]
  assert names(comparison.right) == [[1520], [1540]]
  np.testing.assert_allclose(comparison.payoff, [[[-5.0]], [[-5.0]]])

  ((seen, key),) = feedback.calls
  assert seen.payoff is None
  assert seen.left is comparison.left
  assert seen.right is comparison.right
  assert np.any(jax.random.key_data(key) != jax.random.key_data(sampler.keys[0]))


def test_responses_are_in_the_order_of_mixtures():
  comparison, sampler, _ = run_step([POLICY, SNAPSHOT], [REFERENCE, HALF, POLICY])
  assert sampler.calls == [[POLICY, SNAPSHOT, REFERENCE, HALF, POLICY]]
  assert names(comparison.left) == [[1020, 3020], [1040, 3040]]
  assert names(comparison.right) == [[2020, 1520, 1020], [2040, 1540, 1040]]
  payoff = [[-10, -5, 0], [10, 15, 20]]
  np.testing.assert_allclose(comparison.payoff, [payoff, payoff])
  for side in (comparison.left, comparison.right):
    shape = side.tokens.shape
    assert all(leaf.shape == shape for leaf in jax.tree.leaves(side))
    np.testing.assert_array_equal(side.log_probs, -side.tokens)
    np.testing.assert_array_equal(side.entropy, side.tokens)


def test_shared_sides_are_sampled_once():
  comparison, sampler, feedback = run_step([SNAPSHOT, POLICY, REFERENCE], LEFT)
  assert sampler.calls == [[SNAPSHOT, POLICY, REFERENCE]]
  assert names(comparison.left) == [[3020, 1020, 2020], [3040, 1040, 2040]]
  assert comparison.right is comparison.left
  ((seen, _),) = feedback.calls
  assert seen.right is seen.left
  payoff = [[0, 20, 10], [-20, 0, -10], [-10, 10, 0]]
  np.testing.assert_allclose(comparison.payoff, [payoff, payoff])


@pytest.mark.parametrize(
  'row',
  [catalogue.dpo(0.1), catalogue.preference_model(), catalogue.sft()],
  ids=['dpo', 'pm', 'sft'],
)
def test_data_is_returned_unchanged_if_nothing_is_sampled(row):
  sampler, feedback = Sampler(), Feedback()
  batch = Comparison(PROMPTS, responses([[[1]], [[2]]]))
  assert make_rollout_step(row, sampler, feedback)(PARAMS, batch, KEY) is batch
  assert not sampler.calls
  assert not feedback.calls


def test_demonstrations_beat_samples_without_a_judge():
  batch = Comparison(PROMPTS, responses([[[1]], [[2]]]))
  comparison, sampler, feedback = run_step(DATA, [SNAPSHOT, POLICY], batch)
  assert sampler.calls == [[SNAPSHOT, POLICY]]
  assert comparison.prompts is PROMPTS
  assert comparison.left is batch.left
  assert names(comparison.right) == [[3020, 1020], [3040, 1040]]
  np.testing.assert_array_equal(comparison.payoff, np.full((2, 1, 2), 0.5))
  assert not feedback.calls


def test_demonstrations_may_differ_from_samples_in_shape():
  tokens = jnp.zeros((2, 1, 5), jnp.int32)
  batch = Comparison(PROMPTS, Responses(tokens, tokens == 0))
  comparison, _, _ = run_step(DATA, [SNAPSHOT], batch)
  assert comparison.left.log_probs is None
  assert comparison.right.log_probs is not None


@pytest.mark.parametrize(
  ('row', 'shape'),
  [
    (catalogue.self_play(0.1), (2, 1, 1)),
    (catalogue.spo(0.1, queue=3, every=1), (2, 1, 3)),
    (catalogue.sppo(1.0, samples=4, every=1, log_z=0.5), (2, 4, 4)),
    (catalogue.rebel(1.0, every=1), (2, 2, 1)),
    (catalogue.egpo(0.1, temperature=2.0), (2, 2, 1)),
    (catalogue.rso(0.5, 0.1, candidates=4, keep=2), (2, 5, 5)),
  ],
  ids=['self_play', 'spo', 'sppo', 'rebel', 'egpo', 'rso'],
)
def test_algorithms_sample_the_responses_they_declare(row, shape):
  params = {slot: place for place, slot in enumerate(('policy', *row.references))}
  rollout_step = make_rollout_step(row, Sampler(), Feedback())
  assert rollout_step(params, PROMPTS, KEY).payoff.shape == shape


# --- Feedback: a judge's preference, as a probability or as sampled votes ---

PAYOFF = np.array([[[0.5, 0.2, 0.0], [-0.1, -0.5, 0.35]]], np.float32)
VOTES = 20_000


def constant(payoff):
  return lambda comparison: jnp.asarray(payoff)


def sample_votes(judge, comparison):
  """Payoffs of VOTES independent calls, [VOTES, B, K, J]."""
  judge_with_votes = with_feedback(judge, vote)
  answers = jax.jit(jax.vmap(lambda key: judge_with_votes(comparison, key)))
  return np.array(answers(jax.random.split(KEY, VOTES)))


def assert_votes(votes, payoff):
  """The means of votes are within five standard errors of the payoff."""
  error = np.sqrt((0.25 - payoff**2) / VOTES)
  assert np.all(abs(votes.mean(axis=0) - payoff) <= 5 * error + 1e-6)


def test_probability_feedback_is_the_payoff():
  sides = responses([[[1], [2]]]), responses([[[3], [4], [5]]])
  found = with_feedback(constant(PAYOFF), probability)(Comparison(PROMPTS, *sides), KEY)
  np.testing.assert_array_equal(found, PAYOFF)


def test_votes_have_the_payoff_as_mean():
  sides = responses([[[1], [2]]]), responses([[[3], [4], [5]]])
  votes = sample_votes(constant(PAYOFF), Comparison(PROMPTS, *sides))
  assert set(np.unique(votes)) == {-0.5, 0.5}
  assert_votes(votes, PAYOFF)
  assert np.all(votes[:, 0, 0, 0] == 0.5)  # certain outcomes
  assert np.all(votes[:, 0, 1, 1] == -0.5)


def test_votes_on_different_pairs_are_independent():
  sides = responses([[[1], [2]]]), responses([[[3], [4], [5]]])
  votes = sample_votes(constant(np.zeros((1, 2, 3))), Comparison(PROMPTS, *sides)).reshape(
    VOTES, -1
  )
  together = np.corrcoef(votes.T) - np.eye(6)
  assert abs(together).max() < 5 / np.sqrt(VOTES)


def test_shared_sides_get_antisymmetric_votes():
  upper = np.triu(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 4, 4)).astype(np.float32), 1)
  payoff = upper - upper.swapaxes(1, 2)
  left = responses(np.arange(8).reshape(2, 4, 1))
  votes = sample_votes(constant(payoff), Comparison(PROMPTS, left, left))
  np.testing.assert_array_equal(votes, -votes.swapaxes(2, 3))
  for place, other in itertools.product(range(4), repeat=2):
    values = {0.0} if place == other else {-0.5, 0.5}
    assert set(np.unique(votes[:, :, place, other])) == values
  off = ~np.eye(4, dtype=bool)
  assert_votes(votes[:, :, off], payoff[:, off])


def test_shared_sides_keep_their_probabilities():
  upper = np.triu(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 4, 4)).astype(np.float32), 1)
  payoff = upper - upper.swapaxes(1, 2)
  left = responses(np.arange(8).reshape(2, 4, 1))
  found = with_feedback(constant(payoff), probability)(Comparison(PROMPTS, left, left), KEY)
  np.testing.assert_array_equal(found, payoff)


def test_equal_but_distinct_sides_get_independent_votes():
  left, right = responses([[[1], [2]]]), responses([[[1], [2]]])
  votes = sample_votes(constant(np.zeros((1, 2, 2))), Comparison(PROMPTS, left, right))
  assert np.any(votes != -votes.swapaxes(2, 3))
  assert np.all(votes != 0)


def test_antisymmetric_judge_calls_both_orders_once():
  calls = []

  def likes_the_first_place(comparison):
    calls.append(comparison)
    left, right = (side.tokens[..., 0] for side in (comparison.left, comparison.right))
    return 0.2 + 0.01 * (left[:, :, None] - right[:, None, :])

  judge = antisymmetric(likes_the_first_place)
  left, right = responses([[[1], [2]]]), responses([[[4], [8], [9]]])
  apart = judge(Comparison(PROMPTS, left, right))
  np.testing.assert_allclose(apart, [[[-0.03, -0.07, -0.08], [-0.02, -0.06, -0.07]]], atol=1e-7)
  assert len(calls) == 2

  calls.clear()
  shared = judge(Comparison(PROMPTS, left, left))
  np.testing.assert_allclose(shared, [[[0, -0.01], [0.01, 0]]], atol=1e-7)
  assert len(calls) == 1
