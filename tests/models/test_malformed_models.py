"""A malformed folder of a model is refused with one sentence, or read as `transformers` does."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nlhf_jax.errors import UserError
from nlhf_jax.models import architectures
from tests.models import families, malformed_models
from tests.models.malformed_models import EMBEDDING, HEAD, INDEX, NORM
from tests.models.test_families import load, ours, rows, theirs


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A model in three shards."""
  folder = tmp_path_factory.mktemp('model') / 'whole'
  families.save('llama', folder, shard='20KB', num_hidden_layers=2)
  assert len(list(folder.glob('*.safetensors'))) == 3
  return folder


@contextlib.contextmanager
def changed(whole, change):
  """A copy of the model with a change."""
  folder = whole.parent / 'copy'
  shutil.copytree(whole, folder)
  try:
    change(folder)
    yield folder
  finally:
    shutil.rmtree(folder)


def refusal(folder, read=load):
  """The message with which a model is refused, or None."""
  try:
    read(folder)
  except UserError as error:
    message = str(error)
  else:
    return None
  assert '\n' not in message
  assert message.startswith(str(folder))
  return message


def test_malformed_indices_and_tensors_are_refused(whole):
  changes = [*malformed_models.changed_indices(), *malformed_models.changed_tensors()]
  assert len(changes) > 60
  for name, change in changes:
    with changed(whole, change) as folder:
      assert refusal(folder), name


def test_values_of_no_decoder_are_refused(whole):
  changes = dict(malformed_models.changed_configs())
  wrong = [name for name in changes if name.endswith(('=-1', '=0', '=nan', "='text'", '=[]'))]
  assert len(wrong) > 80
  for name in wrong:
    with changed(whole, changes[name]) as folder:
      assert refusal(folder, architectures.read_architecture), name


@pytest.mark.slow
def test_what_is_accepted_agrees_with_transformers(whole):
  tokens, mask = rows()
  accepted = 0
  for name, change in malformed_models.changed_configs():
    with changed(whole, change) as folder:
      if refusal(folder) or 'max_position' in name or '100000000000000' in name:
        continue
      accepted += 1
      if name.startswith("{'layer_types'"):
        continue  # which transformers cannot run
      decoder, params = load(folder)
      model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation='eager')
      found, expected = ours(decoder, params, tokens, mask), theirs(model, tokens, mask)
      np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4, err_msg=name)
  assert accepted > 10


def test_whole_file_precedes_shards_of_an_older_save(whole, capsys):
  def add_whole_file(folder):
    tensors = {}
    for path in folder.glob('*.safetensors'):
      tensors |= load_file(path)
    tensors[NORM] = torch.full((24,), 7.0)
    save_file(tensors, folder / 'model.safetensors')

  with changed(whole, add_whole_file) as folder:
    _, params = load(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  scale = np.asarray(params['final_norm']['scale'])
  np.testing.assert_array_equal(scale, np.full(24, 7.0))
  np.testing.assert_array_equal(scale, model.state_dict()[NORM].numpy())
  note = capsys.readouterr().out
  assert 'model.safetensors is read, and not model-00001-of-00003.safetensors, ' in note


def test_shards_of_an_older_save_are_named(whole, capsys):
  older = 'model-00004-of-00004.safetensors'
  with changed(whole, lambda folder: save_file({'old': torch.ones(3)}, folder / older)) as folder:
    load(folder)
  assert f'and not {older}.' in capsys.readouterr().out


def test_head_that_equals_its_tied_embedding_is_accepted(whole):
  def tie(folder):
    tensors = {}
    for path in folder.glob('*.safetensors'):
      tensors |= load_file(path)
      path.unlink()
    save_file(tensors | {HEAD: tensors[EMBEDDING].clone()}, folder / 'model.safetensors')
    config = json.loads((folder / 'config.json').read_text()) | {'tie_word_embeddings': True}
    (folder / 'config.json').write_text(json.dumps(config))

  with changed(whole, tie) as folder:
    _, params = load(folder)
  assert 'head' not in params


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('a tensor is torch.float8_e4m3fn', 'is stored as F8_E4M3; quantised weights are not read'),
    ('a head is tied to other values', 'set tie_word_embeddings to false in config.json'),
    ('a tensor is in two shards', 'remove the files of the older save'),
    ("a tensor in '/etc/passwd'", "'/etc/passwd' is no name of a safetensors file in this folder"),
    ('weight_map 3', f'{INDEX}: not an index of safetensors files'),
  ],
)
def test_refusals_name_the_remedy(name, message, whole):
  changes = dict([*malformed_models.changed_indices(), *malformed_models.changed_tensors()])
  with changed(whole, changes[name]) as folder:
    assert message in refusal(folder)
