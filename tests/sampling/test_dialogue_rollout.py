"""Conversations: cached decoding equals teacher forcing across turns, whatever the user says."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import distributed, trees
from nlhf_jax.errors import UserError
from nlhf_jax.games import dialogues
from nlhf_jax.models import architectures, lora
from nlhf_jax.models.decoder import decoder_from_apply
from nlhf_jax.models.lora import Lora
from nlhf_jax.models.scoring import log_probs
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import sampler
from nlhf_jax.sampling.dialogue_rollout import Dialogue, Replies, make_dialogue_rollout
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.sampling.users import user_from_game
from nlhf_jax.structs import Prompts
from tests.laws import tiny

VOCABULARY, STOP, LENGTH, TURNS, REPLY = 11, 2, 4, 3, 3
DECODER = tiny.decoder(VOCABULARY)
SLOTS = {slot: tiny.parameters(DECODER, n) for n, slot in enumerate(('policy', 'reference'))}
POLICY, MIXTURE = {'policy': 1.0}, {'policy': 0.6, 'reference': 0.4}


def prompts_of(size, extra=0):
  """Prompts of one to five tokens, after `extra` more columns of padding."""
  random = np.random.default_rng(0)
  tokens, lengths = random.integers(3, VOCABULARY, (size, 5)), random.integers(1, 6, (size, 1))
  mask = np.arange(5) >= 5 - lengths
  tokens, mask = (np.pad(x, ((0, 0), (extra, 0)), constant_values=0) for x in (tokens, mask))
  return Prompts(jnp.asarray(tokens), jnp.asarray(mask))


PROMPTS = prompts_of(12)


def chatty(prompts, responses, key):
  """Zero to three tokens, or the end, by the policy's own tokens and its number of turns."""
  del prompts, key
  total = np.sum(responses.tokens * (responses.turn > 0), axis=-1) + responses.turn.max(axis=-1)
  lengths = total % (REPLY + 1)
  tokens = 3 + (total[..., None] + np.arange(REPLY)) % 8
  return Replies(tokens, lengths, total % 5 == 0)


def silent(prompts, responses, key):
  """Nothing, for ever."""
  del prompts, key
  shape = responses.tokens.shape[:2]
  return Replies(np.zeros((*shape, 0), int), np.zeros(shape, int), np.zeros(shape, bool))


def make(mixtures, user=chatty, turns=TURNS, decoder=DECODER, **settings):
  dialogue = Dialogue(user, turns, settings.pop('reply_length', REPLY))
  settings = dict(length=LENGTH, stop=STOP) | settings
  return make_dialogue_rollout(decoder, mixtures, dialogue=dialogue, **settings)


@tiny.jit
def next_logits(params, tokens, mask):
  hidden, _ = DECODER.prefill(params, tokens, mask)
  return DECODER.logits(params, hidden)


def teacher_forced(mixture, prompts, responses):
  """Log-probabilities [B K T] of whole conversations, read at once and without a cache."""
  count, length = responses.tokens.shape[1:]

  def rows(prompt, response):
    return jnp.concatenate([jnp.repeat(prompt, count, 0), response.reshape(-1, length)], axis=1)

  tokens, mask = rows(prompts.tokens, responses.tokens), rows(prompts.mask, responses.mask)
  total = sum(weight * next_logits(SLOTS[slot], tokens, mask) for slot, weight in mixture.items())
  log_p = jax.nn.log_softmax(total[:, -length - 1 : -1])
  chosen = np.take_along_axis(np.asarray(log_p), np.asarray(tokens)[:, -length:, None], axis=-1)
  return np.where(responses.turn > 0, chosen.reshape(responses.tokens.shape), 0)


@pytest.mark.parametrize('drafts', [1, pytest.param(3, marks=pytest.mark.slow)])
def test_log_probs_equal_teacher_forcing_across_turns(drafts, monkeypatch):
  monkeypatch.setattr(sampler, 'default_draft_length', lambda: drafts)
  monkeypatch.setattr(sampler, 'FIRST_ROOM', 8)  # caches grow
  prompts, mixtures = prompts_of(6), [POLICY, MIXTURE]
  sampled = make(mixtures, count=2)(SLOTS, prompts, jax.random.key(1))
  lengths, turns = set(), set()
  for mixture, responses in zip(mixtures, map(distributed.fetch, sampled), strict=True):
    assert responses.tokens.shape == (6, 2, 3 * LENGTH + 2 * REPLY)
    own = responses.turn > 0
    assert (responses.mask | ~own).all()
    forced = teacher_forced(mixture, prompts, responses)
    np.testing.assert_allclose(responses.log_probs, forced, atol=2e-5)
    for n, k in np.ndindex(6, 2):
      size = responses.mask[n, k].sum()
      assert responses.mask[n, k, :size].all()  # no padding between turns
      lengths |= {int(size)}
      turns |= {int(responses.turn[n, k].max())}
  assert turns == {1, 2, 3}
  assert len(lengths) > 4
  if drafts == 1:
    scored = log_probs(DECODER, SLOTS['policy'], prompts, sampled[0])
    np.testing.assert_allclose(scored, sampled[0].log_probs, atol=3e-5)


def test_users_words_are_where_the_user_put_them():
  keys = []

  def user(prompts, responses, key):
    keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
    return chatty(prompts, responses, key)

  (responses,) = map(distributed.fetch, make([POLICY], user)(SLOTS, PROMPTS, jax.random.key(2)))
  assert len({*keys}) == len(keys) == TURNS - 1
  for number in range(1, TURNS):
    later = responses.turn > number
    so_far = responses._replace(turn=np.where(later, 0, responses.turn))
    replies = chatty(None, so_far, None)
    for n in range(12):
      if (responses.turn[n, 0] < number).all():
        continue
      end = np.flatnonzero(responses.turn[n, 0] == number)[-1] + 1
      count = 0 if replies.over[n, 0] else replies.lengths[n, 0]
      if number == responses.turn[n, 0].max():
        assert replies.over[n, 0]
        assert not responses.mask[n, 0, end:].any()
        continue
      np.testing.assert_array_equal(
        responses.tokens[n, 0, end:][:count], replies.tokens[n, 0, :count]
      )
      assert not responses.turn[n, 0, end : end + count].any()
      assert responses.turn[n, 0, end + count] == number + 1


@pytest.mark.slow
def test_one_turn_is_the_rollout_and_a_silent_user_changes_no_token():
  # Without a stop token every turn is full, so that turns of four tokens are cuts of twelve.
  prompts, key = prompts_of(5), jax.random.key(3)
  whole = make_rollout(DECODER, [POLICY, MIXTURE], length=12, stop=99, count=2)(SLOTS, prompts, key)
  one = make([POLICY, MIXTURE], turns=1, length=12, stop=99, count=2)(SLOTS, prompts, key)
  cut = make([POLICY, MIXTURE], silent, stop=99, count=2, reply_length=0)(SLOTS, prompts, key)
  for expected, same, parts in zip(whole, one, cut, strict=True):
    for leaf, other in zip(expected[:4], same[:4], strict=True):
      np.testing.assert_array_equal(leaf, other)
    assert same.turn is None
    np.testing.assert_array_equal(parts.tokens, expected.tokens)
    np.testing.assert_allclose(parts.log_probs, expected.log_probs, atol=1e-5)
    np.testing.assert_allclose(parts.entropy, expected.entropy, atol=1e-5)
    np.testing.assert_array_equal(parts.turn[0, 0], np.repeat([1, 2, 3], 4))
    score = partial(log_probs, DECODER, SLOTS['reference'], prompts)
    np.testing.assert_array_equal(score(parts), score(parts._replace(turn=None)))


def test_padding_of_prompts_changes_no_conversation():
  tight, padded = (make([POLICY])(SLOTS, prompts_of(12, n), jax.random.key(4))[0] for n in (0, 3))
  for leaf in ('tokens', 'mask', 'turn'):
    np.testing.assert_array_equal(getattr(padded, leaf), getattr(tight, leaf))
  np.testing.assert_allclose(padded.log_probs, tight.log_probs, atol=1e-5)


def test_nothing_is_read_twice():
  """The prompt is read once, then every token of the conversation once, but the last never."""
  read = []

  def talkative(prompts, responses, key):
    shape = responses.tokens.shape[:2]
    return Replies(np.full((*shape, REPLY), 5), np.full(shape, REPLY), np.zeros(shape, bool))

  def decode(params, tokens, cache):
    jax.debug.callback(lambda: read.append(('decode', tokens.shape[1])))
    return DECODER.decode(params, tokens, cache)

  def prefill(params, tokens, mask):
    jax.debug.callback(lambda: read.append(('prefill', tokens.shape[1])))
    return DECODER.prefill(params, tokens, mask)

  counted = DECODER._replace(decode=decode, prefill=prefill)
  rollout = make([POLICY], talkative, decoder=counted, stop=99)
  (responses,) = rollout(SLOTS, prompts_of(3), jax.random.key(5))
  jax.block_until_ready(responses)
  jax.effects_barrier()
  size = TURNS * LENGTH + (TURNS - 1) * REPLY
  assert responses.mask.sum() == 3 * size
  assert [length for kind, length in read if kind == 'prefill'] == [5]
  assert sum(length for kind, length in read if kind == 'decode') == size - 1


@pytest.mark.slow
def test_slots_that_share_a_base_converse_as_whole_ones():
  decoder = make_decoder(
    architectures.small(
      VOCABULARY, 8, layers=1, heads=2, key_heads=1, head_size=4, hidden=16, rotary_base=1e4
    ),
    lora=Lora(2, 4.0, lora.TARGETS),
  )
  adapters, base = trees.split(tiny.parameters(decoder, 0), lora.is_adapter)
  other, _ = trees.split(tiny.parameters(decoder, 1), lora.is_adapter)
  slots = {'policy': adapters, 'reference': other}
  whole = {slot: trees.merge(base, own) for slot, own in slots.items()}
  rollout, key = make([POLICY, MIXTURE], decoder=decoder, turns=2, count=2), jax.random.key(9)
  shared, apart = rollout(slots | {'base': base}, PROMPTS, key), rollout(whole, PROMPTS, key)
  for one, same in zip(shared, apart, strict=True):
    for leaf in ('tokens', 'mask', 'turn'):
      np.testing.assert_array_equal(getattr(one, leaf), getattr(same, leaf))
    np.testing.assert_allclose(one.log_probs, same.log_probs, atol=1e-5)
  assert (np.asarray(shared[0].turn) == 2).any()


@pytest.mark.slow
def test_decoder_without_a_cache_converses_alike():
  embed = jax.random.normal(jax.random.key(0), (VOCABULARY, 8))

  def hidden(params, tokens):
    weights = 0.7 ** jnp.arange(tokens.shape[1])
    x = embed[tokens]
    return (
      jax.vmap(
        lambda row: jnp.stack(
          [jnp.sum(row[: n + 1] * weights[: n + 1][::-1, None], axis=0) for n in range(len(row))]
        )
      )(x)
      + params['bias']
    )

  decoder = decoder_from_apply(hidden, lambda params, h: h @ embed.T)
  slots, prompts = {'policy': {'bias': jnp.zeros(8)}}, prompts_of(4)
  (responses,) = make([POLICY], decoder=decoder, turns=2)(slots, prompts, jax.random.key(6))
  scored = log_probs(decoder, slots['policy'], prompts, responses)
  np.testing.assert_allclose(scored, responses.log_probs, atol=1e-4)
  assert (np.asarray(responses.turn) == 2).any()


def test_long_reply_is_refused_with_its_length():
  wordy = lambda *_: Replies(np.full((12, 1, 5), 4), np.full((12, 1), 5), np.zeros((12, 1), bool))
  with pytest.raises(UserError, match=r'reply has 5 tokens.*raise reply_length=3'):
    make([POLICY], wordy)(SLOTS, PROMPTS, jax.random.key(0))
  with pytest.raises(UserError, match=r'dialogue\.turns=0 must be at least 1'):
    make([POLICY], turns=0)


def test_sampled_conversations_have_the_game_s_distribution_and_users_are_independent():
  """Chi-squared on the eight conversations of a game; a uniform shared by sides would show."""
  random = np.random.default_rng(1)
  replies = random.dirichlet([1, 1], (1, 2)).reshape(1, 2, 2)
  logits = np.array([[0.4, 0.0], [0.0, 0.7]])
  # A bigram model: actions are tokens 0 and 1, replies are 2 and 3, and the prompt is 4.
  table = np.full((5, 5), -1e9, np.float32)
  table[:, :2] = [[0, 0], [0, 0], logits[0], logits[1], [0.3, 0]]
  decoder = decoder_from_apply(lambda params, tokens: params['table'][tokens], lambda _, h: h)
  user = user_from_game([replies], np.array([0, 1]), np.array([2, 3]))
  rollout = make([POLICY, POLICY], user, 2, decoder, length=1, stop=9, reply_length=1)
  count = 20_000
  prompts = Prompts(jnp.full((count, 1), 4), jnp.ones((count, 1), bool))
  left, right = rollout({'policy': {'table': jnp.asarray(table)}}, prompts, jax.random.key(7))
  softmax = jax.nn.log_softmax
  log_pi = (
    softmax(jnp.array([[0.3, 0]])),
    jnp.repeat(softmax(logits[None]), 2, axis=0).reshape(4, 2),
  )
  game = dialogues.make_dialogue_game(np.zeros((8, 8)), [[0.5, 0.5]] * 2, [replies, None])
  expected = np.asarray(dialogues.occupancy(game, log_pi))
  found = [np.asarray(side.tokens)[:, 0] @ [4, 2, 1] - 4 for side in (left, right)]
  for side in found:
    counts = np.bincount(side, minlength=8)
    assert np.sum((counts - count * expected) ** 2 / (count * expected)) < 40  # 7 degrees
  pairs = np.bincount(8 * found[0] + found[1], minlength=64)
  both = count * np.outer(expected, expected).ravel()
  assert np.sum((pairs - both) ** 2 / both) < 140  # 63 degrees: 6.8 standard deviations
