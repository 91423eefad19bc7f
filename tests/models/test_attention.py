"""Kernels of attention compute what its definition says, and each is chosen where it can run."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from nlhf_jax.models import architectures, attention
from nlhf_jax.models.attention import AttentionMask
from nlhf_jax.models.transformer import Numerics, make_decoder

ROWS, HEADS, GROUPS, SIZE = 2, 4, 2, 128
SPLASH = partial(attention.attend_splash, interpret=True)


def sight_of(real, window=None):
  """As the transformer makes it: by places for what came before, by real tokens for the window."""
  places = np.arange(real.shape[1])
  positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
  visible = real[:, None, :] & (places <= places[:, None])
  if window is not None:
    visible &= positions[:, :, None] - positions[:, None, :] < window
  return AttentionMask(jnp.asarray(visible), jnp.asarray(real), window)


def some_rows(length):
  """Padding on the left, and in the second row also in the middle and on the right."""
  real = np.arange(length) >= np.array([40, 3])[:, None]
  real[1, 90:101] = False
  real[1, -5:] = False
  return real


def arrays(length, dtype=jnp.float32, size=SIZE):
  random = np.random.default_rng(0)
  shapes = [(ROWS, length, heads, size) for heads in (HEADS, GROUPS, GROUPS)]
  return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


def value_and_gradients(attend, real, queries_keys_values):
  """Of a weighted sum over what real queries get."""
  weights = np.random.default_rng(1).normal(size=queries_keys_values[0].shape)
  weights = weights * real[:, :, None, None]

  def total(query, key, value):
    mixed = attend(query, key, value).astype(jnp.float32)
    return jnp.sum(weights * mixed), mixed * real[:, :, None, None]

  compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
  (_, mixed), gradients = compiled(*queries_keys_values)
  return mixed, *gradients


@pytest.mark.parametrize(
  ('length', 'window', 'cap'), [(128, None, None), (150, 20, 5.0), (128, 128, None)]
)
def test_splash_attention_is_what_the_definition_says(length, window, cap):
  real = some_rows(length)
  sight = sight_of(real, window)
  compared = [
    value_and_gradients(
      partial(attend, mask=sight, scale=SIZE**-0.5, cap=cap), real, arrays(length)
    )
    for attend in (attention.attend_xla, SPLASH)
  ]
  for expected, said in zip(*compared, strict=True):
    np.testing.assert_allclose(said, expected, atol=2e-5)


def test_splash_attention_on_a_mesh():
  real = some_rows(128)
  attend = jax.jit(partial(SPLASH, mask=sight_of(real), scale=SIZE**-0.5, cap=None))
  alone = attend(*arrays(128))
  axes = (jax.sharding.AxisType.Auto,) * 3
  with jax.set_mesh(jax.make_mesh((1, 1, 1), ('data', 'fsdp', 'tensor'), axis_types=axes)):
    np.testing.assert_allclose(attend(*arrays(128)), alone, atol=1e-6)


def gradient_of(attend):
  def total(*queries_keys_values):
    return jnp.sum(attend(*queries_keys_values).astype(jnp.float32))

  return jax.jit(jax.grad(total, argnums=(0, 1, 2)))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('window', [None, 20])
def test_splash_attention_becomes_a_program_for_tpus(dtype, window):
  attend = partial(
    attention.attend_splash, mask=sight_of(some_rows(150), window), scale=0.1, cap=None
  )
  gradient = jax.jit(
    jax.grad(lambda *given: jnp.sum(attend(*given).astype(jnp.float32)), (0, 1, 2))
  )
  program = jax.export.export(gradient, platforms=['tpu'])(*arrays(150, dtype)).mlir_module()
  assert program.count('tpu_custom_call') == 3  # forward, and one for queries and one for keys


def test_cudnn_becomes_a_program_for_nvidia():
  attend = partial(attention.KERNELS['cudnn'], mask=sight_of(some_rows(128)), scale=0.1, cap=None)
  gradient = jax.jit(
    jax.grad(lambda *given: jnp.sum(attend(*given).astype(jnp.float32)), (0, 1, 2))
  )
  with mock.patch.object(fused_attention_stablehlo, 'check_cudnn_version', return_value=91_000):
    traced = gradient.trace(*arrays(128, jnp.bfloat16))
    program = traced.lower(lowering_platforms=('cuda',)).as_text()
  assert '__cudnn$fmhaScaleBiasSoftmax(' in program
  assert '__cudnn$fmhaScaleBiasSoftmaxBackward(' in program


def fitting(platform, length=128, dtype=jnp.bfloat16, size=128, cap=None):
  return attention.choose_kernel(platform, jnp.zeros((ROWS, length, HEADS, size), dtype), cap)


def test_cudnn_is_for_nvidia_and_for_what_it_can_do():
  assert fitting('cuda') == 'cudnn'
  assert fitting('cuda', size=72) == 'cudnn'
  assert fitting('cuda', dtype=jnp.float32) == 'xla'
  assert fitting('cuda', cap=50.0) == 'xla'
  assert fitting('cuda', size=256) == 'xla'
  assert fitting('cuda', size=20) == 'xla'
  assert fitting('cuda', length=129) == 'xla'
  assert fitting('rocm') == 'xla'


def test_splash_attention_is_for_tpus_and_for_whole_sequences():
  assert fitting('tpu') == 'splash'
  assert fitting('tpu', length=1_000, dtype=jnp.float32, size=256, cap=50.0) == 'splash'
  assert fitting('tpu', length=100) == 'xla'
  assert fitting('tpu', size=64) == 'xla'


def test_without_an_accelerator_it_is_the_definition():
  assert attention.platform() == 'cpu'
  assert fitting('cpu') == 'xla'


def test_a_transformer_reads_the_same_with_splash_attention(monkeypatch):
  sizes = architectures.small(
    11, width=16, layers=1, heads=2, key_heads=1, head_size=128, hidden=16, rotary_base=1e4
  )
  layer = sizes.layers[0]._replace(window=30)
  decoder = make_decoder(sizes._replace(layers=(layer,)), Numerics(remat='layers'))
  params = jax.jit(decoder.init)(jax.random.key(0))
  real = some_rows(130)
  tokens = np.random.default_rng(2).integers(11, size=real.shape)

  @jax.jit
  def read(params):
    hidden, _ = decoder.prefill(params, tokens, jnp.asarray(real))
    return hidden * real[:, :, None]

  expected = read(params)
  read.clear_cache()
  monkeypatch.setattr(attention, 'platform', lambda: 'tpu')
  monkeypatch.setitem(attention.KERNELS, 'splash', SPLASH)
  np.testing.assert_allclose(read(params), expected, atol=2e-5)
