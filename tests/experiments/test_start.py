"""A work directory belongs to one config: results of another one are moved, and nothing is lost."""

import json

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.experiments.start import describe_changes, make_experiment, move_other_results
from nlhf_jax.storage import json_lines

CONFIG = {'experiment': 'language', 'sft': {'steps': 4, 'batch': 2}, 'seed': 0}
OTHER = CONFIG | {'sft': {'steps': 8, 'batch': 2}}
FILES = ('results.json', 'report.html', 'metrics.jsonl', 'gap.png')


@pytest.fixture
def workdir(tmp_path):
  """A work directory with the results of a run, and files that are not its results."""
  json_lines.write_json(tmp_path / 'config.json', CONFIG)
  for name in FILES:
    (tmp_path / name).write_text(f'{name} of the first run')
  (tmp_path / 'tokenizer').mkdir()
  (tmp_path / 'tokenizer' / 'tokenizer.json').write_text('{}')
  (tmp_path / 'stages').mkdir()
  (tmp_path / 'judgements').mkdir()
  (tmp_path / 'mine.txt').write_text('mine')
  return tmp_path


def names(folder):
  return {path.name for path in folder.iterdir()}


def test_the_same_config_moves_nothing(workdir, capsys):
  before = names(workdir)
  move_other_results(workdir, CONFIG)
  assert names(workdir) == before
  assert not capsys.readouterr().out


def test_results_of_another_config_are_moved(workdir, capsys):
  move_other_results(workdir, OTHER)
  assert names(workdir) == {'stages', 'judgements', 'mine.txt', 'previous-1'}
  assert names(workdir / 'previous-1') == {*FILES, 'config.json', 'tokenizer'}
  assert (workdir / 'previous-1' / 'results.json').read_text() == 'results.json of the first run'
  assert capsys.readouterr().out == (
    f'The results of another config (sft.steps=4, now 8) in {workdir} are kept in its folder '
    'previous-1.\n'
  )
  json_lines.write_json(workdir / 'config.json', OTHER)
  move_other_results(workdir, CONFIG)
  assert json_lines.read_json(workdir / 'previous-2' / 'config.json') == OTHER


@pytest.mark.parametrize('moved', [0, 2, 6])
def test_a_killed_move_is_completed(workdir, moved):
  (workdir / '.previous').mkdir()
  for name in [*FILES, 'tokenizer', 'config.json'][:moved]:
    (workdir / name).rename(workdir / '.previous' / name)
  move_other_results(workdir, OTHER)
  assert names(workdir) == {'stages', 'judgements', 'mine.txt', 'previous-1'}
  assert names(workdir / 'previous-1') == {*FILES, 'config.json', 'tokenizer'}


def test_results_of_a_damaged_config_are_moved(workdir, capsys):
  (workdir / 'config.json').write_text('{"experiment": ')
  move_other_results(workdir, CONFIG)
  assert names(workdir / 'previous-1') == {*FILES, 'tokenizer'}
  assert (workdir / 'config.json.damaged').read_text() == '{"experiment": '
  printed = capsys.readouterr().out
  assert 'config.json is damaged and is written again' in printed
  assert 'The results of an unknown config' in printed


@pytest.mark.parametrize('content', ['{"model_type": "llama"}', '[1]', '3'])
def test_a_config_that_is_none_of_a_run_is_left_alone(workdir, content):
  (workdir / 'config.json').write_text(content)
  with pytest.raises(UserError, match=r'config.json. is not the config of a run; give another'):
    move_other_results(workdir, CONFIG)
  assert (workdir / 'config.json').read_text() == content


def test_differences_are_named_up_to_five():
  after = json.loads(json.dumps(CONFIG)) | {f'field {number}': number for number in range(7)}
  assert list(describe_changes(CONFIG, after)) == [
    *(f'field {number}=null, now {number}' for number in range(5)),
    'and 2 more',
  ]


def test_fewer_prompts_than_wanted_are_said(config_named, tmp_path, capsys):
  config = config_named('nash_md')
  config.tournament.prompts = 99_999
  make_experiment(config, 'nash_md', tmp_path)
  assert capsys.readouterr().out == (
    'config.tournament.prompts=99999: only 8 prompts are held out, and the tournament has these.\n'
  )
