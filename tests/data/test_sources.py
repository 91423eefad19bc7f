"""Every kind of file and folder gives the same rows, or an error that says what is wrong."""

import gzip
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nlhf_jax.data import examples, sources
from nlhf_jax.data.conversations import Message
from nlhf_jax.data.schemas import Example
from nlhf_jax.errors import UserError
from nlhf_jax.tasks.summaries import generator

ROOT = Path(__file__).parents[2]
ROWS = [
  {'prompt': f'question {i}', 'left': f'a {i}', 'right': f'b {i}', 'preference': i / 200}
  for i in range(200)
]
RECORDS = [Example(row['prompt'], row['left'], row['right'], row['preference']) for row in ROWS]


def read(path, schema='graded', split='', skip_bad=False):
  return list(examples.read_examples(str(path), schema, split, skip_bad))


def lines(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows).encode()


def as_jsonl(path, rows):
  path.write_bytes(lines(rows))


def as_packed_jsonl(path, rows):
  path.write_bytes(gzip.compress(lines(rows)))


def as_json(path, rows):
  path.write_text(json.dumps(rows, indent=1))


def as_packed_json(path, rows):
  path.write_bytes(gzip.compress(json.dumps(rows).encode()))


def as_parquet(path, rows):
  pyarrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=77)


def as_arrow(path, rows):
  pyarrow = pytest.importorskip('pyarrow')
  table = pyarrow.Table.from_pylist(rows)
  with pyarrow.OSFile(str(path), 'wb') as file, pyarrow.ipc.new_stream(file, table.schema) as out:
    out.write_table(table, max_chunksize=77)


WRITE = {
  '.jsonl': as_jsonl,
  '.jsonl.gz': as_packed_jsonl,
  '.json': as_json,
  '.json.gz': as_packed_json,
  '.parquet': as_parquet,
  '.arrow': as_arrow,
}


@pytest.mark.parametrize('kind', WRITE)
def test_every_kind_of_file_gives_the_same_examples(tmp_path, kind):
  path = tmp_path / f'mine{kind}'
  WRITE[kind](path, ROWS)
  assert read(path) == RECORDS
  WRITE[kind](path, [ROWS[0], ROWS[1] | {'left': ''}])
  noun = 'line' if 'jsonl' in kind else 'row'
  with pytest.raises(UserError, match=f"^{path}, {noun} 2: field 'left' is empty; correct it, or"):
    read(path)


@pytest.mark.parametrize('kind', ['.jsonl', '.json', '.parquet', '.arrow'])
def test_messages_survive_every_kind_of_file(tmp_path, kind):
  talk = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
  messages = [*talk, {'role': 'user', 'content': 'c'}]
  answers = [[{'role': 'assistant', 'content': text}] for text in 'de']
  row = {'prompt': messages, 'chosen': answers[0], 'rejected': answers[1]}
  path = tmp_path / f'mine{kind}'
  WRITE[kind](path, [row])
  (record,) = read(path, 'comparisons')
  assert record == Example(tuple(Message(**message) for message in messages), 'd', 'e')


@pytest.mark.parametrize('kind', ['.jsonl', '.jsonl.gz', '.parquet'])
def test_a_split_of_a_folder_is_read(tmp_path, kind):
  (tmp_path / 'data').mkdir()
  for number, rows in enumerate((ROWS[:90], ROWS[90:150])):
    WRITE[kind](tmp_path / 'data' / f'train_prefs-0000{number}-of-00002{kind}', rows)
  WRITE[kind](tmp_path / 'data' / f'test_prefs-00000-of-00001{kind}', ROWS[150:])
  (tmp_path / 'dataset_info.json').write_text('{}')
  (tmp_path / 'README.md').write_text('a card')
  assert read(tmp_path, split='train_prefs') == RECORDS[:150]
  assert read(tmp_path, split='test_prefs') == RECORDS[150:]
  for split in ('', 'train'):
    with pytest.raises(UserError, match=r'^config.data.split.* data/test_prefs, data/train_prefs'):
      read(tmp_path, split=split)
  file = next((tmp_path / 'data').glob(f'test*{kind}'))
  assert read(file) == RECORDS[150:]


def test_split_may_be_folder_and_file(tmp_path):
  for part, rows in (('harmless', ROWS[:50]), ('helpful', ROWS[50:])):
    (tmp_path / part).mkdir()
    as_packed_jsonl(tmp_path / part / 'train.jsonl.gz', rows)
    as_packed_jsonl(tmp_path / part / 'test.jsonl.gz', rows[:1])
  assert read(tmp_path, split='train') == RECORDS
  assert read(tmp_path, split='helpful/test') == RECORDS[50:51]


def test_each_of_several_sources_has_its_schema(tmp_path):
  as_jsonl(tmp_path / 'a.jsonl', ROWS[:3])
  as_json(tmp_path / 'b.json', [{'prompt': 'x'}, {'prompt': ''}])
  names = f'{tmp_path}/a.jsonl, {tmp_path}/b.json'
  assert read(names, 'graded,prompts', skip_bad=True) == [*RECORDS[:3], Example('x')]
  with pytest.raises(UserError, match=f"^{tmp_path}/b.json, row 2: field 'prompt' is empty"):
    read(names, 'graded,prompts')
  with pytest.raises(
    UserError, match=r"^config.data.schema='a,b,c' names 3 for 2 sources; give one"
  ):
    read(names, 'a,b,c')
  with pytest.raises(UserError, match=r"^config.data.schema='own' is none of comparisons, graded"):
    read(names, 'own')


@pytest.mark.parametrize(
  ('row', 'schema', 'names'),
  [
    ({'prompt': 'a', 'completion': 'b', 'label': True}, 'comparisons', 'unpaired'),
    ({'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'x': 1}, 'graded', 'comparisons'),
    ({'input': 'a', 'output_1': 'b', 'output_2': 'c', 'label': 1}, 'alpaca_eval', 'llmbar'),
    (
      {'chosen': '\n\nHuman: a\n\nAssistant: b', 'rejected': '\n\nHuman: a\n\nAssistant: c'},
      'graded',
      'hh or hh_transcripts or implicit_prompt',
    ),
  ],
)
def test_a_missing_field_says_which_schema_reads_the_row(tmp_path, row, schema, names):
  as_jsonl(tmp_path / 'other.jsonl', [ROWS[0]])
  as_parquet(tmp_path / 'mine.parquet', [row])
  paths = f'{tmp_path}/other.jsonl,{tmp_path}/mine.parquet'
  with pytest.raises(UserError, match=r'is missing; .*reads it') as refused:
    read(paths, f'graded,{schema}')
  offered = str(refused.value).partition('(config.data.schema=')[2].partition(' reads it)')[0]
  assert sorted(offered.split(' or ')) == names.split(' or ')


def test_files_saved_by_datasets_are_read(tmp_path):
  datasets = pytest.importorskip('datasets')
  train, test = datasets.Dataset.from_list(ROWS[:150]), datasets.Dataset.from_list(ROWS[150:])
  train.save_to_disk(tmp_path / 'one', num_shards=2)
  datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / 'both')
  assert read(tmp_path / 'one') == RECORDS[:150]
  assert read(tmp_path / 'both', split='train') == RECORDS[:150]
  assert read(tmp_path / 'both', split='test') == RECORDS[150:]


def test_hub_dataset_is_downloaded_and_read(tmp_path, monkeypatch):
  downloads = []

  def snapshot_download(name, repo_type, allow_patterns):
    downloads.append((name, repo_type, allow_patterns))
    return str(tmp_path)

  monkeypatch.setattr(sources.huggingface_hub, 'snapshot_download', snapshot_download)
  (tmp_path / 'data').mkdir()
  as_jsonl(tmp_path / 'data' / 'train-00000-of-00001.jsonl', ROWS)
  assert read('SOMEONE/comparisons', split='train') == RECORDS
  ((name, kind, patterns),) = downloads
  assert (name, kind) == ('SOMEONE/comparisons', 'dataset')
  assert '*train*.parquet' in patterns


def test_an_unknown_dataset_is_a_user_error(monkeypatch):
  def snapshot_download(*_, **__):
    raise OSError('no network')

  monkeypatch.setattr(sources.huggingface_hub, 'snapshot_download', snapshot_download)
  with pytest.raises(UserError, match=r"^config.data.path: cannot read 'SOMEONE/none': .*no netw"):
    read('SOMEONE/none')


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """The folder of our own builder, small, prepared in a process without TensorFlow."""
  pytest.importorskip('tensorflow_datasets')
  folder = tmp_path_factory.mktemp('prepared')
  program = (
    'import sys; from nlhf_jax.tasks.summaries import tfds_posts as posts;'
    'posts.SIZES.update(train=40, test=5);'
    f"posts.PreferredPosts(data_dir={str(folder)!r}, file_format='array_record')"
    '.download_and_prepare(); assert "tensorflow" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True, capture_output=True)
  return folder / 'preferred_posts' / '1.0.0'


def test_tensorflow_datasets_return_the_embedded_task(prepared):
  for split, seed, count in (('train', 0, 40), ('test', 1, 5)):
    expected = list(itertools.islice(generator.examples(seed), count))
    assert sorted(read(prepared, 'embedded', split)) == sorted(expected)
  with pytest.raises(UserError, match=r'^config.data.split must be one .*: test, train'):
    read(prepared, 'embedded')
  assert 'tensorflow' not in sys.modules


def test_damaged_array_records_are_a_user_error(prepared, tmp_path):
  for file in prepared.iterdir():
    content = file.read_bytes()
    (tmp_path / file.name).write_bytes(
      content[: len(content) // 2] if '-train' in file.name else content
    )
  with pytest.raises(UserError, match=f'^{tmp_path}'):
    read(tmp_path, 'embedded', 'train')


@pytest.mark.parametrize(
  ('kind', 'module', 'extra'),
  [('.parquet', 'pyarrow', 'parquet'), ('.arrow', 'pyarrow', 'parquet')],
)
def test_the_error_names_a_missing_package(tmp_path, monkeypatch, kind, module, extra):
  path = tmp_path / f'mine{kind}'
  path.write_bytes(b'')
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(UserError, match=rf"needs the package '{module}'; run .*'\.\[{extra}"):
    read(path)


def test_the_digest_depends_only_on_contents(tmp_path):
  (tmp_path / 'a').mkdir()
  as_jsonl(tmp_path / 'a' / 'x.jsonl', ROWS)
  as_jsonl(tmp_path / 'y.jsonl', ROWS)
  as_jsonl(tmp_path / 'z.jsonl', ROWS[1:])
  one, other, third = (
    sources.digest(sources.locate_all(f'{tmp_path}/{name}', ''))
    for name in ('a', 'y.jsonl', 'z.jsonl')
  )
  assert one == other != third


def test_a_folder_without_data_is_refused(tmp_path):
  (tmp_path / 'notes.csv').write_text('a,b')
  with pytest.raises(UserError, match=r'holds no data; give files of \.jsonl, \.json, \.parquet'):
    read(tmp_path)
  with pytest.raises(UserError, match=r'has no suffix that can be read; give \.jsonl, \.json'):
    read(tmp_path / 'notes.csv')
