"""A mixture is sampled token by token from the filtered geometric mean of its members."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nlhf_jax.algorithms.losses import policy_gradient
from nlhf_jax.models.decoder import Decoder, PrefillCache
from nlhf_jax.sampling import sampler
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.structs import Comparison, Prompts, Scores
from tests.laws import exact
from tests.sampling.expected import FILTERS, ROWS, assert_frequencies, filter_row

HALF = {'policy': 0.5, 'reference': 0.5}


# A model whose logits are a table [V, V], indexed by the last token.
BIGRAM = Decoder(
  init=None,
  prefill=lambda table, tokens, mask: (table[tokens], PrefillCache((), (), mask)),
  decode=lambda table, tokens, cache: (table[tokens], cache),
  logits=lambda table, hidden: hidden,
)


def sample(tables, mixtures, *, length=2, rows=ROWS, stop=None, **options):
  """One response to each of many prompts, which all are the last token; [rows, T]."""
  last = len(tables['policy']) - 1
  stop = last if stop is None else stop
  prompts = Prompts(jnp.full((rows, 1), last), jnp.ones((rows, 1), bool))
  rollout = make_rollout(BIGRAM, mixtures, length=length, stop=stop, **options)
  tables = {slot: jnp.asarray(table, jnp.float32) for slot, table in tables.items()}
  sampled = rollout(tables, prompts, jax.random.key(0))
  return [jax.tree.map(lambda leaf: np.array(leaf[:, 0]), responses) for responses in sampled]


def random_tables(symbols=5):
  random = np.random.default_rng(0)
  return {slot: random.normal(size=(symbols, symbols)) for slot in ('policy', 'reference')}


@pytest.mark.parametrize(('name', 'drafts'), [('unfiltered', 1), ('unfiltered', 4), ('all', 2)])
def test_tokens_have_the_filtered_mixture_distribution(name, drafts, monkeypatch):
  monkeypatch.setattr(sampler, 'default_draft_length', lambda: drafts)
  tables = random_tables()
  mixtures = [{'policy': 0.3, 'reference': 0.7}, {'policy': 1.0}, {'reference': 1.0}]
  symbols, length = 5, 3
  sampled = sample(tables, mixtures, length=length, filters=FILTERS[name])
  for mixture, responses in zip(mixtures, sampled, strict=True):
    logits = sum(weight * tables[slot] for slot, weight in mixture.items())
    table = np.stack([filter_row(row, FILTERS[name]) for row in logits])
    prompt = np.full((ROWS, 1), symbols - 1)
    before = np.concatenate([prompt, responses.tokens[:, :-1]], axis=1)

    chosen = np.where(responses.mask, table[before, responses.tokens], 0)
    np.testing.assert_allclose(responses.log_probs, chosen, atol=1e-5)
    entropy = -np.sum(np.exp(table) * np.where(np.isfinite(table), table, 0), axis=1)
    np.testing.assert_allclose(
      responses.entropy, np.where(responses.mask, entropy[before], 0), atol=1e-5
    )
    for last in range(symbols):
      followed = responses.tokens[responses.mask & (before == last)]
      if followed.size:
        assert_frequencies(np.bincount(followed, minlength=symbols), np.exp(table[last]))


@pytest.mark.parametrize('drafts', [1, 2])
def test_token_mixture_is_not_the_sequence_mixture(drafts, monkeypatch):
  # arXiv 2312.00886, appendix F.1, on two tokens of two symbols: after 0 the reference cancels the
  # policy's preference, which lowers sequences that start with 0, but not the first token.
  log_probs = {slot: exact.two_tokens(table).sum(-1) for slot, table in exact.TWO_TOKENS.items()}
  sequences = np.exp(exact.mixed(HALF, log_probs))
  np.testing.assert_allclose(sequences[:2].sum(), 0.393224, atol=1e-6)
  np.testing.assert_allclose(np.sum(0.25 * np.log(0.25 / sequences)), 0.023339, atol=1e-6)

  # The third symbol is the stop token and the prompt; its row has the logits of the first token.
  tables = {
    slot: np.pad(table[[1, 2, 0]], ((0, 0), (0, 1)), constant_values=-np.inf)
    for slot, table in exact.TWO_TOKENS.items()
  }
  monkeypatch.setattr(sampler, 'default_draft_length', lambda: drafts)
  (responses,) = sample(tables, [HALF])
  assert responses.mask.all()
  np.testing.assert_allclose(responses.log_probs.sum(1), np.log(0.25), atol=1e-6)
  counts = np.bincount(responses.tokens @ [2, 1], minlength=4)
  assert_frequencies(counts, np.full(4, 0.25))
  assert_frequencies(np.array([counts[:2].sum(), counts[2:].sum()]), [0.5, 0.5])


def test_weights_one_and_zero_give_the_first_member():
  tables = random_tables()
  (mixture,) = sample(tables, [{'reference': 1.0, 'policy': 0.0}], rows=100, length=6)
  (alone,) = sample(tables, [{'reference': 1.0}], rows=100, length=6)
  jax.tree.map(np.testing.assert_array_equal, mixture, alone)


def test_response_lengths_have_the_expected_distribution():
  length, stop = 6, 1
  tables = {'policy': np.log([[0.8, 0.2]] * 2), 'reference': np.log([[0.5, 0.5]] * 2)}
  (responses,) = sample(tables, [HALF], length=length, stop=stop)
  stopping = np.sqrt(0.2 * 0.5) / (np.sqrt(0.2 * 0.5) + np.sqrt(0.8 * 0.5))  # 1/3

  lengths = responses.mask.sum(1)
  chances = stopping * (1 - stopping) ** np.arange(length)
  chances[-1] = (1 - stopping) ** (length - 1)  # stopped there or truncated
  assert_frequencies(np.bincount(lengths - 1, minlength=length), chances)

  columns = np.arange(length)
  np.testing.assert_array_equal(responses.mask, columns < lengths[:, None])
  stopped = responses.tokens == stop
  np.testing.assert_array_equal(
    stopped & responses.mask, stopped & (columns == lengths[:, None] - 1)
  )
  assert np.all(stopped[~responses.mask])
  assert np.all(responses.log_probs[~responses.mask] == 0)
  assert np.all(responses.entropy[~responses.mask] == 0)


# --- At the fixed point of Nash-MD, a mixture of tokens is only nearly an equilibrium ---

# Two tokens of three symbols, first a, then b: the type of a response decides who wins, and a
# little quality is added.
KINDS = np.array([[0, 1, 0], [1, 0, 1], [2, 2, 2]]).ravel()
QUALITY = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1]]).ravel()
OF_KINDS = np.array([[0, -0.4, 0.2], [0.4, 0, -0.3], [-0.2, 0.3, 0]])
PAYOFF = OF_KINDS[np.ix_(KINDS, KINDS)] + 0.05 * (QUALITY[:, None] - QUALITY)
# Rows: the first token, the second after 0, 1 and 2.
LOG_MU = np.log([[0.5, 0.3, 0.2], *[[0.2, 0.5, 0.3]] * 3])
BETA = 0.125


def chances(log_pi):
  """Log-probabilities of the nine responses."""
  return (log_pi[0][:, None] + log_pi[1:]).ravel()


def token_reply(gains, tau):
  """The best response to an opponent who leaves these gains, by soft backward induction."""
  second = LOG_MU[1:] + gains.reshape(3, 3) / tau
  first = LOG_MU[0] + special.logsumexp(second, axis=1)
  return np.concatenate([[special.log_softmax(first)], special.log_softmax(second, axis=1)])


def mixed_tokens(log_pi):
  """The mixture of every token with the reference."""
  return special.log_softmax((1 - BETA) * log_pi + BETA * LOG_MU, axis=1)


def mixed_responses(log_pi):
  """The mixture of whole responses, as the conditional probabilities of its tokens."""
  mixed = ((1 - BETA) * chances(log_pi) + BETA * chances(LOG_MU)).reshape(3, 3)
  first = special.log_softmax(special.logsumexp(mixed, axis=1))
  return np.concatenate([[first], special.log_softmax(mixed, axis=1)])


@pytest.mark.parametrize(
  ('mix', 'tau', 'expected'),
  [
    (mixed_tokens, 0.1, 2.422e-7),
    (mixed_tokens, 0.02, 1.218e-5),
    (mixed_responses, 0.1, 0),
    (mixed_responses, 0.02, 0),
  ],
)
def test_mixture_of_tokens_is_nearly_the_equilibrium(mix, tau, expected, float64):
  log_pi = LOG_MU
  for _ in range(3000):
    reply = token_reply(PAYOFF @ np.exp(chances(mix(log_pi))), tau)
    log_pi = special.log_softmax(log_pi + 0.02 * (reply - log_pi), axis=1)
  gains = PAYOFF @ np.exp(chances(mix(log_pi)))

  # Nash-MD-PG is at rest there.
  def loss(logits):
    log_probs = jax.nn.log_softmax(logits)
    tokens = jnp.stack([jnp.repeat(log_probs[0], 3), log_probs[1:].ravel()], axis=-1)[:, None]
    reference = jnp.stack([jnp.repeat(LOG_MU[0], 3), LOG_MU[1:].ravel()], axis=-1)[:, None]
    scores = {'policy': Scores(tokens), 'reference': Scores(reference)}
    comparison = Comparison(None, None, None, jnp.asarray(gains)[:, None, None])
    return np.exp(chances(log_pi)) @ policy_gradient(reference=tau)(scores, comparison).ravel()

  np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(log_pi)), 0, rtol=0, atol=1e-12)
  mixture, price = mix(log_pi), tau / (1 - BETA)
  best = token_reply(gains, price)
  kl = np.exp(chances(mixture)) @ (chances(mixture) - chances(best))
  np.testing.assert_allclose(price * kl, expected, rtol=3e-4, atol=1e-15)
