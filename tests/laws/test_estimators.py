"""The sampled gradient of the real update is an unbiased estimate of the exact one.

Four tokens, one of which stops, and at most three positions: 40 responses to each of two prompts of
different lengths. Enumerating them under each mixture, token by token, gives the gradient of the
expected loss exactly, with probabilities held fixed. It is compared with the gradient of the
real update on what the real sampler draws from a transformer. As every row reads one of 80 known
responses, the update is given their log-probabilities as the policy's parameters, and its gradient
is carried on to the transformer's parameters by the chain rule;
`test_lookup_of_responses_changes_no_gradient` shows that this changes nothing.

The statistic: the mean gradient over the batches, less the exact one, along the exact one and along
16 random directions, each divided by its standard error. None may exceed 6. Seeds are fixed: a test
that passes once always does.

The slow tier draws 256 batches. There Student's t exceeds 6 by chance once in 1e8 times, and so one
of these tests (under 300 such numbers) less than three times in a million. Each case also asserts
its power: along the exact gradient, a bias of the stated fraction of its norm would be found 99
times in 100. The quick tier draws 64 batches: standard errors, and so the smallest bias that is
found 99 times in 100, are twice as large, and one of these tests fails by chance three times in
100,000. The known errors planted at the end are found in both.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import LEFT, mixture
from nlhf_jax.algorithms.losses import forward_kl, log_ratio, policy_gradient, squared_ratio
from nlhf_jax.algorithms.selection import subtract_constant
from nlhf_jax.models import scoring
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.structs import Comparison, Prompts, Responses, Scores, TrainState
from nlhf_jax.training.rollout_step import make_rollout_step
from nlhf_jax.training.update import make_update
from tests.laws import tiny

VOCABULARY, STOP, LENGTH = 4, 2, 3
ROWS = 512
FULL = 256  # batches, in the slow tier
QUICK = 64
THRESHOLD = 6
FOUND = THRESHOLD + 2.33  # standard errors of a bias that passes the threshold 99 times in 100
TAU = 0.1

DECODER = tiny.decoder(VOCABULARY)
SLOTS = ('policy', 'reference', 'snapshot', 'ahead')
PARAMS = {
  slot: tiny.parameters(DECODER, seed) for slot, seed in zip(SLOTS, (5, 2, 3, 4), strict=True)
}
# The second prompt is one token long; its padding has tokens like any other.
PROMPTS = Prompts(
  jnp.array([[1, 3, 0], [1, 0, 3]]), jnp.array([[True, True, True], [False, False, True]])
)


def _all_responses():
  """Every response: tokens and mask, [40, 3]."""
  others = [token for token in range(VOCABULARY) if token != STOP]
  texts = [
    (*start, STOP) for length in range(LENGTH) for start in itertools.product(others, repeat=length)
  ]
  texts += itertools.product(others, repeat=LENGTH)  # cut at the greatest length
  tokens = np.array([text + (STOP,) * (LENGTH - len(text)) for text in texts], np.int32)
  return tokens, np.arange(LENGTH) < np.array([len(text) for text in texts])[:, None]


TOKENS, MASK = _all_responses()
COUNT = len(TOKENS)
ALL = Responses(jnp.tile(TOKENS, (2, 1, 1)), jnp.tile(MASK, (2, 1, 1)))
DIGITS = VOCABULARY ** np.arange(LENGTH)
# The digits of a number, as the tokens of a response -> the index of that response.
INDICES = np.zeros(VOCABULARY**LENGTH, np.int32)
INDICES[TOKENS @ DIGITS] = np.arange(COUNT)


def _game():
  """Payoffs [2, 40, 40]: half from an order of the responses, half random."""
  random = np.random.default_rng(11)
  quality, noise = random.normal(size=(2, COUNT)), random.normal(size=(2, COUNT, COUNT))
  upper = np.triu(quality[:, :, None] - quality[:, None, :] + noise, 1)
  return np.tanh(upper - upper.swapaxes(1, 2)).astype(np.float32) / 2


PAYOFF = _game()


# --- The real update, on indices of responses ---


def indices(responses):
  return jnp.asarray(INDICES)[responses.tokens @ DIGITS]


def prompt_of(comparison):
  """The prompt of each row: 0 and 1 alternate."""
  return jnp.arange(len(comparison.left.tokens)) % 2


def judge(comparison, key):
  del key
  row = prompt_of(comparison)[:, None, None]
  left, right = indices(comparison.left), indices(comparison.right)
  return jnp.asarray(PAYOFF)[row, left[:, :, None], right[:, None, :]]


def look_up(table, comparison):
  """The scores of a slot whose parameters are its log-probabilities of the 80 responses."""
  row = prompt_of(comparison)[:, None]
  sides = (side and table[row, indices(side)] for side in (comparison.left, comparison.right))
  return Scores(*sides)


@tiny.jit
def listed_log_probs(params):
  """[2, 40, 3]."""
  return scoring.log_probs(DECODER, params, PROMPTS, ALL)


@tiny.jit
@jax.jacrev
def listed_derivatives(params, mask):
  """[240, ...], where `mask` is that of the prompts."""
  return scoring.log_probs(DECODER, params, PROMPTS._replace(mask=mask), ALL).ravel()


@functools.cache
def tables():
  """Log-probabilities of the responses: slot -> [2, 40, 3]."""
  return {slot: np.array(listed_log_probs(params)) for slot, params in PARAMS.items()}


@functools.cache
def jacobian_of_policy(padded=True):
  """Derivatives of the policy's log-probabilities by its parameters: [240, parameters].

  Unless `padded`, the padding of the second prompt counts as part of the prompt.
  """
  mask = PROMPTS.mask if padded else jnp.full_like(PROMPTS.mask, True)
  jacobian = listed_derivatives(PARAMS['policy'], mask)
  return np.array(jax.vmap(lambda row: ravel_pytree(row)[0])(jacobian), float)


def rollouts(mixtures):
  return make_rollout(DECODER, mixtures, length=LENGTH, stop=STOP)


@pytest.fixture(
  scope='module',
  params=[QUICK, pytest.param(FULL, marks=pytest.mark.slow)],
  ids='{} batches'.format,
)
def batches(request):
  """How many batches are drawn."""
  return request.param


@functools.cache
def sample_batches(left, right, rows, batches):
  """Responses from the real sampler with the judge's payoff: a comparison [batches, rows, ...].

  A side is a tuple of mixtures, each a tuple of slots and weights, or `LEFT`.
  """
  sides = [side if side == LEFT else [dict(members) for members in side] for side in (left, right)]
  row = catalogue.self_play(TAU)._replace(left=sides[0], right=sides[1])
  play = make_rollout_step(row, rollouts, judge)
  prompts = Prompts(*(jnp.tile(leaf, (rows // 2, 1)) for leaf in PROMPTS))

  def batch(key):
    return play(PARAMS, prompts, key)

  def all_batches(keys):
    comparisons = lax.map(batch, keys)
    # To an update, shared responses are one object; `update_gradient` restores that.
    return comparisons._replace(right=None) if right == LEFT else comparisons

  return tiny.jit(all_batches)(jax.random.split(jax.random.key(0), batches))


REMEMBER = optax.GradientTransformation(
  lambda params: jax.tree.map(jnp.zeros_like, params),
  lambda gradient, memory, params: (jax.tree.map(jnp.zeros_like, gradient), gradient),
)


def update_gradient(algorithm, score, params, comparison):
  """The gradient that the real update hands to its optimiser."""
  if algorithm.right == LEFT:
    comparison = comparison._replace(right=comparison.left)
  update = make_update(algorithm, score, REMEMBER, lambda *_: {})
  slots = {slot: params[slot] for slot in ('policy', *algorithm.references)}
  # The second update: in extragradient algorithms the first moves no policy.
  state = TrainState(jnp.int32(1), slots, REMEMBER.init(slots['policy']), {})
  return update(state, comparison, jax.random.key(0))[0].optimizer


def draws(algorithm, batches, rows=ROWS):
  hashable = lambda side: side if side == LEFT else tuple(tuple(m.items()) for m in side)
  return sample_batches(hashable(algorithm.left), hashable(algorithm.right), rows, batches)


def sampled_gradients(algorithm, comparisons, score=look_up, padded=True):
  """The gradient of each batch, by the policy's parameters: [batches, parameters]."""
  step = functools.partial(update_gradient, algorithm, score, jax.tree.map(jnp.array, tables()))
  gradients = tiny.jit(lambda batches: lax.map(step, batches))(comparisons)
  return np.array(gradients, float).reshape(len(gradients), -1) @ jacobian_of_policy(padded)


# --- The exact gradient ---


@functools.cache
def next_logits(slot):
  """Logits of the next token at each position of each response, without a cache: [2, 40, 3, 4]."""
  rows = lambda of_prompt, of_response: jnp.concatenate(
    [jnp.repeat(of_prompt, COUNT, axis=0), jnp.tile(of_response, (2, 1))], axis=1
  )

  @tiny.jit
  def read(params):
    hidden, _ = DECODER.prefill(params, rows(PROMPTS.tokens, TOKENS), rows(PROMPTS.mask, MASK))
    return DECODER.logits(params, hidden[:, -LENGTH - 1 : -1])

  return np.array(read(PARAMS[slot]), float).reshape(2, COUNT, LENGTH, VOCABULARY)


def probabilities(members):
  """The probability of each response under a mixture of slots: [2, 40]."""
  logits = sum(weight * next_logits(slot) for slot, weight in members.items())
  log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
  chosen = np.take_along_axis(log_p, np.array(ALL.tokens)[..., None], axis=-1)[..., 0]
  return np.exp(np.sum(chosen * MASK, axis=-1))


def derivative(objective):
  """Of a function of the policy's log-probabilities [2, 40, 3], by the policy's parameters."""
  gradient = tiny.jit(jax.grad(objective))(jnp.asarray(tables()['policy']))
  return np.array(gradient, float).ravel() @ jacobian_of_policy()


def expected_gradient(algorithm):
  """Of the expected loss: that of every tuple of responses, weighted by its probability."""
  shared = algorithm.right == LEFT
  mixtures = [*algorithm.left, *([] if shared else algorithm.right)]
  tuples = np.array(list(itertools.product(range(COUNT), repeat=len(mixtures))))
  each = [
    probabilities(members)[:, column] for members, column in zip(mixtures, tuples.T, strict=True)
  ]
  probability = np.prod(each, axis=0)
  np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)

  listed = np.repeat(tuples, 2, axis=0)  # prompts alternate
  sides = np.split(listed, [len(algorithm.left)], axis=1)
  left, right = (Responses(TOKENS[side], MASK[side]) for side in sides)
  prompts = Prompts(*(np.tile(leaf, (len(tuples), 1)) for leaf in PROMPTS))
  comparison = jax.tree.map(jnp.array, Comparison(prompts, left, left if shared else right))

  def expected_loss(table):
    played = comparison._replace(right=comparison.left) if shared else comparison
    played = played._replace(payoff=judge(played, None))
    selected = algorithm.select(played, jax.random.key(0))
    scores = {slot: look_up(jnp.asarray(tables()[slot]), selected) for slot in algorithm.references}
    values = algorithm.loss({'policy': look_up(table, selected), **scores}, selected)
    return jnp.sum(values.reshape(len(listed), -1).mean(axis=1) * probability.T.ravel()) / 2

  return derivative(expected_loss)


def regularised_preference(opponent, tau, payoff=PAYOFF):
  """-P_tau(pi > opponent), in the mean over the prompts (arXiv 2312.00886, eq. 2)."""
  mean_payoff = np.einsum('pij,pj->pi', payoff, probabilities(opponent))

  def objective(table):
    log_pi, log_mu = jnp.sum(table, axis=-1), tables()['reference'].sum(axis=-1)
    return -jnp.sum(jnp.exp(log_pi) * (mean_payoff - tau * (log_pi - log_mu))) / 2

  return derivative(objective)


# --- The statistic ---


def errors(gradients, exact):
  """Errors of the mean in standard errors, along the exact gradient first: [17]; and that one's
  standard error in norms of the exact gradient."""
  norm = np.linalg.norm(exact)
  random = np.random.default_rng(0).normal(size=(len(exact), 16))
  along = (gradients - exact) @ np.concatenate([exact[:, None] / norm, random], axis=1)
  standard = along.std(axis=0, ddof=1) / np.sqrt(len(along))
  return along.mean(axis=0) / standard, standard[0] / norm


def assert_unbiased(gradients, exact, detectable):
  """No bias is seen, and one of `detectable` norms of the exact gradient would be.

  `detectable` is that of `FULL` batches; fewer have a larger standard error.
  """
  scores, standard = errors(gradients, exact)
  assert abs(scores).max() < THRESHOLD, scores
  found = standard * FOUND
  limit = detectable * np.sqrt(FULL / len(gradients))
  assert found < limit, f'the smallest bias that is found is {found:.3f}, not {limit:.3f}'


# --- The laws ---

POLICY, HALF = mixture(policy=1.0), mixture(policy=0.5, reference=0.5)
SELF_PLAY, NASH_MD_PG = catalogue.self_play(TAU), catalogue.nash_md_pg(0.5, TAU)
MANY = NASH_MD_PG._replace(left=[POLICY] * 2, right=[HALF] * 3)
SHARED = SELF_PLAY._replace(left=[POLICY] * 3, right=LEFT)
SPPO = catalogue.sppo(eta=1.0, samples=2, every=1, log_z=0.5)
NO_BASELINE = subtract_constant(-0.5)


def whole_response(scores, comparison):
  """Credits every token with the log-ratio of the whole response: unbiased, with more variance."""
  del comparison
  ratio = jnp.sum(log_ratio(scores, 'left', {'reference': 1.0}), axis=-1)
  return lax.stop_gradient(ratio) * jnp.sum(scores['policy'].left, axis=-1)


def half_squared_ratio(scores, comparison):
  return squared_ratio(reference=1.0)(scores, comparison) / 2


def without_payoff(loss):
  return lambda scores, comparison: loss(
    scores, comparison._replace(payoff=jnp.zeros_like(comparison.payoff))
  )


KL_FORMS = {
  'reward_to_go': without_payoff(policy_gradient(reference=1.0)),
  'whole_response': whole_response,
  'half_squared_ratio': half_squared_ratio,
}
FORWARD_KL = forward_kl(10.0, reference=1.0)


@pytest.mark.parametrize('row', [MANY, SPPO], ids=['many', 'shared_and_selected'])
def test_lookup_of_responses_changes_no_gradient(row):
  rows = 64 if row is MANY else 128
  batch = jax.tree.map(lambda leaf: leaf[0], draws(row, QUICK, rows))
  step = functools.partial(update_gradient, row, scoring.make_score(DECODER), PARAMS)
  real = np.array(ravel_pytree(tiny.jit(step)(batch))[0])
  looked_up = jax.tree.map(lambda leaf: leaf[None], batch)
  (quick,) = sampled_gradients(row, looked_up)
  np.testing.assert_allclose(quick, real, atol=2e-6 * abs(real).max())


@pytest.mark.parametrize('row', [SELF_PLAY, NASH_MD_PG], ids=['self_play', 'nash_md_pg'])
def test_expected_gradient_is_that_of_the_regularised_preference(row):
  (opponent,) = row.right
  truth = regularised_preference(opponent, TAU)
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6 * abs(truth).max())
  close(expected_gradient(row), truth)
  close(expected_gradient(row._replace(select=NO_BASELINE)), truth)


@pytest.mark.parametrize('form', KL_FORMS)
def test_all_kl_forms_have_the_same_gradient(form):
  kl = regularised_preference(POLICY, 1.0, payoff=np.zeros_like(PAYOFF))
  gradient = expected_gradient(SELF_PLAY._replace(loss=KL_FORMS[form]))
  np.testing.assert_allclose(gradient, kl, rtol=0, atol=1e-6 * abs(kl).max())


def test_importance_weights_give_the_forward_kl_gradient():
  mu = probabilities({'reference': 1.0})
  cross_entropy = lambda table: -jnp.sum(mu * jnp.sum(table, axis=-1)) / 2
  truth = derivative(cross_entropy)
  gradient = expected_gradient(SELF_PLAY._replace(loss=FORWARD_KL))
  np.testing.assert_allclose(gradient, truth, rtol=0, atol=1e-6 * abs(truth).max())


def test_shared_samples_scale_only_the_payoff_gradient():
  # 3 of 9 comparisons are of a response with itself.
  payoff = regularised_preference(POLICY, 0.0)
  kl = regularised_preference(POLICY, TAU) - payoff
  np.testing.assert_allclose(
    expected_gradient(SHARED), 2 / 3 * payoff + kl, rtol=0, atol=1e-4 * abs(payoff).max()
  )


# Algorithm, rows of a batch, and the smallest bias that `FULL` batches show, in norms of the exact
# gradient.
CASES = {
  'self_play': (SELF_PLAY, ROWS, 0.05),
  'self_play_without_baseline': (SELF_PLAY._replace(select=NO_BASELINE), ROWS, 0.05),
  'nash_md_pg': (NASH_MD_PG, 256, 0.05),
  'nash_md_pg_without_baseline': (NASH_MD_PG._replace(select=NO_BASELINE), 256, 0.06),
  'nash_md_pg_2_by_3': (MANY, 64, 0.1),
  'self_play_shared': (SHARED, 128, 0.1),
  'online_ipo': (catalogue.online_ipo(1.0), ROWS, 0.05),
  'sppo': (SPPO, 128, 0.1),
  'egpo': (catalogue.egpo(tau=1.0, temperature=2.0), 128, 0.1),
  **{name: (SELF_PLAY._replace(loss=loss), ROWS, 0.05) for name, loss in KL_FORMS.items()},
  'importance': (SELF_PLAY._replace(loss=FORWARD_KL), ROWS, 0.4),
}
# The expected gradient of 2 by 3 responses is that of one by one.
ONE_BY_ONE = {'nash_md_pg_2_by_3': NASH_MD_PG}


@pytest.mark.parametrize('case', CASES)
def test_sampled_gradients_average_to_the_exact_one(case, batches):
  row, rows, detectable = CASES[case]
  exact = expected_gradient(ONE_BY_ONE.get(case, row))
  assert_unbiased(sampled_gradients(row, draws(row, batches, rows)), exact, detectable)


def test_subtracting_one_half_reduces_variance(batches):
  comparisons = draws(SELF_PLAY, batches)
  spread = [
    np.sum(np.var(sampled_gradients(SELF_PLAY._replace(select=select), comparisons), axis=0))
    for select in (subtract_constant(0.0), NO_BASELINE)
  ]
  assert spread[1] > 1.5 * spread[0]


# --- Planted errors ---


def own_token(scores, comparison):
  """Credits each token with its own log-ratio, without that of later tokens."""
  log_pi, costs = scores['policy'].left, log_ratio(scores, 'left', {'reference': 1.0})
  regulariser = jnp.sum(log_pi * TAU * lax.stop_gradient(costs), axis=-1, keepdims=True)
  return regulariser - jnp.sum(log_pi, axis=-1, keepdims=True) * comparison.payoff


def differentiated(scores, comparison):
  """Differentiates the sampled log-ratio, which is zero in the mean, in place of the KL."""
  costs = jnp.sum(log_ratio(scores, 'left', {'reference': 1.0}), axis=-1, keepdims=True)
  return TAU * costs + policy_gradient()(scores, comparison)


def without_stop(table, comparison):
  """Scores without the stop token."""
  return look_up(jnp.where(jnp.asarray(ALL.tokens) == STOP, 0.0, table), comparison)


PLANTED = {
  'own_token': (SELF_PLAY._replace(loss=own_token), ROWS, {}),
  'differentiated': (SELF_PLAY._replace(loss=differentiated), ROWS, {}),
  'sampled_at_temperature_2': (SELF_PLAY._replace(left=[mixture(policy=0.5)]), 64, {}),
  'without_stop': (SELF_PLAY, ROWS, {'score': without_stop}),
  'padding_read': (SELF_PLAY, ROWS, {'padded': False}),
}


@pytest.mark.parametrize('name', PLANTED)
def test_planted_errors_are_found(name, batches):
  row, rows, how = PLANTED[name]
  gradients = sampled_gradients(row, draws(row, batches, rows), **how)
  scores, _ = errors(gradients, expected_gradient(SELF_PLAY))
  assert abs(scores).max() > THRESHOLD


def test_opponent_is_the_mixture_not_the_policy(batches):
  rows = 256 * FULL // batches  # the difference is small: equally many responses in both tiers
  gradients = sampled_gradients(NASH_MD_PG, draws(NASH_MD_PG, batches, rows))
  scores, _ = errors(gradients, expected_gradient(SELF_PLAY))
  assert abs(scores).max() > THRESHOLD
