"""Malformed inputs give an error or are skipped and counted; no part of them is learned."""

import json
import resource

import pytest

from nlhf_jax.data import dataset, examples, schemas
from nlhf_jax.errors import UserError
from tests.data.malformed import GOOD, inputs
from tests.data.malformed_layouts import layout_inputs

INPUTS = [*inputs(), *layout_inputs()]
RECORDS = {schema: [schemas.SCHEMAS[schema](row) for row in rows] for schema, rows in GOOD.items()}


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
  """Blocks downloads from the hub."""

  def snapshot_download(*_, **__):
    raise OSError('no network')

  monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)


def test_there_are_four_hundred_different_inputs():
  assert len({name for name, *_ in INPUTS}) == len(INPUTS) > 400


def outcome(path, schema, skip_bad):
  """The examples that are read, and the message of the error that ended it, if any."""
  read = []
  try:
    for record in examples.read_examples(path, schema, '', skip_bad):
      read.append(record)
  except UserError as error:
    return read, str(error)
  return read, None


@pytest.mark.parametrize(
  ('schema', 'write'),
  [
    pytest.param(*rest, id=name, marks=[] if number % 4 == 0 else pytest.mark.slow)
    for number, (name, *rest) in enumerate(INPUTS)
  ],
)
def test_malformed_rows_are_refused_or_skipped(schema, write, tmp_path, capsys):
  path = str(write(tmp_path))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  read, refused = outcome(path, schema, skip_bad=False)
  assert set(read) <= set(RECORDS[schema])
  assert refused or not read  # some files have nothing in them
  skipping, ended = outcome(path, schema, skip_bad=True)
  printed = capsys.readouterr().out
  assert set(skipping) <= set(RECORDS[schema])
  for sentence in filter(None, (refused, ended)):
    assert len(sentence.splitlines()) == 1
    assert len(sentence) < 1000
  if refused and not ended:
    assert ': skipped ' in printed
    assert skipping in ([], RECORDS[schema][:3])
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert used < 300 * 2**10  # KiB


@pytest.mark.parametrize(
  'name', ['null as prompt', 'latin-1', 'bomb of zeros', 'array of other things', 'a pipe']
)
def test_a_corpus_has_only_the_good_rows(name, tmp_path):
  (write,) = (write for known, _, write in INPUTS if known == name)
  (tmp_path / 'data').mkdir()

  def make(skip_bad):
    data = dataset.FileData(
      path=str(write(tmp_path / 'data')),
      schema='comparisons',
      split='',
      part='1/1',
      skip_bad=skip_bad,
      held_out=0.4,
      prompt_length=32,
      response_length=32,
      vocabulary=300,
    )
    return dataset.make_file_corpus(data, seed=0, pretrained='', folder=tmp_path / 'kept')

  with pytest.raises(UserError):
    make(skip_bad=False)
  assert not list(tmp_path.glob('kept/data-*'))
  if name in ('bomb of zeros', 'a pipe'):
    (tmp_path / 'data').rename(tmp_path / 'before')
    (tmp_path / 'data').mkdir()
    with pytest.raises(UserError):
      make(skip_bad=True)
    assert not list(tmp_path.glob('kept/data-*'))
  else:
    account = make(skip_bad=True).account
    assert account['train']['comparisons'] + account['held_out']['comparisons'] == 3
    assert account['rows'] - 3 == sum(account['dropped'].values()) > 0
    json.dumps(account)
