"""A run whose files are damaged says so, and ends with the same results."""

import pytest

from nlhf_jax.experiments.start import start

RESULTS = ('results.json', 'samples.jsonl', 'metrics.jsonl')


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
  path.write_bytes(b'')


@pytest.mark.slow
@pytest.mark.parametrize('damage', [flip, truncate, empty])
def test_damaged_files_change_no_result(damage, toy_run, tmp_path, capsys):
  for pattern in (
    'sft-*/stage.json',
    'nash_md-*/stage.json',
    'tournament-*/stage.json',
    'tournament-*/samples.json',
    'preference_model-*/metrics.jsonl',
    'nash_md-*/metrics.copy.jsonl',
    'data-*/prompts.ends',
    'data-*/responses.tokens',
    'data-*/digests.json',
    'data-*/tokenizer.json',
  ):
    name = pattern.replace('*', '').replace('/', '_')
    config, folder = toy_run.copy_to(tmp_path / name)
    before = {file: (folder / 'run' / file).read_bytes() for file in RESULTS}
    (damaged,) = (folder / 'stages').glob(pattern)
    damage(damaged)
    capsys.readouterr()
    start(config, 'nash_md', folder / 'run', folder / 'stages')
    assert {file: (folder / 'run' / file).read_bytes() for file in RESULTS} == before, pattern
    printed = capsys.readouterr().out
    said = 'damaged' in printed or 'lost' in printed
    # Nothing is lost with the copy of a curve, whose incomplete last line is dropped.
    assert said or 'copy' in pattern, pattern


@pytest.mark.slow
def test_a_damaged_config_changes_no_result(toy_run, tmp_path, capsys):
  config, folder = toy_run.copy_to(tmp_path)
  before = {file: (folder / 'run' / file).read_bytes() for file in RESULTS}
  truncate(folder / 'run' / 'config.json')
  start(config, 'nash_md', folder / 'run', folder / 'stages')
  assert {file: (folder / 'run' / file).read_bytes() for file in RESULTS} == before
  assert 'config.json is damaged and is written again' in capsys.readouterr().out
  assert (folder / 'run' / 'previous-1' / 'results.json').exists()
