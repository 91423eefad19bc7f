"""The best of n responses of SFT as an entry of a run's tournament."""

import json

import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.experiments.start import start
from nlhf_jax.games.best_of_n import kl_bound
from nlhf_jax.storage import json_lines


@pytest.mark.slow
def test_best_of_three_enters_the_tournament(toy_run, tmp_path, capsys):
  config, folder = toy_run.copy_to(tmp_path)
  config.tournament.update(best_of=3, best_of_judge='oracle')
  start(config, 'nash_md', folder / 'other', folder / 'stages')
  results = json.loads((folder / 'other' / 'results.json').read_text())
  assert results['policies'][-1] == 'best_of_3'
  best = results['best_of']['best_of_3']
  assert (best['n'], best['judge'], best['rule']) == (3, 'oracle', 'win_rate')
  assert best['kl'] == results['kl_to_reference']['best_of_3'] < kl_bound(3) == best['kl_bound']
  lines = json_lines.read(folder / 'other' / 'samples.jsonl')
  assert all('best_of_3' in line['responses'] for line in lines)
  assert results['policies'] == list(results['task']['counter'])
  plain = json.loads((folder / 'run' / 'results.json').read_text())
  for name in plain['policies']:  # the other entries respond as they did without it
    assert results['length'][name] == plain['length'][name]
  printed = capsys.readouterr().out
  assert "'best_of_3', selected by the oracle judge" in printed
  assert 'Its win rate under the oracle judge includes the errors' in printed
  assert len(list((folder / 'stages').glob('tournament-*'))) == 2


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'best_of': 1}, 'config.tournament.best_of=1 needs two responses or more'),
    ({'best_of': -1}, 'config.tournament.best_of=-1'),
    ({'best_of': 4, 'filters.top_k': 1}, 'that differ'),
    ({'best_of': 4, 'best_of_judge': 'nobody'}, "best_of_judge='nobody' must be one of"),
  ],
)
def test_impossible_entries_are_refused(changes, message, toy_run, tmp_path):
  config, _ = toy_run.copy_to(tmp_path)
  config.tournament.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    make_experiment(config, 'nash_md', tmp_path)


def test_names_of_policies_and_of_the_entry_differ(toy_run, tmp_path):
  config, _ = toy_run.copy_to(tmp_path)
  config.policies.best_of_2 = config.policies.self_play
  config.tournament.best_of = 2
  with pytest.raises(UserError, match="a policy is named 'best_of_2'"):
    make_experiment(config, 'nash_md', tmp_path)
