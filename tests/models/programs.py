"""A program for eight simulated devices: what compiled programs move, and what they compute.

Prints one line of JSON for each of its parts, which its arguments name.
"""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec

from nlhf_jax.algorithms import catalogue
from nlhf_jax.models import architectures, head, scoring, sharding
from nlhf_jax.models.blocks import Numerics
from nlhf_jax.models.decoder import make_cache
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import layouts, sampler
from nlhf_jax.sampling.decode import decode
from nlhf_jax.sampling.dialogue_rollout import Dialogue, Replies, make_dialogue_rollout
from nlhf_jax.sampling.prefill import prefill
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.sampling.sharded_decoding import decode_shards
from nlhf_jax.structs import Comparison, Prompts, Responses
from nlhf_jax.training.update import initial_state, make_update
from tests import compiled_text

VOCABULARY, WIDTH = 512, 32
FSDP = (1, 8, 1)
MESHES = ((8, 1, 1), FSDP, (1, 1, 8), (2, 2, 2))


def small(compute=jnp.float32, remat='nothing', **changes):
  """A decoder of two layers and its parameters, which bfloat16 represents exactly."""
  sizes = architectures.small(
    VOCABULARY, WIDTH, layers=2, heads=8, key_heads=8, head_size=8, hidden=64, rotary_base=1e4
  )
  decoder = make_decoder(sizes._replace(**changes), Numerics(compute, remat=remat))
  random = np.random.default_rng(0)

  def fill(leaf):
    values = jnp.asarray(random.normal(size=leaf.shape, scale=0.2), jnp.bfloat16)
    return np.asarray(values.astype(jnp.float32))

  shapes = jax.eval_shape(decoder.init, jax.random.key(0))
  return decoder, jax.tree.map(fill, shapes)


def some_prompts(rows, length=6):
  tokens = np.random.default_rng(1).integers(2, VOCABULARY, (rows, length)).astype(np.int32)
  return Prompts(tokens, np.arange(length) >= np.arange(rows)[:, None] % 3)


def moved(text, in_loop):
  """Opcode, bytes and shapes of what a program moves."""
  return [
    (found.opcode, found.bytes, compiled_text.shapes(found))
    for found in compiled_text.collectives(text, in_loop)
  ]


def relative(one, other):
  one, other = (np.asarray(x, np.float64) for x in (one, other))
  return float(np.linalg.norm(one - other) / np.linalg.norm(other))


# --- Log-probabilities in chunks ---


def head_gradients(mesh, compute, columns, **changes):
  """What chunked log-probabilities move on a mesh, and how far gradients are from one device's."""
  decoder, params = small(compute, **changes)
  random = np.random.default_rng(2)
  shape, vocabulary = (16, 32), decoder.head.kernel(params).shape[int(not decoder.head.transposed)]
  hidden = np.asarray(jnp.asarray(random.normal(size=(*shape, WIDTH)), jnp.bfloat16))
  tokens = random.integers(vocabulary, size=shape)
  weight = np.sign(random.normal(size=shape))  # exact in bfloat16

  def loss(params, hidden, decoder):
    hidden = sharding.shard_rows(hidden)
    log_p = scoring.next_token_log_probs(decoder, params, hidden, sharding.shard_rows(tokens))
    return jnp.sum(weight.astype(np.float32) * log_p)

  kernel = decoder.head.kernel
  exact, _ = small(jnp.float32, **changes)
  expected = jax.jit(jax.grad(partial(loss, decoder=exact), (0, 1)))(
    params, hidden.astype(np.float32)
  )
  rows = shape[0] // (mesh[0] * mesh[1])
  scoring.MAX_LOGITS = columns * rows * vocabulary
  with jax.set_mesh(sharding.make_mesh(*mesh)):
    inputs = sharding.put_parameters(params), sharding.put_rows(hidden.astype(compute))
    results = {}
    for name, own in (('own', decoder), ('plain', decoder._replace(head=None))):
      differentiate = jax.jit(jax.grad(partial(loss, decoder=own), (0, 1)))
      compiled, text = compiled_text.partitioned(differentiate.lower(*inputs))
      results[name] = moved(text, True)
      if name == 'own':
        gradient = compiled(*inputs)
        results['outside'] = moved(text, False)
  results['head'] = relative(kernel(gradient[0]), kernel(expected[0]))
  results['hidden'] = relative(gradient[1], expected[1])
  return results


def replicated_head():
  """The control: a head that is whole on every device is reduced in every chunk."""
  decoder, params = small()
  with jax.set_mesh(sharding.make_mesh(*FSDP)):

    @partial(
      jax.shard_map, in_specs=(PartitionSpec(), PartitionSpec('fsdp')), out_specs=PartitionSpec()
    )
    def total(kernel, hidden):
      chunks = head.split_columns(hidden, 4)
      return lax.psum(jnp.sum(lax.map(lambda x: jnp.tanh(x @ kernel.T), chunks)), 'fsdp')

    hidden = jnp.ones((16, 32, WIDTH))
    lowered = jax.jit(jax.grad(total)).lower(decoder.head.kernel(params), hidden)
    return moved(compiled_text.partitioned(lowered)[1], True)


def heads():
  """Heads that are tied or not, on meshes; `columns` has a chunk for each of 32 columns."""
  return {
    'tied': head_gradients((2, 2, 2), jnp.float32, 4, logit_cap=30.0),
    'untied': head_gradients(FSDP, jnp.bfloat16, 4, tied=False),
    'columns': head_gradients((8, 1, 1), jnp.bfloat16, 1, vocabulary=4_096),
    'replicated': replicated_head(),
    'bytes': VOCABULARY * WIDTH // 8 * 2,
  }


# --- Weights that are sampled from ---


def casts():
  """What moves when weights are cast before they move, and in one program."""
  decoder, params = small(jnp.bfloat16)
  with jax.set_mesh(sharding.make_mesh(*FSDP)):
    placed = sharding.put_parameters(params)
    low = layouts._lower(decoder.cast, placed)
    mesh = layouts.sampling_mesh('replicated', decoder)
    with jax.set_mesh(mesh):
      own = compiled_text.partitioned(jax.jit(sharding.shard_parameters).lower(low))[1]
      unpinned = jax.jit(lambda params: sharding.shard_parameters(decoder.cast(params)))
      control = compiled_text.partitioned(unpinned.lower(placed))[1]
    there = layouts.to_sampling(decoder, {'policy': placed, 'reference': placed}, mesh)
  split = [
    leaf for leaf in jax.tree.leaves(placed) if leaf.addressable_shards[0].data.size < leaf.size
  ]
  leaves = jax.tree.leaves(there['policy'])
  return {
    'own': moved(own, None),
    'control': moved(control, None),
    'parameters': sum(leaf.size for leaf in split),
    'shared': all(map(lambda a, b: a is b, leaves, jax.tree.leaves(there['reference']))),
    'whole': all(leaf.sharding.is_fully_replicated for leaf in leaves),
    'types': sorted({str(leaf.dtype) for leaf in leaves}),
  }


def decoding(layout, shards=True, mesh=FSDP, **changes):
  """What one decoding program moves per token; caches have room for 61 tokens.

  The loop is that of each shard, or one of all, as `gathered` has it.
  """
  decoder, params = small(jnp.bfloat16, **changes)
  with jax.set_mesh(sharding.make_mesh(*mesh)):
    placed = sharding.put_parameters(params)
    mesh = layouts.sampling_mesh(layout, decoder)
    slots = layouts.to_sampling(decoder, {'policy': placed}, mesh)
    with jax.set_mesh(mesh):
      settings = sampler.make_sampler(decoder, [{'policy': 1.0}], 62, 1, 1, sampler.Filters())
      settings = settings._replace(first_room=61, min_batch=4)  # so that batches shrink
      rows = 32 if layout == 'replicated' else 8  # four for each shard, or all for the only one
      prompts, key = layouts._place(some_prompts(rows), jax.random.key(0))
      state, slots = prefill(settings, slots, prompts, key), decoder.for_decoding(slots)
      if shards and layout != 'gathered':
        lowered = decode_shards.lower(settings, slots, state, key, limit=62)
      else:
        lowered = decode.lower(settings, slots, state, key, batch=rows, limit=62, compact_to=0)
      return moved(compiled_text.partitioned(lowered)[1], True)


def uneven_tokens():
  """Responses that end at different times, of one device and of shards with batches that shrink."""
  sampler.FIRST_ROOM, sampler.MIN_BATCH = 4, 6
  decoder, params = small()
  stopping = decoder._replace(
    logits=lambda params, hidden: decoder.logits(params, hidden).at[..., 1].add(4.0)
  )
  other = jax.tree.map(lambda leaf: leaf[..., ::-1], params)
  prompts, mixtures = some_prompts(23), [{'policy': 1.0}, {'policy': 0.5, 'other': 0.5}]

  def sample(drafts):
    sampler.default_draft_length = lambda: drafts
    rollout = make_rollout(stopping, mixtures, length=20, stop=1)
    place = sharding.put_parameters
    sides = rollout({'policy': place(params), 'other': place(other)}, prompts, jax.random.key(3))
    return [np.asarray(leaf).tolist() for side in jax.block_until_ready(sides) for leaf in side[:2]]

  results = {'alone': sample(1), 'alone_drafted': sample(3)}
  with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
    with layouts.use_layout('tensor'):
      results['tensor'] = sample(1)
    with layouts.use_layout('replicated'):
      results['replicated_drafted'] = sample(3)
  return results


def reply(prompts, responses, key):
  """A user who ends every fourth conversation; sees seven prompts and no padding."""
  del key
  assert len(prompts.tokens) == len(responses.tokens) == 7
  total = np.sum(responses.tokens * (responses.turn > 0), axis=-1)
  return Replies(np.full((*total.shape, 2), 4), total % 3, total % 4 == 0)


def tokens():
  """Responses to seven prompts, and conversations, on one device and in layouts of a mesh."""
  decoder, params = small()
  mixtures = [{'policy': 1.0}, {'policy': 0.5, 'other': 0.5}]
  rollout = make_rollout(decoder, mixtures, length=5, stop=1)
  other = jax.tree.map(lambda leaf: leaf[..., ::-1], params)
  dialogue = Dialogue(reply, turns=2, reply_length=2)
  converse = make_dialogue_rollout(decoder, mixtures, dialogue=dialogue, length=3, stop=1)
  prompts = some_prompts(7)

  def talk(slots):
    sides = converse(slots, prompts, jax.random.key(3))
    return [np.asarray(leaf).tolist() for side in sides for leaf in (side.tokens, side.turn)]

  def sample(slots):
    key = jax.random.key(3)
    return [np.asarray(leaf).tolist() for side in rollout(slots, prompts, key) for leaf in side[:2]]

  slots = {'policy': params, 'other': other}
  results = {'alone': sample(slots), 'talk': talk(slots)}
  with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
    slots = {'policy': sharding.put_parameters(params), 'other': sharding.put_parameters(other)}
    for layout in ('auto', *layouts.LAYOUTS):
      with layouts.use_layout(layout):
        results[layout] = sample(slots)
    results['talk_on_mesh'] = talk(slots)
  return results


# --- Layers ---


def loss_of_hidden(decoder, params, prompts):
  """Some function of all hidden states."""
  hidden, _ = decoder.prefill(params, *prompts)
  return jnp.sum(jnp.sin(hidden))


def few_key_heads(copied):
  """Key heads of a device's caches of each layer, and how far its gradient is from one device's.

  Eight devices share two key heads, with copies of them or, as the control, without.
  """
  if not copied:
    sharding.copies_of_key_heads = lambda *_: 1
  decoder, params = small(key_heads=2)
  prompts, loss = some_prompts(8), partial(loss_of_hidden, decoder)
  alone = jax.grad(loss)(params, prompts)
  with jax.set_mesh(sharding.make_mesh(1, 1, 8)):
    placed = sharding.put_parameters(params)
    gradient = jax.jit(jax.grad(loss))(placed, prompts)
    _, prompt_cache = jax.jit(decoder.prefill)(placed, *prompts)
    cache = jax.jit(partial(make_cache, rows=8, room=4))(prompt_cache)
  buffers = [*prompt_cache.keys, *prompt_cache.values, *cache.keys, *cache.values]
  heads = {leaf.addressable_shards[0].data.shape[1] for leaf in buffers}
  errors = jax.tree.map(relative, gradient, alone)
  return {'heads': sorted(heads), 'error': max(jax.tree.leaves(errors))}


def carried_layers(mesh, length=16, split=True):
  """What the loops over layers carry for the gradient, and how far that is from one device's.

  `split=False` is the control: a gradient that may lie anywhere.
  """
  decoder, params = small(remat='layers')
  prompts, loss = some_prompts(8, length), partial(loss_of_hidden, decoder)
  alone = jax.grad(loss)(params, prompts)
  with jax.set_mesh(sharding.make_mesh(*mesh)):
    placed = sharding.put_parameters(params)
    shard = sharding.shard_parameters if split else lambda tree: tree
    differentiate = jax.jit(lambda *inputs: shard(jax.grad(loss)(*inputs)))
    compiled, text = compiled_text.partitioned(differentiate.lower(placed, prompts))
    errors = jax.tree.map(relative, compiled(placed, prompts), alone)
  carried = [
    shape
    for found in compiled_text.instructions(text)
    if found.opcode == 'while'
    for _, shape in compiled_text.shapes(found)
  ]
  gathered = [shape for _, _, kinds in moved(text, True) for _, shape in kinds]
  return {'carried': carried, 'moved': gathered, 'error': max(jax.tree.leaves(errors))}


# --- Rows and parts ---


def rows():
  """Memory and values of the scores of rows that do, and do not, divide the mesh."""
  decoder, params = small()
  random = np.random.default_rng(4)
  responses = random.integers(VOCABULARY, size=(128, 1, 16))
  prompts = some_prompts(128)
  score = partial(scoring.log_probs, decoder)

  def given(count):
    mask = np.ones((count, 1, 16), bool)
    return Prompts(*(leaf[:count] for leaf in prompts)), Responses(responses[:count], mask)

  new, expected = jax.jit(decoder.init)(jax.random.key(0)), jax.jit(score)(params, *given(127))
  results = {}
  with jax.set_mesh(sharding.make_mesh(*FSDP)):
    placed = sharding.put_parameters(params)
    init = jax.jit(lambda key: sharding.shard_parameters(decoder.init(key)))  # of a single row
    errors = jax.tree.map(lambda a, b: np.abs(a - b).max(), init(jax.random.key(0)), new)
    results['init'] = float(max(jax.tree.leaves(errors)))
    for count in (127, 128):
      compiled = jax.jit(score).lower(placed, *given(count)).compile()
      results[count] = compiled.memory_analysis().temp_size_in_bytes
      if count == 127:
        results['error'] = relative(compiled(placed, *given(count)), expected)
  return results


def accumulation():
  """What the loop over parts of a batch carries, and how far parameters are from one device's."""
  decoder, params = small()
  algorithm, optimizer = catalogue.sft(), optax.sgd(0.1)
  random = np.random.default_rng(5)
  responses = Responses(
    random.integers(VOCABULARY, size=(32, 1, 4)).astype(np.int32), np.ones((32, 1, 4), bool)
  )
  comparison = Comparison(some_prompts(32), responses)
  update = make_update(algorithm, scoring.make_score(decoder), optimizer, lambda *_: {}, 2)
  state = initial_state(algorithm, params, optimizer)
  alone, _ = update(state, comparison, jax.random.key(0))
  with jax.set_mesh(sharding.make_mesh(*FSDP)):
    state = sharding.put_parameters(initial_state(algorithm, params, optimizer))
    placed = sharding.put_rows(comparison)
    lowered = jax.jit(update).lower(state, placed, jax.random.key(0))
    compiled, text = compiled_text.partitioned(lowered)
    split, _ = compiled(state, placed, jax.random.key(0))
  carried = [
    compiled_text.shapes(found)
    for found in compiled_text.instructions(text)
    if found.opcode == 'while'
  ]
  errors = jax.tree.map(relative, split.params['policy'], alone.params['policy'])
  return {'carried': carried, 'error': max(jax.tree.leaves(errors))}


PARTS = {
  'heads': heads,
  'casts': casts,
  'decoding': lambda: (
    {layout: decoding(layout) for layout in layouts.LAYOUTS}
    | {'together': decoding('replicated', shards=False)}
    | {'few keys': decoding('tensor', mesh=(1, 1, 8), key_heads=2, tied=False)}
    | {'few keys, shards': decoding('tensor', mesh=(2, 2, 2), key_heads=2)}
  ),
  'tokens': tokens,
  'uneven_tokens': uneven_tokens,
  'copied': lambda: few_key_heads(True),
  'not_copied': lambda: few_key_heads(False),
  'carried': lambda: (
    {json.dumps(mesh): carried_layers(mesh) for mesh in MESHES}
    | {'odd': carried_layers((1, 1, 8), length=15), 'whole': carried_layers(FSDP, split=False)}
  ),
  'rows': rows,
  'accumulation': accumulation,
}

if __name__ == '__main__':
  for name in sys.argv[1:] or PARTS:
    print(json.dumps({name: PARTS[name]()}), flush=True)
