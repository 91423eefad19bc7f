"""Law: what a device holds, moves and computes is its own, in the text of compiled programs.

`programs` runs on eight simulated devices; each test takes one of its parts. Each property has a
control: a program that lacks it, on which the same measure fails.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.models import architectures, scoring
from nlhf_jax.models.blocks import Numerics
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import sampler
from nlhf_jax.sampling.decode import decode
from nlhf_jax.sampling.prefill import prefill
from nlhf_jax.structs import Prompts
from tests import conftest

ROOT = Path(__file__).parents[2]
FLAGS = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'


def outcome(part):
  """What `programs` prints of a part."""
  program = subprocess.run(
    [sys.executable, '-m', 'tests.models.programs', part],
    env=os.environ | {'XLA_FLAGS': f'{conftest.FLAGS} {FLAGS}'},
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert program.returncode == 0, program.stderr[-3000:]
  return json.loads(program.stdout.splitlines()[-1])[part]


def largest(moved):
  return max((size for _, size, _ in moved), default=0)


@pytest.mark.slow
def test_the_gradient_of_the_head_is_reduced_once():
  heads = outcome('heads')
  most = heads['bytes']
  assert largest(heads['replicated']) >= most  # the control
  shapes = {
    'tied': ([512 // 2, 32], [512 // 2, 32 // 2]),
    'untied': ([32, 512], [32 // 8, 512]),
    'columns': ([4_096, 32], [4_096, 32]),
  }
  for name, (whole, part) in shapes.items():
    found = heads[name]
    assert largest(found['own']) < most
    assert largest(found['plain']) >= most  # the control: JAX's own backward pass
    reduced = [
      (opcode, kinds)
      for opcode, size, kinds in found['outside']
      if opcode in ('reduce-scatter', 'all-reduce') and size >= most
    ]
    scattered = [['reduce-scatter', [['f32', part]]]] if part != whole else []
    summed = [['all-reduce', [['f32', part]]]] if name != 'untied' else []
    assert [list(pair) for pair in reduced] == scattered + summed
  assert heads['tied']['head'] < 1e-5
  assert heads['tied']['hidden'] < 1e-5
  assert heads['columns']['head'] < 1e-3  # 32 chunks, in bfloat16
  assert heads['untied']['hidden'] < 1e-2


@pytest.mark.slow
def test_weights_are_cast_before_they_move():
  casts = outcome('casts')
  gathered = [kind for opcode, _, kinds in casts['own'] for kind, _ in kinds]
  assert {opcode for opcode, _, _ in casts['own']} == {'all-gather'}
  assert set(gathered) == {'bf16'}
  assert sum(size for _, size, _ in casts['own']) == 2 * casts['parameters']
  assert 'f32' in [kind for _, _, kinds in casts['control'] for kind, _ in kinds]
  assert casts['shared']
  assert casts['whole']
  assert casts['types'] == ['bfloat16', 'float32']  # norms compute in float32


@pytest.mark.slow
def test_decoding_gathers_no_weights():
  decoding = outcome('decoding')
  smallest = 32 * 64 * 2 // 8  # bytes of a kernel, on one of eight devices

  def gathers(layout):
    return [moved for moved in decoding[layout] if moved[0] == 'all-gather']

  assert decoding['replicated'] == []  # so that no shard waits for another
  assert decoding['together'] != []  # the control: whether all are done
  assert largest(gathers('gathered')) >= smallest  # the control
  for layout in ('tensor', 'few keys', 'few keys, shards'):
    assert largest(gathers(layout)) < smallest, layout
    places = {axis for moved in decoding[layout] for _, shape in moved[2] for axis in shape}
    assert 61 not in places, layout  # the caches stay where they are


@pytest.mark.slow
def test_responses_are_those_of_one_device_in_every_layout():
  tokens = outcome('tokens')
  alone = tokens.pop('alone')
  assert tokens.pop('talk') == tokens.pop('talk_on_mesh')
  assert set(tokens) == {'auto', 'replicated', 'tensor', 'gathered'}
  assert all(len(leaf) == 7 for leaf in alone)
  for layout, sampled in tokens.items():
    assert sampled == alone, layout


@pytest.mark.slow
def test_batches_that_shrink_on_a_mesh_change_no_token():
  tokens = outcome('uneven_tokens')
  lengths = np.sum(tokens['alone'][1], axis=-1)
  assert len(set(lengths.ravel().tolist())) > 8
  for drafted in ('', '_drafted'):
    alone = tokens.pop(f'alone{drafted}')
    for layout in [name for name in tokens if name.endswith('_drafted') == bool(drafted)]:
      assert tokens[layout] == alone, layout


@pytest.mark.slow
def test_rows_that_do_not_divide_the_mesh_are_split():
  rows = outcome('rows')
  assert rows['127'] <= 1.05 * rows['128']
  assert rows['error'] < 1e-5
  assert rows['init'] < 1e-6


@pytest.mark.slow
def test_accumulation_carries_the_part_of_a_device():
  found = outcome('accumulation')
  assert found['error'] < 1e-5
  carried = [shape for kinds in found['carried'] for _, shape in kinds]
  assert [512, 4] in carried
  assert [512, 32] not in carried


@pytest.mark.slow
def test_devices_have_the_keys_of_their_own_queries():
  copied, control = outcome('copied'), outcome('not_copied')
  assert copied['heads'] == [1]
  assert control['heads'] == [2]
  assert max(copied['error'], control['error']) < 1e-5


@pytest.mark.slow
def test_loops_over_layers_carry_the_part_of_a_device():
  """Its rows and tokens of what goes between layers, and its part of each gradient."""
  found = outcome('carried')
  assert all(case['error'] < 1e-5 for case in found.values())
  odd, whole = (found.pop(name)['carried'] for name in ('odd', 'whole'))
  kernel = [2, 32, 64]  # of two layers
  for mesh, case in found.items():
    data, fsdp, tensor = json.loads(mesh)
    rows = 8 // (data * fsdp)
    assert [2, rows, 16 // tensor, 32] in case['carried'], mesh
    kernels = [np.prod(shape) for shape in case['carried'] if shape[0:1] == [2] and len(shape) == 3]
    assert max(kernels) <= np.prod(kernel) / (fsdp * tensor), mesh
    if fsdp == data == 1:  # activations move, but no kernel
      assert {tuple(shape) for shape in case['moved']} == {(8, 16, 32), (32,)}
  # The controls: a number of tokens that does not divide, and gradients that may lie anywhere.
  assert [2, 8, 15, 32] in odd
  assert kernel in whole


# --- One device ---


def some_decoder(layers, remat='nothing'):
  sizes = architectures.small(
    64, width=32, layers=layers, heads=2, key_heads=1, head_size=16, hidden=64, rotary_base=1e4
  )
  return make_decoder(sizes, Numerics(remat=remat))


@pytest.mark.slow
def test_programs_do_not_grow_with_depth():
  def text(layers):
    decoder = some_decoder(layers, 'layers')
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    tokens = jnp.zeros((4, 16), jnp.int32)

    def loss(params):
      hidden, _ = decoder.prefill(params, tokens, jnp.ones_like(tokens, bool))
      return -jnp.mean(scoring.next_token_log_probs(decoder, params, hidden, tokens))

    return len(jax.jit(jax.grad(loss)).lower(params).compile().as_text())

  middle = text(8)
  assert middle <= 1.02 * text(4)
  assert text(16) <= 1.02 * middle


@pytest.mark.slow
def test_decoding_reuses_the_buffers_of_its_caches():
  decoder, length = some_decoder(2), 62
  params = jax.jit(decoder.init)(jax.random.key(0))
  settings = sampler.make_sampler(decoder, [{'policy': 1.0}], length, 1, 1, sampler.Filters())
  prompts = Prompts(np.ones((16, 8), np.int32), np.ones((16, 8), bool))
  state = prefill(settings, {'policy': params}, prompts, jax.random.key(0))
  slots = decoder.for_decoding({'policy': params})
  run = partial(decode.lower, batch=16, limit=length, compact_to=0)
  compiled = run(settings, slots, state, jax.random.key(0)).compile()
  held = sum(leaf.nbytes for leaf in state.caches[0].keys + state.caches[0].values)
  assert compiled.memory_analysis().alias_size_in_bytes >= held
