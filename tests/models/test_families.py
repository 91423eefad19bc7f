"""Every family has the logits of `transformers`, and export is the identity."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from nlhf_jax.models import architectures, weights
from nlhf_jax.models.blocks import FLOAT32, Numerics
from nlhf_jax.models.decoder import grow_cache, make_cache, parameter_shapes
from nlhf_jax.models.transformer import make_decoder
from tests.models import families

NAMES = list(families.FAMILIES)
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def load(folder, numerics=FLOAT32):
  """The decoder and parameters of a saved model."""
  family, sizes = architectures.read_architecture(folder)
  decoder = make_decoder(sizes, numerics)
  shapes = jax.eval_shape(decoder.init, jax.random.key(0))
  return decoder, weights.load(folder, family, shapes, lambda path, leaf: HERE)


@pytest.fixture(scope='module', params=NAMES)
def saved(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param.replace(' ', '_'))
  return families.save(request.param, folder), folder


def rows(length=21):
  """Two rows of tokens; the second has padding on the left."""
  tokens = np.random.default_rng(0).integers(67, size=(2, length))
  mask = np.ones_like(tokens, bool)
  mask[1, :4] = False
  return tokens, mask


def ours(decoder, params, tokens, mask):
  def logits(params, tokens, mask):
    return decoder.logits(params, decoder.prefill(params, tokens, mask)[0])

  return np.asarray(jax.jit(logits)(params, tokens, mask))


def theirs(model, tokens, mask):
  positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
  with torch.no_grad():
    return (
      model(
        input_ids=torch.tensor(tokens),
        attention_mask=torch.tensor(mask.astype(int)),
        position_ids=torch.tensor(positions),
      )
      .logits.float()
      .numpy()
    )


def test_logits_agree_with_transformers(saved):
  model, folder = saved
  decoder, params = load(folder)
  tokens, mask = rows()
  expected = theirs(model, tokens, mask)
  assert np.abs(expected[mask]).max() > 1
  np.testing.assert_allclose(ours(decoder, params, tokens, mask)[mask], expected[mask], atol=1e-4)


def test_shapes_are_those_of_new_parameters(saved):
  _, folder = saved
  _, sizes = architectures.read_architecture(folder)
  decoder = make_decoder(sizes)
  assert parameter_shapes(decoder) == jax.eval_shape(decoder.init, jax.random.key(0))


def decode_in_steps(decoder, params, tokens, mask, step):
  """Hidden states from prefill of 12 tokens, and decoding of `step` tokens at a time after that."""
  first, prompts = jax.jit(decoder.prefill)(params, tokens[:, :12], mask[:, :12])
  cache, parts = make_cache(prompts, len(tokens), 5), [*jnp.unstack(first, axis=1)]
  decode = jax.jit(decoder.decode)
  for start in range(12, tokens.shape[1], step):
    cache = grow_cache(cache, 10) if start == 15 else cache
    hidden, cache = decode(params, tokens[:, start : start + step], cache)
    parts += jnp.unstack(hidden, axis=1)
  return np.stack(parts, axis=1)


@pytest.mark.parametrize('step', [1, pytest.param(3, marks=pytest.mark.slow)])
def test_cached_decoding_equals_prefill(saved, step):
  _, folder = saved
  decoder, params = load(folder)
  tokens, mask = rows()
  whole, _ = jax.jit(decoder.prefill)(params, tokens, mask)
  joined = decode_in_steps(decoder, params, tokens, mask, step)
  np.testing.assert_allclose(joined[mask], np.asarray(whole)[mask], atol=2e-4)


def exported(folder, again):
  """The tensors that `transformers` loads from an export of the model in a folder."""
  _, params = load(folder)
  family, _ = architectures.read_architecture(folder)
  weights.save(again, family, params, np.float32, most=20_000)
  (again / 'config.json').write_text((folder / 'config.json').read_text())
  model = transformers.AutoModelForCausalLM.from_pretrained(again, local_files_only=True)
  return model.state_dict()


def test_export_is_the_identity(saved, tmp_path):
  model, folder = saved
  before, after = model.state_dict(), exported(folder, tmp_path)
  assert before.keys() == after.keys()
  for name in before:
    assert torch.equal(before[name], after[name]), name
  index = json.loads((tmp_path / weights.INDEX).read_text())
  assert len(set(index['weight_map'].values())) > 1


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16_checkpoints_agree_with_transformers(name, tmp_path):
  families.save(name, tmp_path, torch.bfloat16, shard='20KB')
  model = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32, attn_implementation='eager'
  )
  decoder, params = load(tmp_path)  # computes in float32
  tokens, mask = rows()
  expected = theirs(model, tokens, mask)
  np.testing.assert_allclose(ours(decoder, params, tokens, mask)[mask], expected[mask], atol=1e-4)
  half = Numerics(jnp.bfloat16, jnp.bfloat16)
  decoder, params = load(tmp_path, half)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('bfloat16')}
  error = ours(decoder, params, tokens, mask)[mask] - expected[mask]
  assert np.sqrt(np.mean(error**2) / np.mean(expected[mask] ** 2)) < 0.05
