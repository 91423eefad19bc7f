"""DeBERTa: the same hidden states as `transformers`, for every kind of relative positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from nlhf_jax.errors import UserError
from nlhf_jax.models import deberta, weights
from nlhf_jax.models.blocks import Numerics

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
SIZES = dict(
  vocab_size=61,
  hidden_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=40,
)
# The settings of DeBERTa-v3, with fewer buckets than the tests' texts have distances.
V3 = dict(
  relative_attention=True,
  position_buckets=8,
  max_position_embeddings=16,
  share_att_key=True,
  pos_att_type='p2c|c2p',
  norm_rel_ebd='layer_norm',
  position_biased_input=False,
  type_vocab_size=0,
)
CASES = {
  'version 3': {},
  'content to position only': dict(pos_att_type='c2p'),
  'position to content only': dict(pos_att_type=['p2c']),
  'neither': dict(pos_att_type='none'),
  'not relative': dict(relative_attention=False, norm_rel_ebd='none'),
  'separate position keys': dict(share_att_key=False),
  'separate position keys, content to position only': dict(share_att_key=False, pos_att_type='c2p'),
  'no buckets': dict(position_buckets=-1),
  'no buckets, far': dict(position_buckets=-1, max_relative_positions=40),
  'farther than any distance': dict(max_relative_positions=200),
  'positions not normalised': dict(norm_rel_ebd='none'),
  'convolution': dict(conv_kernel_size=3, conv_act='gelu'),
  'convolution, of groups, over one layer': dict(
    conv_kernel_size=5, conv_groups=4, num_hidden_layers=1
  ),
  'types': dict(type_vocab_size=2),
  'absolute positions': dict(position_biased_input=True, max_position_embeddings=64),
  'narrow embeddings': dict(embedding_size=12, position_biased_input=True, type_vocab_size=2)
  | dict(max_position_embeddings=64),
  'another activation': dict(hidden_act='gelu_new'),
}


def configured(**changes):
  return transformers.DebertaV2Config(**SIZES | V3 | changes)


def saved(folder, **changes):
  """A model with random weights, saved to a folder."""
  torch.manual_seed(0)
  model = transformers.DebertaV2Model(configured(**changes)).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      scale = name.endswith('LayerNorm.weight')  # else attention is almost uniform
      parameter.copy_(scale + torch.randn_like(parameter) * 0.3)
  model.save_pretrained(folder)
  return model


def load(folder, config, numerics=deberta.FLOAT32):
  encoder = deberta.make_encoder(deberta.sizes_from_config(config), numerics)
  shapes = jax.eval_shape(encoder.init, jax.random.key(0))
  return encoder, weights.load(folder, 'deberta-v2', shapes, lambda path, leaf: HERE)


def rows(length):
  """Three rows of tokens; two have padding, which holds tokens as well."""
  tokens = np.random.default_rng(0).integers(4, 61, size=(3, length))
  return tokens, np.arange(length) < np.array([length, length - 7, 3])[:, None]


def theirs(model, tokens, mask):
  with torch.no_grad():
    output = model(torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(int)))
  return output.last_hidden_state.numpy()


def ours(encoder, params, tokens, mask, columns=None):
  """Hidden states at the given columns, or at all."""
  everywhere = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  columns = everywhere if columns is None else columns
  return np.asarray(
    jax.jit(encoder.encode)(params, encoder.project_positions(params), tokens, mask, columns)
  )


@pytest.mark.parametrize('case', CASES)
def test_hidden_states_agree_with_transformers(case, tmp_path):
  model = saved(tmp_path, **CASES[case])
  encoder, params = load(tmp_path, model.config)
  tokens, mask = rows(45)  # far beyond the buckets
  expected = theirs(model, tokens, mask)
  assert expected[mask].std(axis=0).mean() > 0.2
  np.testing.assert_allclose(ours(encoder, params, tokens, mask)[mask], expected[mask], atol=1e-4)


@pytest.fixture(scope='module')
def third(tmp_path_factory):
  """The model of version 3, its folder, and its hidden states of `rows`."""
  folder = tmp_path_factory.mktemp('deberta')
  model = saved(folder)
  return model, folder, theirs(model, *rows(45))


def test_hidden_states_at_chosen_columns_agree(third):
  model, folder, expected = third
  encoder, params = load(folder, model.config)
  columns = np.array([[44, 0, 7], [30, 30, 1], [2, 1, 0]])
  states = ours(encoder, params, *rows(45), columns)
  expected = np.take_along_axis(expected, columns[:, :, None], 1)
  np.testing.assert_allclose(states, expected, atol=1e-4)


def test_padding_changes_no_hidden_state(third):
  model, folder, _ = third
  encoder, params = load(folder, model.config)
  tokens, mask = rows(45)
  columns = np.array([[2, 1]])
  short = ours(encoder, params, tokens[2:, :3], mask[2:, :3], columns)
  np.testing.assert_allclose(ours(encoder, params, tokens[2:], mask[2:], columns), short, atol=1e-5)


def test_attention_of_all_heads_at_once_agrees(third, monkeypatch):
  monkeypatch.setattr(deberta, 'platform', lambda: 'cuda')
  model, folder, expected = third
  encoder, params = load(folder, model.config)
  tokens, mask = rows(45)
  np.testing.assert_allclose(ours(encoder, params, tokens, mask)[mask], expected[mask], atol=1e-4)


def test_bfloat16_is_close_to_float32(third):
  model, folder, expected = third
  encoder, params = load(folder, model.config, Numerics(jnp.bfloat16, jnp.bfloat16))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('bfloat16')}
  tokens, mask = rows(45)
  error = ours(encoder, params, tokens, mask)[mask].astype(np.float32) - expected[mask]
  assert np.sqrt(np.mean(error**2) / np.mean(expected[mask] ** 2)) < 0.05


@pytest.mark.parametrize(('buckets', 'farthest'), [(256, 512), (8, 16), (32, 40), (4, 1000)])
def test_buckets_are_those_of_transformers(buckets, farthest):
  length = 2500
  distance = torch.arange(1 - length, length)
  theirs = make_log_bucket_position(distance, buckets, farthest).long() + buckets
  relative = deberta.RelativePositions(('c2p',), farthest, buckets, shared=True, normed=True)
  np.testing.assert_array_equal(relative.bucketed(length), theirs.clamp(0, 2 * buckets - 1).numpy())


def test_export_is_the_identity(third, tmp_path):
  model, folder, _ = third
  _, params = load(folder, model.config)
  weights.save(tmp_path, 'deberta-v2', params, np.float32)
  (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
  again = transformers.DebertaV2Model.from_pretrained(tmp_path, local_files_only=True)
  before, after = model.state_dict(), again.state_dict()
  assert before.keys() == after.keys()
  assert all(torch.equal(before[name], after[name]) for name in before)


def test_unsupported_settings_are_refused(tmp_path):
  with pytest.raises(UserError, match="hidden_act='relu6' is not one of tanh, silu, gelu"):
    deberta.sizes_from_config(configured(hidden_act='relu6'))
  with pytest.raises(UserError, match="conv_act='relu' is not one of"):
    deberta.sizes_from_config(configured(conv_kernel_size=3, conv_act='relu'))
  model = saved(tmp_path, position_biased_input=True)
  encoder, params = load(tmp_path, model.config)
  with pytest.raises(UserError, match='17 tokens are more than the 16'):
    ours(encoder, params, *rows(17))
