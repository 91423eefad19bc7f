"""A run whose files are damaged reports it, and ends with the same results."""

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


# Files of a finished run, all damaged at once, and whether it is reported: the copy of a learning
# curve that is empty or cut short is written again from the curve.
DAMAGED = {
  'sft-*/stage.json': True,
  'nash_md-*/stage.json': True,
  'tournament-*/samples.json': True,
  'preference_model-*/metrics.jsonl': True,
  'nash_md-*/metrics.copy.jsonl': False,
  'data-*/prompts.ends': True,
}


@pytest.mark.slow
@pytest.mark.parametrize('damage', [flip, truncate, empty])
def test_damaged_files_change_no_result(damage, toy_run, tmp_path, capsys):
  config, folder = toy_run.copy_to(tmp_path)
  before = {file: (folder / 'run' / file).read_bytes() for file in RESULTS}
  found = {pattern: next((folder / 'stages').glob(pattern)) for pattern in DAMAGED}
  for path in found.values():
    damage(path)
  capsys.readouterr()
  start(config, 'nash_md', folder / 'run', folder / 'stages')
  assert {file: (folder / 'run' / file).read_bytes() for file in RESULTS} == before
  printed = capsys.readouterr().out
  for pattern, reported in DAMAGED.items():
    place = found[pattern].parent if pattern.startswith('data') else found[pattern]
    assert not reported or f'{place}' in printed, pattern


@pytest.mark.slow
def test_a_damaged_config_changes_no_result(toy_run, tmp_path, capsys):
  config, folder = toy_run.copy_to(tmp_path)
  before = {file: (folder / 'run' / file).read_bytes() for file in RESULTS}
  truncate(folder / 'run' / 'config.json')
  start(config, 'nash_md', folder / 'run', folder / 'stages')
  assert {file: (folder / 'run' / file).read_bytes() for file in RESULTS} == before
  assert 'config.json is damaged and is written again' in capsys.readouterr().out
  assert (folder / 'run' / 'previous-1' / 'results.json').exists()
