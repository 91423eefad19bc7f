"""A model that cannot be loaded is refused with one sentence that names the cause."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nlhf_jax.errors import UserError
from tests.models import families
from tests.models.test_families import load

QUERY = 'model.layers.0.self_attn.q_proj.weight'


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole')
  families.save('llama', folder, num_hidden_layers=2)
  return folder


@pytest.fixture
def copy(saved, tmp_path):
  """A function that saves the model with other tensors or another config."""

  def write(tensors=None, **config):
    content = json.loads((saved / 'config.json').read_text()) | config
    (tmp_path / 'config.json').write_text(json.dumps(content))
    save_file(tensors or load_file(saved / 'model.safetensors'), tmp_path / 'model.safetensors')
    return tmp_path

  return write


def refusal(folder):
  """The message of the error that loading raises."""
  with pytest.raises(UserError) as error:
    load(folder)
  sentence = str(error.value)
  assert sentence.startswith(str(folder))
  assert '\n' not in sentence
  return sentence


def test_complete_model_is_loaded(copy):
  _, params = load(copy())
  assert params['embed']['embedding'].shape == (67, 24)


def test_missing_unknown_and_misshapen_tensors_are_named(copy, saved):
  tensors = load_file(saved / 'model.safetensors')
  tensors['model.layers.9.odd.weight'] = tensors.pop(QUERY)
  norm = 'model.norm.weight'
  tensors[norm] = np.ones(25, np.float32)
  sentence = refusal(copy(tensors))
  assert f"'{QUERY}' is missing" in sentence
  assert "'model.layers.9.odd.weight' is unknown" in sentence
  assert f"'{norm}' has shape (25,), not (24,)" in sentence


def test_truncated_file_is_named(copy):
  folder = copy()
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:-100])
  assert f'{path}: broken or cut short' in refusal(folder)


def test_file_of_another_format_is_named(copy):
  folder = copy()
  (folder / 'model.safetensors').write_bytes(b'version https://git-lfs.github.com/spec/v1\n' * 9)
  assert 'broken or cut short' in refusal(folder)


def test_weights_in_other_formats_are_refused(copy):
  folder = copy()
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  assert 'convert weights in other formats' in refusal(folder)


def test_missing_file_of_the_index_is_named(tmp_path):
  families.save('llama', tmp_path, shard='20KB')
  part = next(tmp_path.glob('model-00002-*'))
  part.unlink()
  assert refusal(tmp_path).startswith(f'{part}: the index names this file')


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model_type': 'mamba'}, "type 'mamba' are not supported; use one of llama, mistral, qwen2"),
    ({'model_type': 'no_such_model'}, 'cannot be used'),
    ({'hidden_act': 'relu6'}, "hidden_act='relu6' is not one of silu"),
    ({'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e4, 'factor': 2.0}}, "'yarn'"),
  ],
)
def test_unknown_architecture_is_refused(copy, change, message):
  assert message in refusal(copy(**change))
