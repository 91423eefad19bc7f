"""The data of a folder are what its manifests list, and complete sets of shards."""

import json

import datasets
import pytest

from nlhf_jax.data import examples
from nlhf_jax.data.schemas import Example
from nlhf_jax.errors import UserError

ROWS = [{'prompt': f'question {i}', 'chosen': f'yes {i}', 'rejected': f'no {i}'} for i in range(40)]
EXAMPLES = [Example(*row.values()) for row in ROWS]


def read(path, split=''):
  return list(examples.read_examples(str(path), 'comparisons', split, False))


def write_lines(path, rows=ROWS):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A function that saves a set with `datasets`, in two files, once for each name."""

  def save(name):
    folder = tmp_path_factory.mktemp(name)
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / 'own', num_shards=2)
    return folder / 'own'

  return save


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_caches_beside_a_saved_set_are_not_data(saved):
  folder = saved('cached')
  loaded = datasets.load_from_disk(folder)
  loaded.map(lambda row: {'chosen': 'changed'}, cache_file_name=str(folder / 'cache-1f0c.arrow'))
  loaded.shuffle(seed=0, indices_cache_file_name=str(folder / 'cache-77ab.arrow'))
  loaded.filter(lambda row: False, cache_file_name=str(folder / 'filtered.arrow'))
  (folder / 'old.arrow').write_bytes(b'x')
  assert read(folder) == EXAMPLES


def test_the_order_of_the_manifest_counts(saved):
  folder = saved('ordered')
  files = [{'filename': f'data-0000{i}-of-00002.arrow'} for i in (1, 0)]
  edit(folder / 'state.json', _data_files=files)
  assert read(folder) == EXAMPLES[20:] + EXAMPLES[:20]


@pytest.mark.parametrize('loaded', ['shuffled', 'filtered', 'selected'])
def test_a_selection_is_saved_as_rows(loaded, tmp_path):
  whole = datasets.Dataset.from_list(ROWS)
  {
    'shuffled': lambda: whole.shuffle(seed=1),
    'filtered': lambda: whole.filter(lambda row: row['prompt'].endswith('3')),
    'selected': lambda: whole.select([5, 3]),
  }[loaded]().save_to_disk(tmp_path / 'own')
  expected = [tuple(row.values()) for row in datasets.load_from_disk(tmp_path / 'own')]
  assert [tuple(one)[:3] for one in read(tmp_path / 'own')] == expected


@pytest.mark.parametrize(
  ('changes', 'problem'),
  [
    ({'_indices_data_files': [{'filename': 'indices.arrow'}]}, 'by _indices_data_files, which is'),
    ({'_indices_files': [{'filename': 'indices.arrow'}]}, r'call flatten_indices\(\)'),
    ({'_data_files': [{'filename': 'data-00000-of-00002.arrow', 'skip': 3}]}, 'by _data_files'),
    ({'_data_files': [{'filename': '../other.arrow'}]}, 'no list of files beside it'),
    ({'_data_files': [{'filename': '/etc/passwd'}]}, 'no list of files beside it'),
    ({'_data_files': [{'filename': 'gone.arrow'}]}, "lists 'gone.arrow', which is missing"),
    ({'_data_files': 'data'}, 'no list of files beside it'),
    ({'_data_files': [{'filename': 'data-00000-of-00002.arrow'}]}, 'of 2 it has the numbers 0;'),
    ({'_data_files': []}, 'holds no data'),
  ],
)
def test_manifests_that_cannot_be_followed_are_refused(saved, changes, problem):
  folder = saved('edited')
  edit(folder / 'state.json', **changes)
  with pytest.raises(UserError, match=problem):
    read(folder)


def test_damaged_manifests_are_refused(saved, tmp_path):
  folder = saved('damaged')
  (folder / 'state.json').write_text('{"_data_files": [')
  with pytest.raises(UserError, match=r'state.json is damaged \(Expecting value'):
    read(folder)
  write_lines(tmp_path / 'train' / 'a.jsonl')
  for splits, problem in (
    ('["train", "gone"]', "lists the split 'gone', which is missing"),
    ('["../train"]', "its 'splits' are no list of names"),
    ('3', "its 'splits' are no list of names"),
  ):
    (tmp_path / 'dataset_dict.json').write_text(f'{{"splits": {splits}}}')
    with pytest.raises(UserError, match=problem):
      read(tmp_path)


def test_only_the_splits_of_a_saved_dictionary_are_read(tmp_path):
  train, test = datasets.Dataset.from_list(ROWS[:30]), datasets.Dataset.from_list(ROWS[30:])
  datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / 'both')
  train.save_to_disk(tmp_path / 'both' / 'old' / 'train')
  assert read(tmp_path / 'both', 'train') == EXAMPLES[:30]
  with pytest.raises(UserError, match=r'must be one of those of .*: test.data, train.data'):
    read(tmp_path / 'both')


@pytest.mark.parametrize(
  'names',
  [
    ['train-00000-of-00002-1f0c9a7be2d45381', 'train-00001-of-00002-77ab09c3d1e2f456'],
    ['train-00000-of-00002', 'train-00001-of-00002'],
    ['train-1-of-2', 'train-2-of-2'],
    ['train_00000_of_00002', 'train_00001_of_00002'],
    ['train/0000', 'train/0001'],
    ['default/train/0000', 'default/train/0001'],
    ['train/data-00000-of-00002', 'train/data-00001-of-00002'],
  ],
)
def test_shards_of_a_split_are_read_in_order(names, tmp_path):
  for name, rows in zip(names, (ROWS[:25], ROWS[25:]), strict=True):
    write_lines(tmp_path / 'data' / f'{name}.jsonl', rows)
  assert read(tmp_path) == EXAMPLES  # it is the only split
  write_lines(tmp_path / 'data' / 'test-00000-of-00001-0a1b2c3d4e5f6071.jsonl', ROWS[:2])
  assert read(tmp_path, 'train') == EXAMPLES
  assert read(tmp_path, 'test') == EXAMPLES[:2]


@pytest.mark.parametrize(
  ('names', 'problem'),
  [
    (['train-00000-of-00002', 'train-00002-of-00003'], 'shards of more than one version'),
    (['train-00000-of-00001-1f0c9a7be2d45381', 'train-00000-of-00001-77ab09c3d1e2f456'], 'older'),
    (['train-00000-of-00002', 'train-00001-of-00002', 'train-00000-of-00001'], 'sets of 1 and 2'),
    (['train-00001-of-00002'], 'of 2 it has the numbers 1; download'),
    (['train-00000-of-99999999999'], 'of 99999999999 it has the numbers 0;'),
    (['train-00002-of-00002', 'train-00000-of-00002'], 'of 2 it has the numbers 0, 2;'),
  ],
)
def test_incomplete_or_mixed_shards_are_refused(names, problem, tmp_path):
  for name in names:
    write_lines(tmp_path / f'{name}.jsonl')
  with pytest.raises(UserError, match=problem):
    read(tmp_path)


def test_a_split_in_files_of_two_kinds_is_refused(tmp_path):
  write_lines(tmp_path / 'train.jsonl', ROWS[:30])
  datasets.Dataset.from_list(ROWS[30:]).to_parquet(tmp_path / 'data' / 'test.parquet')
  assert read(tmp_path, 'train') == EXAMPLES[:30]
  assert read(tmp_path, 'test') == EXAMPLES[30:]
  datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / 'data' / 'train.parquet')
  with pytest.raises(UserError, match=r'has this split in files of .jsonl and .parquet'):
    read(tmp_path, 'train')
  assert read(tmp_path, 'data/train') == EXAMPLES


def test_hidden_folders_are_passed_over(tmp_path):
  write_lines(tmp_path / 'train.jsonl')
  write_lines(tmp_path / '.ipynb_checkpoints' / 'train-checkpoint.jsonl')
  write_lines(tmp_path / '.cache' / 'train.jsonl')
  assert read(tmp_path) == EXAMPLES
