"""Temporary memory of compiled programs, as the compiler reports it."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import trees
from nlhf_jax.models import architectures, scoring
from nlhf_jax.models.blocks import Numerics
from nlhf_jax.models.decoder import parameter_shapes
from nlhf_jax.models.lora import Lora, is_adapter
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.structs import Prompts, Responses


def temporary_bytes(compiled):
  return compiled.memory_analysis().temp_size_in_bytes


def some_parameters(decoder):
  random = np.random.default_rng(1)
  shapes = jax.eval_shape(decoder.init, jax.random.key(0))
  return jax.tree.map(
    lambda leaf: jnp.asarray(random.normal(size=leaf.shape, scale=0.3), leaf.dtype), shapes
  )


def conversation(rows, count, prompt_length, length, vocabulary):
  random = np.random.default_rng(0)
  prompts = jnp.asarray(random.integers(vocabulary, size=(rows, prompt_length)))
  responses = jnp.asarray(random.integers(vocabulary, size=(rows, count, length)))
  mask = jnp.arange(length) < jnp.asarray(random.integers(1, length, size=(rows, count, 1)))
  return Prompts(prompts, jnp.ones_like(prompts, bool)), Responses(responses, mask)


@pytest.mark.parametrize('compute', [jnp.float32, jnp.bfloat16])
def test_log_probabilities_never_hold_all_logits(compute, monkeypatch):
  rows, count, length, vocabulary = 2, 2, 50, 4_096
  sizes = architectures.small(
    vocabulary, width=8, layers=1, heads=1, key_heads=1, head_size=8, hidden=8, rotary_base=1e4
  )
  decoder = make_decoder(sizes, Numerics(compute))
  params = some_parameters(decoder)
  prompts, responses = conversation(rows, count, 3, length, vocabulary)
  weights = jax.random.normal(jax.random.key(1), responses.tokens.shape)

  def value_and_gradient():
    def total(params):
      log_p = scoring.log_probs(decoder, params, prompts, responses)
      return jnp.sum(weights * log_p), log_p

    compiled = jax.jit(jax.value_and_grad(total, has_aux=True)).lower(params).compile()
    return compiled(params), temporary_bytes(compiled)

  whole = 4 * rows * count * length * vocabulary
  (expected, gradient), before = value_and_gradient()
  assert before > whole
  monkeypatch.setattr(scoring, 'MAX_LOGITS', rows * count * 7 * vocabulary)
  (value, chunked), after = value_and_gradient()
  assert after < 0.6 * whole
  assert value[1].dtype == jnp.float32
  tolerance = 1e-5 if compute == jnp.float32 else 0.02
  chex.assert_trees_all_close(
    (value, chunked), (expected, gradient), rtol=tolerance, atol=tolerance
  )


def test_chunks_have_at_least_one_column(monkeypatch):
  sizes = architectures.small(
    11, width=8, layers=1, heads=1, key_heads=1, head_size=8, hidden=8, rotary_base=1e4
  )
  decoder = make_decoder(sizes)
  params = some_parameters(decoder)
  given = conversation(2, 3, 4, 5, 11)
  expected = jax.jit(partial(scoring.log_probs, decoder))(params, *given)
  monkeypatch.setattr(scoring, 'MAX_LOGITS', 1)
  chunked = jax.jit(partial(scoring.log_probs, decoder))(params, *given)
  np.testing.assert_allclose(chunked, expected, atol=1e-5)


def test_weights_under_adapters_are_never_converted_whole():
  """XLA on CPUs would slice bfloat16 in float32: twice the memory of all layers."""
  sizes = architectures.small(
    4_096, width=32, layers=8, heads=2, key_heads=1, head_size=16, hidden=256, rotary_base=1e4
  )
  decoder = make_decoder(
    sizes, Numerics(jnp.bfloat16, jnp.bfloat16, 'layers'), Lora(2, 4.0, ('query',))
  )
  params = parameter_shapes(decoder)
  own, base = trees.split(params, is_adapter)
  tokens = jnp.zeros((2, 4), jnp.int32)

  def total(own, base):
    params = trees.merge(own, base)
    hidden, _ = decoder.prefill(params, tokens, jnp.ones_like(tokens, bool))
    return jnp.sum(decoder.logits(params, hidden))

  compiled = jax.jit(jax.value_and_grad(total)).lower(own, base).compile()
  text = compiled.as_text()
  for shape in ('8,32,256', '8,256,32'):
    assert f'bf16[{shape}]' in text
    assert not re.search(rf'= f32\[{shape}\]\S* convert', text)
  # Less than the layers, and than the table in float32, of which it needs a row for each token.
  assert temporary_bytes(compiled) < 2 * 8 * 3 * 32 * 256


def test_remat_keeps_the_gradient_in_less_memory():
  sizes = architectures.small(
    11, width=16, layers=4, heads=2, key_heads=1, head_size=8, hidden=32, rotary_base=1e4
  )
  params = some_parameters(make_decoder(sizes))
  tokens = jnp.asarray(np.random.default_rng(0).integers(11, size=(8, 32)))

  def gradient(remat):
    decoder = make_decoder(sizes, Numerics(remat=remat))

    def total(params):
      hidden, _ = decoder.prefill(params, tokens, jnp.ones_like(tokens, bool))
      return jnp.sum(jnp.square(decoder.logits(params, hidden)))

    # Only XLA's CPU backend merges a computation with its recomputation; this pass allows it.
    compiled = (
      jax.jit(jax.grad(total))
      .lower(params)
      .compile(compiler_options={'xla_disable_hlo_passes': 'cse_barrier_expander'})
    )
    return compiled(params), temporary_bytes(compiled)

  expected, everything = gradient('nothing')
  for remat, share in (('dots', 0.6), ('layers', 0.4)):
    recomputed, some = gradient(remat)
    assert some < share * everything
    chex.assert_trees_all_close(recomputed, expected, rtol=1e-5, atol=1e-5)
