"""Adapters start at zero, apply to their own rows, and agree with PEFT."""

from collections import Counter

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import peft
import pytest

from nlhf_jax import trees
from nlhf_jax.models import architectures, lora, weights
from nlhf_jax.models.blocks import FLOAT32
from nlhf_jax.models.lora import Lora
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import sampler
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.structs import Prompts
from tests.models import families
from tests.models.test_families import HERE, NAMES, ours, rows, theirs

LORA = Lora(rank=3, alpha=5.0, targets=lora.TARGETS)
SIZES = architectures.small(
  vocabulary=11, width=16, layers=2, heads=4, key_heads=2, head_size=4, hidden=24, rotary_base=1e3
)
DECODER = make_decoder(SIZES, lora=LORA)


def randomise_adapters(params, seed):
  """The same parameters with random adapters."""
  random = np.random.default_rng(seed)
  return trees.unflatten(
    {
      path: jnp.asarray(random.normal(size=leaf.shape, scale=0.3), leaf.dtype)
      if lora.is_adapter(path)
      else leaf
      for path, leaf in trees.flatten(params).items()
    }
  )


@pytest.fixture(scope='module')
def params():
  return jax.jit(DECODER.init)(jax.random.key(0))


def some_rows():
  tokens = np.random.default_rng(1).integers(11, size=(4, 7))
  return tokens, np.ones_like(tokens, bool)


def test_new_adapters_change_nothing(params):
  _, base = trees.split(params, lora.is_adapter)
  logits = ours(DECODER, params, *some_rows())
  np.testing.assert_array_equal(logits, ours(DECODER, base, *some_rows()))
  np.testing.assert_array_equal(logits, ours(make_decoder(SIZES), base, *some_rows()))


def test_stacked_adapters_apply_to_rows_in_turn(params):
  slots = dict(policy=randomise_adapters(params, 1), other=randomise_adapters(params, 2))
  base = trees.split(params, lora.is_adapter)[1]
  own = {slot: trees.split(tree, lora.is_adapter)[0] for slot, tree in slots.items()}
  tokens, mask = some_rows()
  together = ours(
    DECODER, trees.stack_slots({'base': base, **own}, ['policy', 'other']), tokens, mask
  )
  for turn, slot in enumerate(slots):
    part = slice(turn, None, 2)
    alone = ours(DECODER, slots[slot], tokens[part], mask[part])
    np.testing.assert_allclose(together[part], alone, atol=1e-5)
  assert np.abs(together[::2] - ours(DECODER, params, tokens[::2], mask[::2])).max() > 0.1


def test_merging_keeps_the_policy(params):
  one = randomise_adapters(params, 1)
  merged = lora.merge(one, LORA.scale)
  assert not any(map(lora.is_adapter, trees.flatten(merged)))
  np.testing.assert_allclose(
    ours(make_decoder(SIZES), merged, *some_rows()), ours(DECODER, one, *some_rows()), atol=1e-5
  )


MIXTURES = [{'policy': 1.0}, {'policy': 0.25, 'reference': 0.75}]


def test_reference_in_a_mixture_has_no_adapter(params):
  own, base = trees.split(randomise_adapters(params, 1), lora.is_adapter)
  still, _ = trees.split(params, lora.is_adapter)
  slots = {'base': base, 'policy': own, 'reference': still}
  tokens, mask = some_rows()
  prompts = Prompts(jnp.asarray(tokens), jnp.asarray(mask))
  rollout = make_rollout(DECODER, MIXTURES, length=5, stop=10, count=2)
  _, mixed = rollout(slots, prompts, jax.random.key(3))
  of_base = np.asarray(all_log_probs(base, prompts, mixed))
  of_policy = np.asarray(all_log_probs(trees.merge(base, own), prompts, mixed))
  assert np.abs(of_base - of_policy)[np.asarray(mixed.mask)].max() > 0.1
  log_mix = 0.25 * of_policy + 0.75 * of_base
  log_mix -= np.logaddexp.reduce(log_mix, axis=-1, keepdims=True)
  chosen = np.take_along_axis(log_mix, np.asarray(mixed.tokens)[..., None], axis=-1)[..., 0]
  kept = np.asarray(mixed.mask)
  np.testing.assert_allclose(np.asarray(mixed.log_probs)[kept], chosen[kept], atol=1e-5)


def test_compaction_keeps_adapters_with_their_rows(params, monkeypatch):
  own, base = trees.split(randomise_adapters(params, 1), lora.is_adapter)
  other, _ = trees.split(randomise_adapters(params, 2), lora.is_adapter)
  slots = {'base': base, 'policy': own, 'reference': other}
  tokens = np.random.default_rng(3).integers(11, size=(16, 3))
  prompts, key = Prompts(jnp.asarray(tokens), jnp.ones((16, 3), bool)), jax.random.key(4)
  logits = lambda params, hidden: DECODER.logits(params, hidden).at[..., 10].add(3)
  stopping = DECODER._replace(logits=logits)
  make = lambda: make_rollout(stopping, MIXTURES, length=12, stop=10, count=2)
  expected = jax.jit(make())(slots, prompts, key)  # in one program, which does not compact
  monkeypatch.setattr(sampler, 'MIN_BATCH', 4)
  monkeypatch.setattr(sampler, 'FIRST_ROOM', 2)
  for one, other in zip(expected, make()(slots, prompts, key), strict=True):
    np.testing.assert_array_equal(other.tokens, one.tokens)
    np.testing.assert_allclose(other.log_probs, one.log_probs, atol=3e-5)


@jax.jit
def all_log_probs(params, prompts, responses):
  """Log-probabilities of the whole vocabulary at each response token, by prefill."""
  count, length = responses.tokens.shape[1:]
  repeated = jnp.repeat(prompts.tokens, count, axis=0)
  tokens = jnp.concatenate([repeated, responses.tokens.reshape(-1, length)], axis=1)
  hidden, _ = DECODER.prefill(params, tokens, jnp.ones_like(tokens, bool))
  logits = DECODER.logits(params, hidden[:, -length - 1 : -1])
  return jax.nn.log_softmax(logits).reshape(*responses.tokens.shape, -1)


def products(jaxpr, counts, times=1):
  """Counts matrix products by the shape of the right factor, in a program and all it calls.

  A product in a scan counts once for each of its steps.
  """
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      counts[equation.invars[1].aval.shape] += times
    steps = equation.params['length'] if equation.primitive.name == 'scan' else 1
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      products(inner, counts, times * steps)
  return counts


def test_slots_share_one_pass_over_the_base(params):
  own, base = trees.split(params, lora.is_adapter)
  prompts = Prompts(*map(jnp.asarray, some_rows()))
  rollout = make_rollout(DECODER, MIXTURES, length=5, stop=10)
  shape = (SIZES.width, SIZES.hidden)  # of gate and up, in two layers

  def counted(slots):
    return products(jax.make_jaxpr(rollout)(slots, prompts, jax.random.key(0)).jaxpr, Counter())

  shared = counted({'base': base, 'policy': own, 'reference': own})
  apart = counted({'policy': params, 'reference': params})
  once = 2 * len(SIZES.layers)
  assert shared[shape] == 2 * once  # once in prefill, once in the loop
  assert apart[shape] == 4 * once


def save_adapter(base, folder):
  """The decoder, parameters and base of a saved model and an adapter, saved to a folder."""
  family, sizes = architectures.read_architecture(base)
  decoder = make_decoder(sizes, FLOAT32, LORA)
  shapes = jax.eval_shape(decoder.init, jax.random.key(0))
  adapter, kept = trees.split(shapes, lora.is_adapter)
  loaded = weights.load(base, family, kept, lambda path, leaf: HERE)
  params = randomise_adapters(trees.merge(loaded, adapter), 5)
  weights.save_adapter(folder, family, params, LORA, str(base))
  return decoder, params, loaded


@pytest.mark.parametrize('name', NAMES)
def test_saved_adapter_agrees_with_peft(name, tmp_path):
  model = families.save(name, tmp_path / 'base')
  decoder, params, loaded = save_adapter(tmp_path / 'base', tmp_path / 'adapter')
  adapted = peft.PeftModel.from_pretrained(model, tmp_path / 'adapter').eval()
  tokens, mask = rows()
  expected = theirs(adapted, tokens, mask)
  np.testing.assert_allclose(ours(decoder, params, tokens, mask)[mask], expected[mask], atol=2e-4)
  with adapted.disable_adapter():
    plain = theirs(adapted, tokens, mask)
  assert np.abs(expected - plain)[mask].max() > 0.1
  np.testing.assert_allclose(ours(decoder, loaded, tokens, mask)[mask], plain[mask], atol=1e-4)


def test_new_adapters_are_those_of_peft():
  shapes = {
    'layer': {
      'kernel': jnp.zeros((64, 32)),
      'lora_a': jnp.zeros((64, 8)),
      'lora_b': jnp.zeros((8, 32)),
    },
    'other': {'lora_a': jnp.zeros((64, 8)), 'lora_b': jnp.zeros((8, 32))},
  }
  new = lora.initialise(shapes, jax.random.key(0))
  assert set(new['layer']) == {'lora_a', 'lora_b'}
  a = np.stack([new[layer]['lora_a'] for layer in ('layer', 'other')])
  assert np.abs(a).max() < 1 / 8
  assert a.std() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)
  assert np.abs(a[0] - a[1]).max() > 0.1  # every adapter has its own
  assert not np.any(new['layer']['lora_b'])
