"""A mixture is sampled token by token from the filtered geometric mean of its members."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from nlhf_jax.models.decoder import Decoder, PrefillCache
from nlhf_jax.sampling import sampler, speculative, token
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.structs import Prompts
from tests.laws import exact

ROWS = 20_000
SAMPLE = jax.jit(token.sample_token)
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


def filter_row(logits, filters):
  """The expected `token.filter_logits` of one row without ties."""
  p = np.exp(log_softmax(logits / filters.temperature))
  order = np.argsort(-p)
  keep = order[: filters.top_k or None]
  p = p / p[keep].sum()
  reached = np.cumsum(p[keep]) >= filters.top_p
  if reached.any():
    keep = keep[: np.argmax(reached) + 1]
  out = np.full(len(p), -np.inf)
  out[keep] = np.log(p[keep] / p[keep].sum())
  return out


def assert_frequencies(counts, chances):
  """Frequencies are within five standard errors; impossible events never occur."""
  chances = np.asarray(chances)
  error = np.sqrt(chances * (1 - chances) / counts.sum())
  assert np.all(abs(counts / counts.sum() - chances) <= 5 * error)


def random_tables(symbols=5):
  random = np.random.default_rng(0)
  return {slot: random.normal(size=(symbols, symbols)) for slot in ('policy', 'reference')}


FILTERS = {
  'unfiltered': token.UNFILTERED,
  'temperature': token.Filters(temperature=0.7),
  'top_k': token.Filters(top_k=2),
  'top_p': token.Filters(top_p=0.6),
  'all': token.Filters(temperature=1.5, top_k=4, top_p=0.8),
}


@pytest.mark.parametrize('name', FILTERS)
def test_filters_keep_the_most_likely_tokens(name):
  logits = 2 * np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32)
  expected = [filter_row(row, FILTERS[name]) for row in logits]
  np.testing.assert_allclose(
    token.filter_logits(jnp.asarray(logits), FILTERS[name]), expected, atol=1e-5
  )


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


def test_accepted_drafts_have_the_target_distribution():
  """The first draft is accepted with probability sum(min(p, q)), the second only after it."""
  draft, target = np.log([[0.5, 0.3, 0.2]] * 2), np.log([[0.2, 0.3, 0.5]] * 2)
  keys = jax.random.split(jax.random.key(0), 2)
  tokens = jax.random.categorical(keys[0], draft, shape=(ROWS, 2))
  tile = lambda x: jnp.tile(jnp.asarray(x, jnp.float32), (ROWS, 1, 1))
  uniform = jax.random.uniform(keys[1], (ROWS, 3))
  sampled, count = jax.jit(speculative.accept)(tokens, tile(draft), tile(target), uniform)
  assert_frequencies(np.bincount(sampled.token[:, 0], minlength=3), np.exp(target[0]))
  accepted = 0.2 + 0.3 + 0.2
  assert_frequencies(np.bincount(count - 1, minlength=2), [1 - accepted, accepted])
  second = sampled.token[:, 1][count == 2]
  assert_frequencies(np.bincount(second, minlength=3), np.exp(target[1]))
  np.testing.assert_allclose(sampled.log_prob, target[0][sampled.token], rtol=1e-5)
  np.testing.assert_allclose(
    sampled.entropy, -np.sum(np.exp(target) * target, axis=1)[0], rtol=1e-5
  )


def test_draft_from_the_target_is_accepted():
  logits = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (ROWS, 3, 7)))
  tokens = jax.random.categorical(jax.random.key(1), logits)
  uniform = jax.random.uniform(jax.random.key(2), (ROWS, 4))
  sampled, count = jax.jit(speculative.accept)(tokens, logits, logits, uniform)
  np.testing.assert_array_equal(sampled.token, tokens)
  assert np.all(count == 3)


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


CHANCES = np.array([0, 0.5, 0, 0.3, 0.2, 0], np.float32)


@pytest.mark.parametrize('symbols', [6, 64, 1_000])
def test_token_frequencies_equal_their_probabilities(symbols):
  chances = np.resize(CHANCES, symbols)
  chances = chances / chances.sum()
  with np.errstate(divide='ignore'):
    logits = np.log(chances) + 3
  sampled = SAMPLE(jax.random.uniform(jax.random.key(0), (ROWS,)), jnp.tile(logits, (ROWS, 1)))
  assert_frequencies(np.bincount(sampled.token, minlength=symbols), chances)
  np.testing.assert_allclose(np.exp(sampled.log_prob), chances[sampled.token], rtol=1e-5)
  some = chances[chances > 0]
  np.testing.assert_allclose(sampled.entropy, -np.sum(some * np.log(some)), rtol=1e-5)


@pytest.mark.parametrize(
  ('symbols', 'numbers'), [(6, 2_000), (66, 2_000), (300, 2_000), (30_000, 100)]
)
def test_impossible_tokens_are_never_sampled(symbols, numbers):
  below_one = np.nextafter(np.float32(1), np.float32(0))
  spread = np.tile(CHANCES, symbols // len(CHANCES))
  last = np.flatnonzero(spread)[-1]
  uniform = np.linspace(0, 1, numbers, endpoint=False, dtype=np.float32)
  uniform = np.concatenate([uniform, [below_one]])
  for scale in (1, 1.9, 0.3, 1e-3):  # rounding depends on the sum
    logits = np.tile(np.log(np.maximum(spread * scale, 1e-38)), (len(uniform), 1))
    logits[:, spread == 0] = -np.inf
    sampled = SAMPLE(jnp.asarray(uniform), jnp.asarray(logits, jnp.float32))
    assert np.all(spread[sampled.token] > 0)
    assert np.all(np.diff(sampled.token) >= 0)
    assert (sampled.token[0], sampled.token[-1]) == (1, last)
