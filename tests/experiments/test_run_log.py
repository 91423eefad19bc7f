"""The table that a log ends with."""

from nlhf_jax.experiments import run_log
from nlhf_jax.experiments.stage_config import make_stage
from nlhf_jax.storage import json_lines


def test_seconds_of_stages_of_one_name_are_added(tmp_path, monkeypatch, capsys):
  facts = {'seconds': 20.0, 'compile_seconds': 3.0, 'compiled_programs': 2}
  stages = [make_stage('exploiter', {'judge': judge}, 0, tmp_path) for judge in ('gpm', 'oracle')]
  for stage in stages:
    stage.folder.mkdir()
    json_lines.write_sealed(stage.folder / 'stage.json', facts)
  monkeypatch.setattr(run_log, 'find_stages', lambda experiment: [*stages, stages[0]])
  with run_log.timed_run(None):
    pass
  (row,) = (line for line in capsys.readouterr().out.splitlines() if 'exploiter' in line)
  assert row.split() == ['exploiter', '40', '6', '4']
