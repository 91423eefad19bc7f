"""Attention kernels agree with the definition, and each is chosen where it can run."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from nlhf_jax.models import architectures, attention
from nlhf_jax.models.attention import AttentionMask
from nlhf_jax.models.blocks import Numerics
from nlhf_jax.models.transformer import make_decoder

ROWS, HEADS, GROUPS, SIZE = 2, 4, 2, 128
SPLASH = partial(attention.attend_splash, interpret=True)


def make_mask(real, window=None):
  """The transformer's mask: causal by columns, with a window of real tokens."""
  columns = np.arange(real.shape[1])
  positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)
  visible = real[:, None, :] & (columns <= columns[:, None])
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
  """The results at real queries, and the gradients of a weighted sum of them."""
  weights = np.random.default_rng(1).normal(size=queries_keys_values[0].shape)
  weights = weights * real[:, :, None, None]

  def total(query, key, value):
    attended = attend(query, key, value).astype(jnp.float32)
    return jnp.sum(weights * attended), attended * real[:, :, None, None]

  compiled = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
  (_, attended), gradients = compiled(*queries_keys_values)
  return attended, *gradients


@pytest.mark.parametrize(
  ('length', 'window', 'cap'), [(128, None, None), (150, 20, 5.0), (128, 128, None)]
)
def test_splash_attention_equals_the_definition(length, window, cap):
  real = some_rows(length)
  mask = make_mask(real, window)
  compared = [
    value_and_gradients(partial(attend, mask=mask, scale=SIZE**-0.5, cap=cap), real, arrays(length))
    for attend in (attention.attend_xla, SPLASH)
  ]
  for expected, value in zip(*compared, strict=True):
    np.testing.assert_allclose(value, expected, atol=2e-5)


def test_splash_attention_on_a_mesh_is_the_same():
  real = some_rows(128)
  attend = jax.jit(partial(SPLASH, mask=make_mask(real), scale=SIZE**-0.5, cap=None))
  alone = attend(*arrays(128))
  axes = (jax.sharding.AxisType.Auto,) * 3
  with jax.set_mesh(jax.make_mesh((1, 1, 1), ('data', 'fsdp', 'tensor'), axis_types=axes)):
    np.testing.assert_allclose(attend(*arrays(128)), alone, atol=1e-6)
    rows = jax.sharding.PartitionSpec('data')
    shard = jax.shard_map(
      attend, in_specs=rows, out_specs=rows, axis_names={'data'}, check_vma=False
    )
    np.testing.assert_allclose(jax.jit(shard)(*arrays(128)), alone, atol=1e-6)


def gradient_of(attend):
  def total(*queries_keys_values):
    return jnp.sum(attend(*queries_keys_values).astype(jnp.float32))

  return jax.jit(jax.grad(total, argnums=(0, 1, 2)))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('window', [None, 20])
def test_splash_attention_lowers_for_tpus(dtype, window):
  attend = partial(
    attention.attend_splash, mask=make_mask(some_rows(150), window), scale=0.1, cap=None
  )
  gradient = jax.jit(
    jax.grad(lambda *arrays: jnp.sum(attend(*arrays).astype(jnp.float32)), (0, 1, 2))
  )
  program = jax.export.export(gradient, platforms=['tpu'])(*arrays(150, dtype)).mlir_module()
  assert program.count('tpu_custom_call') == 3  # forward, and one for queries and one for keys


def test_cudnn_lowers_for_nvidia():
  attend = partial(attention.KERNELS['cudnn'], mask=make_mask(some_rows(128)), scale=0.1, cap=None)
  gradient = jax.jit(
    jax.grad(lambda *arrays: jnp.sum(attend(*arrays).astype(jnp.float32)), (0, 1, 2))
  )
  with mock.patch.object(fused_attention_stablehlo, 'check_cudnn_version', return_value=91_000):
    traced = gradient.trace(*arrays(128, jnp.bfloat16))
    program = traced.lower(lowering_platforms=('cuda',)).as_text()
  assert '__cudnn$fmhaScaleBiasSoftmax(' in program
  assert '__cudnn$fmhaScaleBiasSoftmaxBackward(' in program


def kernel(platform, length=128, dtype=jnp.bfloat16, size=128, cap=None):
  return attention.choose_kernel(platform, jnp.zeros((ROWS, length, HEADS, size), dtype), cap)


def test_cudnn_is_chosen_where_it_can_run():
  assert kernel('cuda') == 'cudnn'
  assert kernel('cuda', size=72) == 'cudnn'
  assert kernel('cuda', dtype=jnp.float32) == 'xla'
  assert kernel('cuda', cap=50.0) == 'xla'
  assert kernel('cuda', size=256) == 'xla'
  assert kernel('cuda', size=20) == 'xla'
  assert kernel('cuda', length=129) == 'xla'
  assert kernel('rocm') == 'xla'


def test_splash_attention_is_chosen_where_it_can_run():
  assert kernel('tpu') == 'splash'
  assert kernel('tpu', length=1_000, dtype=jnp.float32, size=256, cap=50.0) == 'splash'
  assert kernel('tpu', length=100) == 'xla'
  assert kernel('tpu', size=64) == 'xla'


def test_cpu_uses_the_definition():
  assert attention.platform() == 'cpu'
  assert kernel('cpu') == 'xla'


def test_transformer_with_splash_attention_is_the_same(monkeypatch):
  sizes = architectures.small(
    11, width=16, layers=1, heads=2, key_heads=1, head_size=128, hidden=16, rotary_base=1e4
  )
  layer = sizes.layers[0]._replace(window=30)
  decoder = make_decoder(sizes._replace(layers=(layer,)), Numerics(remat='layers'))
  params = jax.jit(decoder.init)(jax.random.key(0))
  real = some_rows(130)
  tokens = jnp.asarray(np.random.default_rng(2).integers(11, size=real.shape))

  @jax.jit
  def hidden_states(params):
    hidden, _ = decoder.prefill(params, tokens, jnp.asarray(real))
    return hidden * real[:, :, None]

  expected = hidden_states(params)
  hidden_states.clear_cache()
  monkeypatch.setattr(attention, 'platform', lambda: 'tpu')
  monkeypatch.setitem(attention.KERNELS, 'splash', SPLASH)
  np.testing.assert_allclose(hidden_states(params), expected, atol=2e-5)
