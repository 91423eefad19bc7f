"""The layout of weights for sampling: chosen by what fits, or forced by a setting."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from nlhf_jax.errors import UserError
from nlhf_jax.experiments.model_config import make_mesh
from nlhf_jax.models import architectures, sharding
from nlhf_jax.models.blocks import Numerics
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import layouts

SIZES = architectures.small(
  64, width=16, layers=1, heads=4, key_heads=1, head_size=8, hidden=32, rotary_base=1e4
)


@pytest.fixture(scope='module')
def decoder_and_slots():
  """Two slots that share all arrays, as a policy and its reference do at the start."""
  decoder = make_decoder(SIZES, Numerics(jnp.bfloat16))
  params = jax.eval_shape(decoder.init, jax.random.key(0))
  return decoder, {'policy': params, 'reference': params}


def test_shared_weights_count_once_in_the_type_they_are_computed_in(decoder_and_slots):
  decoder, slots = decoder_and_slots
  leaves = jax.tree_util.tree_leaves_with_path(slots['policy'])
  expected = sum((4 if 'norm' in str(path) else 2) * leaf.size for path, leaf in leaves)
  assert layouts.whole_bytes(decoder, slots) == expected


def test_the_first_layout_that_fits_is_chosen(decoder_and_slots):
  whole = layouts.whole_bytes(*decoder_and_slots)
  with jax.sharding.use_abstract_mesh(AbstractMesh((2, 2, 2), sharding.AXES)):
    chosen = [
      layouts.choose(*decoder_and_slots, memory)
      for memory in (whole / layouts.SHARE, whole, 0.99 * whole)
    ]
    with layouts.use_layout('gathered'):
      assert layouts.choose(*decoder_and_slots, 1e12) == 'gathered'
  assert chosen == ['replicated', 'tensor', 'gathered']


def test_as_many_devices_share_weights_as_divide_the_heads(decoder_and_slots):
  decoder, slots = decoder_and_slots
  whole = layouts.whole_bytes(decoder, slots)
  with jax.sharding.use_abstract_mesh(AbstractMesh((1, 8, 2), sharding.AXES)):
    assert layouts.sharing_devices(decoder) == 4
    assert layouts.sharing_devices(decoder._replace(heads=9)) == 1
    assert layouts.sharing_devices(decoder._replace(heads=None)) == 16
    assert layouts.choose(decoder, slots, whole) == 'tensor'
    assert layouts.choose(decoder, slots, 0.9 * whole) == 'gathered'  # a quarter is too much


def test_an_unknown_layout_is_refused(config_named):
  config = config_named('nash_md')
  config.mesh.sampling = 'sharded'
  with pytest.raises(UserError, match=r"config.mesh.sampling='sharded' must be one of auto, repl"):
    make_mesh(config).__enter__()


def test_a_run_without_the_setting_is_read(config_named):
  config = config_named('nash_md')
  del config.mesh.sampling
  with make_mesh(config):
    assert jax.sharding.get_abstract_mesh().empty or jax.device_count() > 1
