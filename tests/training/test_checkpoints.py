"""A damaged checkpoint is noticed by its manifest, and the one before it takes its place."""

import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import distributed
from nlhf_jax.errors import UserError
from nlhf_jax.structs import TrainState
from nlhf_jax.training import checkpoints
from nlhf_jax.training.checkpoints import Checkpoints


def state_at(step):
  params = {'policy': {'w': jnp.arange(64.0) + step}}
  return TrainState(jnp.int32(step), params, jnp.ones(3) * step, {}, nonfinite=jnp.int32(0))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A stage's folder with checkpoints of three steps, of which two are kept."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  store = Checkpoints(folder)
  for step in (4, 8, 12):
    store.save(state_at(step))
  store.close()
  return folder


def largest(folder):
  return max(
    (path for path in folder.rglob('*') if path.is_file()), key=lambda it: it.stat().st_size
  )


def flip(folder):
  content = bytearray(largest(folder).read_bytes())
  content[len(content) // 2] ^= 1
  largest(folder).write_bytes(content)


def truncate(folder):
  largest(folder).write_bytes(largest(folder).read_bytes()[:-1])


def empty(folder):
  (folder / '_CHECKPOINT_METADATA').write_bytes(b'')


def spoil_manifest(folder):
  (folder.parent / f'manifest-{folder.name}.json').write_text('')


DAMAGES = {
  'flipped bit': (flip, 'has changed since it was written'),
  'truncated file': (truncate, 'bytes, not'),
  'deleted file': (lambda folder: largest(folder).unlink(), 'is missing'),
  'empty file': (empty, 'has 0 bytes, not'),
  'empty manifest': (spoil_manifest, 'is no manifest'),
}


def restore(folder):
  store = Checkpoints(folder)
  try:
    return store.restore(state_at(0))
  finally:
    store.close()


def test_two_checkpoints_are_kept(saved):
  assert checkpoints.saved_steps(saved) == [12, 8]
  assert [checkpoints.find_damage(saved, step) for step in (12, 8)] == [None, None]
  assert sorted(path.name for path in saved.iterdir()) == [
    '12', '8', 'manifest-12.json', 'manifest-8.json'
  ]  # fmt: skip
  chex.assert_trees_all_equal(restore(saved), state_at(12))


@pytest.mark.parametrize('kind', DAMAGES)
def test_damaged_newest_falls_back(kind, saved, tmp_path, capsys):
  damage, expected = DAMAGES[kind]
  folder = shutil.copytree(saved, tmp_path / 'checkpoints')
  damage(folder / '12')
  chex.assert_trees_all_equal(restore(folder), state_at(8))
  printed = capsys.readouterr().out
  assert printed.count('\n') == 1
  assert f'The checkpoint of step 12 in {folder} is damaged' in printed
  assert expected in printed
  assert 'going on from that of step 8' in printed
  assert (tmp_path / '12.damaged').is_dir()
  restore(folder)
  assert capsys.readouterr().out == ''  # reported once


@pytest.mark.parametrize('kind', DAMAGES)
def test_two_damaged_checkpoints_name_the_folder_to_delete(kind, saved, tmp_path):
  damage, expected = DAMAGES[kind]
  folder = shutil.copytree(saved, tmp_path / 'checkpoints')
  damage(folder / '12')
  damage(folder / '8')
  with pytest.raises(UserError, match=f'delete {tmp_path} to train this stage again') as caught:
    restore(folder)
  assert expected in str(caught.value)
  assert (folder / '12').is_dir()  # nothing was changed


def test_unfinished_checkpoint_does_not_count(saved, tmp_path, capsys):
  """As after a power cut between the files and their manifest."""
  folder = shutil.copytree(saved, tmp_path / 'checkpoints')
  (folder / 'manifest-12.json').unlink()
  chex.assert_trees_all_equal(restore(folder), state_at(8))
  assert 'step 12' in capsys.readouterr().out
  assert not (folder / '12').exists()
  store = Checkpoints(folder)
  store.save(state_at(12))
  store.close()
  assert checkpoints.find_damage(folder, 12) is None


def test_remains_of_an_older_checkpoint_are_removed(saved, tmp_path, capsys):
  folder = shutil.copytree(saved, tmp_path / 'checkpoints')
  (folder / 'manifest-8.json').unlink()
  chex.assert_trees_all_equal(restore(folder), state_at(12))
  assert capsys.readouterr().out == ''
  assert checkpoints.saved_steps(folder) == [12]


def test_restored_state_may_be_donated(saved):
  state = restore(saved)
  double = jax.jit(lambda tree: jax.tree.map(lambda leaf: 2 * leaf, tree), donate_argnums=0)
  np.testing.assert_array_equal(double(state).step, 24)


@pytest.mark.parametrize('apart', [(True, False), (False, True)])
def test_machines_apart_write_the_same_checkpoints(apart, tmp_path, monkeypatch):
  for step, own_folders in zip((4, 8), apart, strict=True):
    monkeypatch.setattr(distributed, 'has_own_folders', lambda own=own_folders: own)
    store = Checkpoints(tmp_path)
    restored = store.restore(state_at(0))
    chex.assert_trees_all_equal(restored, state_at(step - 4))
    store.save(state_at(step))
    store.close()
    assert checkpoints.find_damage(tmp_path, step) is None
    params = checkpoints.load_slots(tmp_path, state_at(0).params)
    chex.assert_trees_all_equal(params, state_at(step).params)
    with pytest.raises(UserError, match='this checkpoint has other parameters'):
      checkpoints.load_slots(tmp_path, {'policy': {'w': jnp.ones(64), 'v': jnp.ones(2)}})
