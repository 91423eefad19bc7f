"""Law: scanned equals unrolled, for layers of one kind and of several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.models import architectures, layers, transformer
from nlhf_jax.models.architectures import Layer, Rotary
from nlhf_jax.models.blocks import FLOAT32
from nlhf_jax.models.decoder import make_cache
from nlhf_jax.models.lora import Lora
from tests.laws import tiny

VOCABULARY, DEPTH = 11, 5
NEAR, FAR = Layer(Rotary(100.0), window=3), Layer(Rotary(1e4, factor=2.0))
KINDS = {
  'two kinds without a period': (NEAR, FAR, FAR, NEAR, NEAR),
  'one kind': (FAR,) * DEPTH,
  'windows alone differ': (NEAR, NEAR._replace(window=None)) * 2 + (NEAR,),
}
# The first has both ways of choosing by number; the others are parts of it.
FIRST, *OTHERS = KINDS
CASES = [FIRST, *(pytest.param(kinds, marks=pytest.mark.slow) for kinds in OTHERS)]


def make_sizes(kinds):
  sizes = architectures.small(VOCABULARY, 8, len(kinds), 2, 1, 4, 16, 1e4)
  return sizes._replace(layers=kinds, post_norms=True, head_norms=True)


def make_rows():
  random = np.random.default_rng(0)
  tokens = random.integers(VOCABULARY, size=(3, 9))
  return jnp.asarray(tokens), jnp.arange(9) >= jnp.array([[0], [2], [4]])


def loss(decoder, params, tokens, mask):
  """A loss of all hidden states at real tokens."""
  hidden, _ = decoder.prefill(params, tokens, mask)
  return jnp.sum(jnp.where(mask[..., None], jnp.sin(hidden), 0) ** 2)


@pytest.mark.parametrize('kinds', CASES)
def test_scanned_equals_unrolled(kinds, monkeypatch):
  sizes, (tokens, mask) = make_sizes(KINDS[kinds]), make_rows()
  results = {}
  for unrolled, remat in ((0, 'nothing'), (0, 'layers'), (DEPTH, 'nothing')):
    monkeypatch.setattr(transformer, 'UNROLLED', unrolled)
    numerics = FLOAT32._replace(remat=remat)
    decoder = transformer.make_decoder(sizes, numerics, Lora(2, 4.0, ('query', 'up')))
    params = tiny.parameters(decoder, 0)
    both = jax.value_and_grad(lambda p, decoder=decoder: loss(decoder, p, tokens, mask))
    assert ('while' in jax.jit(both).lower(params).as_text()) == (unrolled == 0)
    results[unrolled, remat] = tiny.jit(both)(params)
  expected = results.pop((DEPTH, 'nothing'))
  for result in results.values():
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), result, expected
    )


@pytest.mark.parametrize('kinds', CASES)
def test_decoding_takes_stacked_and_numbered_layers(kinds):
  sizes, (tokens, mask) = make_sizes(KINDS[kinds]), make_rows()
  decoder = transformer.make_decoder(sizes)
  params = tiny.parameters(decoder, 0)
  whole, _ = tiny.jit(decoder.prefill)(params, tokens, mask)
  _, prompts = tiny.jit(decoder.prefill)(params, tokens[:, :6], mask[:, :6])
  decode = tiny.jit(decoder.decode)
  for layout in (params, decoder.for_decoding({'policy': params})['policy']):
    hidden, _ = decode(layout, tokens[:, 6:], make_cache(prompts, 3, 3))
    np.testing.assert_allclose(hidden, whole[:, 6:], rtol=1e-4, atol=1e-5)


def test_arrays_that_slots_share_are_taken_apart_once():
  decoder = transformer.make_decoder(make_sizes(KINDS['one kind']))
  params = tiny.parameters(decoder, 0)
  other = params | {'attentions': jax.tree.map(jnp.copy, params['attentions'])}
  slots = decoder.for_decoding({'policy': params, 'reference': other})
  for group, shared in (('feed_forwards', True), ('attentions', False)):
    one, two = (jax.tree.leaves(slots[slot][f'{group}_1']) for slot in ('policy', 'reference'))
    assert all((x is y) == shared for x, y in zip(one, two, strict=True))


def test_programs_do_not_grow_with_depth():
  def length(depth):
    numerics = FLOAT32._replace(remat='layers')
    decoder = transformer.make_decoder(make_sizes((FAR,) * depth), numerics)
    shapes = jax.eval_shape(lambda: tiny.parameters(decoder, 0))
    gradient = jax.jit(jax.grad(lambda params: loss(decoder, params, *make_rows())))
    return len(gradient.lower(shapes).as_text())

  assert length(10) <= 1.02 * length(5)


def test_stacking_and_numbering_are_inverse():
  decoder = transformer.make_decoder(make_sizes(KINDS['one kind']), lora=Lora(2, 4.0, ('query',)))
  params = tiny.parameters(decoder, 0)
  numbered = layers.unstack(params)
  np.testing.assert_array_equal(
    numbered['attentions_3']['query']['lora_a'], params['attentions']['query']['lora_a'][3]
  )
  assert layers.unstack(numbered) == numbered
  jax.tree.map(np.testing.assert_array_equal, layers.stack(numbered), params)


def test_layers_are_views_on_a_cpu():
  stacked = {'attentions': {'query': {'kernel': jnp.arange(4 * 32 * 8.0).reshape(4, 32, 8) + 1}}}
  kernel = stacked['attentions']['query']['kernel']
  numbered = layers.unstack_slots({'policy': stacked, 'reference': stacked})
  for number in range(4):
    row = numbered['reference'][f'attentions_{number}']['query']['kernel']
    np.testing.assert_array_equal(row, kernel[number])
    assert row.unsafe_buffer_pointer() == kernel.unsafe_buffer_pointer() + number * row.nbytes
  # A program may not write over what views read.
  jax.jit(lambda x: -x, donate_argnums=0)(kernel).block_until_ready()
  assert float(row[0, 0]) == 3 * 32 * 8 + 1
