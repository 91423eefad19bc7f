"""A mixture is sampled one step at a time, from the filtered geometric mean of its members."""

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
DRAW = jax.jit(token.sample_token)
HALF = {'policy': 0.5, 'reference': 0.5}


# A model that looks the next token's logits up in a table [V, V] by the last token alone.
BIGRAM = Decoder(
  init=None,
  prefill=lambda table, tokens, mask: (table[tokens], PrefillCache((), (), mask)),
  decode=lambda table, tokens, cache: (table[tokens], cache),
  logits=lambda table, hidden: hidden,
)


def sample(tables, mixtures, *, length=2, rows=ROWS, stop=None, **options):
  """One response to each of many one-token prompts, which all show the last token; [rows, T]."""
  last = len(tables['policy']) - 1
  stop = last if stop is None else stop
  prompts = Prompts(jnp.full((rows, 1), last), jnp.ones((rows, 1), bool))
  rollout = make_rollout(BIGRAM, mixtures, length=length, stop=stop, **options)
  tables = {slot: jnp.asarray(table, jnp.float32) for slot, table in tables.items()}
  sampled = rollout(tables, prompts, jax.random.key(0))
  return [jax.tree.map(lambda leaf: np.array(leaf[:, 0]), responses) for responses in sampled]


def in_filtering_order(logits, filters):
  """What `token.filter_logits` should give, one row at a time and without ties."""
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
  """Within five standard errors; what has no chance never happens."""
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
def test_filters_keep_the_likeliest_tokens(name):
  logits = 2 * np.random.default_rng(1).normal(size=(50, 7)).astype(np.float32)
  expected = [in_filtering_order(row, FILTERS[name]) for row in logits]
  np.testing.assert_allclose(
    token.filter_logits(jnp.asarray(logits), FILTERS[name]), expected, atol=1e-5
  )


@pytest.mark.parametrize(('name', 'drafts'), [('unfiltered', 1), ('unfiltered', 4), ('all', 2)])
def test_tokens_are_drawn_from_the_mixture_at_their_own_prefix_then_filtered(
  name, drafts, monkeypatch
):
  monkeypatch.setattr(sampler, 'default_draft_length', lambda: drafts)
  tables = random_tables()
  mixtures = [{'policy': 0.3, 'reference': 0.7}, {'policy': 1.0}, {'reference': 1.0}]
  symbols, length = 5, 3
  sampled = sample(tables, mixtures, length=length, filters=FILTERS[name])
  for mixture, responses in zip(mixtures, sampled, strict=True):
    logits = sum(weight * tables[slot] for slot, weight in mixture.items())
    table = np.stack([in_filtering_order(row, FILTERS[name]) for row in logits])
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
def test_one_step_at_a_time_is_not_the_mixture_of_sequences(drafts, monkeypatch):
  # arXiv 2312.00886, appendix F.1, on two tokens of two symbols: the reference takes back after 0
  # what the policy adds there, which a sequence pays for in its first token and a prefix does not.
  log_probs = {slot: exact.two_tokens(table).sum(-1) for slot, table in exact.TWO_TOKENS.items()}
  sequences = np.exp(exact.mixed(HALF, log_probs))
  np.testing.assert_allclose(sequences[:2].sum(), 0.393224, atol=1e-6)
  np.testing.assert_allclose(np.sum(0.25 * np.log(0.25 / sequences)), 0.023339, atol=1e-6)

  # The third symbol stops a response; nothing follows it but, in a prompt, the first token.
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


def test_drafts_are_kept_as_often_as_the_target_has_their_probability_and_put_right_else():
  """Three symbols: the first draft is kept with probability sum(min), the second only after it."""
  draft, target = np.log([[0.5, 0.3, 0.2]] * 2), np.log([[0.2, 0.3, 0.5]] * 2)
  keys = jax.random.split(jax.random.key(0), 2)
  tokens = jax.random.categorical(keys[0], draft, shape=(ROWS, 2))
  tile = lambda x: jnp.tile(jnp.asarray(x, jnp.float32), (ROWS, 1, 1))
  uniform = jax.random.uniform(keys[1], (ROWS, 3))
  drawn, count = jax.jit(speculative.accept)(tokens, tile(draft), tile(target), uniform)
  assert_frequencies(np.bincount(drawn.token[:, 0], minlength=3), np.exp(target[0]))
  kept = 0.2 + 0.3 + 0.2
  assert_frequencies(np.bincount(count - 1, minlength=2), [1 - kept, kept])
  second = drawn.token[:, 1][count == 2]
  assert_frequencies(np.bincount(second, minlength=3), np.exp(target[1]))
  np.testing.assert_allclose(drawn.log_prob, target[0][drawn.token], rtol=1e-5)
  np.testing.assert_allclose(drawn.entropy, -np.sum(np.exp(target) * target, axis=1)[0], rtol=1e-5)


def test_a_draft_of_the_target_itself_is_kept_whole():
  logits = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (ROWS, 3, 7)))
  tokens = jax.random.categorical(jax.random.key(1), logits)
  uniform = jax.random.uniform(jax.random.key(2), (ROWS, 4))
  drawn, count = jax.jit(speculative.accept)(tokens, logits, logits, uniform)
  np.testing.assert_array_equal(drawn.token, tokens)
  assert np.all(count == 3)


def test_weights_one_and_zero_give_the_first_member():
  tables = random_tables()
  (mixture,) = sample(tables, [{'reference': 1.0, 'policy': 0.0}], rows=100, length=6)
  (alone,) = sample(tables, [{'reference': 1.0}], rows=100, length=6)
  jax.tree.map(np.testing.assert_array_equal, mixture, alone)


def test_responses_end_with_the_stop_token_and_are_as_long_as_they_should_be():
  length, stop = 6, 1
  tables = {'policy': np.log([[0.8, 0.2]] * 2), 'reference': np.log([[0.5, 0.5]] * 2)}
  (responses,) = sample(tables, [HALF], length=length, stop=stop)
  stopping = np.sqrt(0.2 * 0.5) / (np.sqrt(0.2 * 0.5) + np.sqrt(0.8 * 0.5))  # 1/3

  lengths = responses.mask.sum(1)
  chances = stopping * (1 - stopping) ** np.arange(length)
  chances[-1] = (1 - stopping) ** (length - 1)  # stopped there or cut there
  assert_frequencies(np.bincount(lengths - 1, minlength=length), chances)

  places = np.arange(length)
  np.testing.assert_array_equal(responses.mask, places < lengths[:, None])
  stopped = responses.tokens == stop
  np.testing.assert_array_equal(
    stopped & responses.mask, stopped & (places == lengths[:, None] - 1)
  )
  assert np.all(stopped[~responses.mask])
  assert np.all(responses.log_probs[~responses.mask] == 0)
  assert np.all(responses.entropy[~responses.mask] == 0)


CHANCES = np.array([0, 0.5, 0, 0.3, 0.2, 0], np.float32)


@pytest.mark.parametrize('symbols', [6, 64, 1_000])
def test_draws_are_as_frequent_as_they_are_likely(symbols):
  chances = np.resize(CHANCES, symbols)
  chances = chances / chances.sum()
  with np.errstate(divide='ignore'):
    logits = np.log(chances) + 3
  drawn = DRAW(jax.random.uniform(jax.random.key(0), (ROWS,)), jnp.tile(logits, (ROWS, 1)))
  assert_frequencies(np.bincount(drawn.token, minlength=symbols), chances)
  np.testing.assert_allclose(np.exp(drawn.log_prob), chances[drawn.token], rtol=1e-5)
  some = chances[chances > 0]
  np.testing.assert_allclose(drawn.entropy, -np.sum(some * np.log(some)), rtol=1e-5)


@pytest.mark.parametrize(
  ('symbols', 'numbers'), [(6, 2_000), (66, 2_000), (300, 2_000), (30_000, 100)]
)
def test_no_random_number_draws_a_token_of_no_probability(symbols, numbers):
  below_one = np.nextafter(np.float32(1), np.float32(0))
  spread = np.tile(CHANCES, symbols // len(CHANCES))
  last = np.flatnonzero(spread)[-1]
  uniform = np.linspace(0, 1, numbers, endpoint=False, dtype=np.float32)
  uniform = np.concatenate([uniform, [below_one]])
  for scale in (1, 1.9, 0.3, 1e-3):  # rounding differs with the sum
    logits = np.tile(np.log(np.maximum(spread * scale, 1e-38)), (len(uniform), 1))
    logits[:, spread == 0] = -np.inf
    drawn = DRAW(jnp.asarray(uniform), jnp.asarray(logits, jnp.float32))
    assert np.all(spread[drawn.token] > 0)
    assert np.all(np.diff(drawn.token) >= 0)
    assert (drawn.token[0], drawn.token[-1]) == (1, last)
