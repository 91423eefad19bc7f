"""Iterated learning of language models: votes are counted, stored, and continued with exactly."""

import shutil

import jax
import numpy as np
import pytest

from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.experiments.language import run as language
from nlhf_jax.experiments.language import voting_rounds
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.experiments.language.finished_run import load_entry
from nlhf_jax.experiments.specs import Stage
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Prompts, Responses
from nlhf_jax.training import interrupts

POLICY = 'iterated_uncertain'


@pytest.fixture(scope='module')
def make_config(config_named):
  """A function that gives a config with one policy, in two rounds of eight votes."""

  def make_config(policy=POLICY, **changes):
    config = config_named('iterated')
    for name in list(config.policies):
      if name != policy:
        del config.policies[name]
    config.policies[policy].steps = 4
    config.policies[policy].update_from_flattened_dict(changes)
    return config

  return make_config


# --- Without training ---


@pytest.fixture(scope='module')
def experiment(make_config, tmp_path_factory):
  """The experiment of the config, nothing of which is trained; it has 32 prompts."""
  return make_experiment(make_config(), 'iterated', tmp_path_factory.mktemp('untrained'))


@pytest.fixture
def voting(experiment):
  """A function that gives the votes of the policy, in so many rounds."""
  base = experiment.policies[POLICY].voting
  return lambda rounds, per_round: base._replace(rounds=rounds, per_round=per_round)


def test_judges_see_each_vote_as_often_in_every_round(make_config, tmp_path):
  config = make_config(**{'votes.rounds': 4, 'votes.total': 16, 'votes.training.steps': 10})
  policy = make_experiment(config, 'iterated', tmp_path).policies[POLICY]
  assert [training.steps for training in policy.voting.trainings] == [3, 5, 8, 10]


def test_one_shot_learning_has_the_prompts_of_all_rounds(experiment, voting):
  rounds = [voting_rounds.voted_prompts(experiment, voting(4, 5), number) for number in range(4)]
  at_once = voting_rounds.voted_prompts(experiment, voting(1, 20), 0)
  np.testing.assert_array_equal(np.concatenate(rounds), at_once)
  assert len(set(at_once.tolist())) == 20
  beyond = voting_rounds.voted_prompts(experiment, voting(1, 64), 0).tolist()
  assert beyond[:32] == beyond[32:]  # then they begin anew
  assert sorted(beyond[:32]) == list(range(32))


@pytest.mark.parametrize('size', [3, 7, 10])
def test_every_pair_is_asked_for_once(size):
  tokens = np.arange(7)[:, None, None]
  side = Responses(tokens, np.ones(tokens.shape, bool))
  asked = []

  def ask(chunk, key):
    asked.extend(chunk.left.tokens.ravel().tolist())
    return chunk.left.tokens / 10

  pairs = Comparison(Prompts(tokens[:, 0], side.mask[:, 0]), side, side)
  payoffs = voting_rounds.ask_in_chunks(ask, pairs, size, jax.random.key(0), 'votes')
  assert asked == list(range(7))
  np.testing.assert_allclose(payoffs, np.arange(7) / 10)


def test_stored_votes_are_the_comparisons_to_fit(experiment):
  votes = {
    'prompts': [4, 2, 9],
    'left': [[5, 1], [6, 7, 1], [8]],
    'right': [[3, 1], [2], [4, 4, 4]],
    'payoff': [0.5, -0.5, 0.25],
  }
  examples = voting_rounds.make_examples(experiment, votes, np.array([2, 0, 0]))
  assert examples.lengths[:, 1].tolist() == [3, 2, 2]
  width = examples.max_lengths[0]
  batch = examples.read(np.array([0, 2]), (width, 3))
  prompts = experiment.corpus.train.prompts.read(np.array([9, 4]), (width, 0))
  np.testing.assert_array_equal(batch.prompts.tokens, prompts.tokens)
  assert voting_rounds.unpad(batch.left) == [[8], [5, 1]]
  assert voting_rounds.unpad(batch.right) == [[4, 4, 4], [3, 1]]
  assert batch.payoff.ravel().tolist() == [0.25, 0.5]


@pytest.fixture
def stage(tmp_path):
  return Stage('mine', jax.random.key(0), tmp_path, {}, {}, '')


def test_votes_without_a_verdict_count_but_fit_no_judge(experiment, voting, stage):
  payoff, right = [0.5, float('nan'), 0.5, 0.5], [[2], [2], [1], [3]]
  votes = {'prompts': [0, 1, 2, 3], 'left': [[1]] * 4, 'right': right, 'payoff': payoff}
  json_lines.write_sealed(stage.folder / 'votes_0.json', votes)
  counted = voting_rounds.count_votes(stage, voting(1, 4))
  assert counted == {'rounds': 1, 'votes': 4, 'equal': 1, 'without_verdict': 1}
  with pytest.raises(UserError, match='only 2 of 4 votes have a verdict'):
    voting_rounds.fit_judges(experiment, stage, voting(1, 4), 0, {})


def test_lost_votes_are_named(experiment, voting, stage):
  with pytest.raises(UserError, match=r'votes_0.json. are lost; delete the folder'):
    voting_rounds.fit_judges(experiment, stage, voting(2, 4), 1, {})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'votes.total': 15}, 'votes.total=15 must be a multiple of .*votes.rounds=2'),
    ({'votes.total': 6}, 'the first of 2 rounds has 3 votes'),
    ({'votes.rounds': 8, 'votes.total': 80}, 'each round needs an update'),
    ({'votes.rounds': 0}, 'votes.rounds=0 must be at least 1'),
    ({'votes.total': 2_000_000_000}, 'the votes would need at least'),
    ({'votes.candidates': 2_000_000}, 'all pairs of candidates would need at least'),
    ({'votes.enhancer': 'best'}, "enhancer='best' must be one of none, best_of_n, uncertain"),
    ({'votes.candidates': 1}, "'uncertain' chooses among two or more"),
    ({'votes.ensemble': 1}, "'uncertain' needs the spread of two judges"),
    ({'votes.training.steps': 0}, 'votes.training.steps=0 must be at least 1'),
    ({'votes.training.algorithm': 'reward_model'}, 'must be preference_model'),
    ({'async_judge': True}, 'works in one process, and without'),
    ({'judge': 'maxmin(oracle,learned)'}, 'maxmin'),
    ({'judge': 'nobody'}, "judge='nobody' must be one of"),
  ],
)
def test_impossible_votes_are_refused(changes, message, make_config, tmp_path):
  with pytest.raises(UserError, match=message):
    make_experiment(make_config(**changes), 'iterated', tmp_path)


# --- Runs ---


def run(config, folder):
  experiment = make_experiment(config, 'iterated', folder / 'stages')
  return experiment, language.run(experiment, folder / 'run')


@pytest.fixture(scope='module')
def sft(make_config, tmp_path_factory):
  """A folder with the SFT policy and the judge of the tournament alone."""
  folder = tmp_path_factory.mktemp('sft')
  config = make_config()
  del config.policies[POLICY]
  run(config, folder)
  return folder


@pytest.fixture(scope='module')
def whole(make_config, sft, tmp_path_factory):
  """An uncut run, and how often it asked whether to stop."""
  folder, calls = tmp_path_factory.mktemp('whole'), []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(interrupts, 'requested', lambda: bool(calls.append(1)))
    experiment, results = run(make_config(), copy_stages(sft, folder))
  return experiment, results, len(calls)


def copy_stages(folder, to):
  shutil.copytree(folder / 'stages', to / 'stages')
  return to


@pytest.mark.slow
@pytest.mark.parametrize('share', [0.2, 0.35, 0.5, 0.65, 0.8])
def test_run_cut_anywhere_equals_the_uncut_run(share, whole, make_config, sft, tmp_path):
  experiment, results, calls = whole
  left = [round(share * calls)]

  def requested():
    left[0] -= 1
    return left[0] <= 0

  folder = copy_stages(sft, tmp_path)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(interrupts, 'requested', requested)
    with pytest.raises(Interrupted):
      run(make_config(), folder)
  again, found = run(make_config(), folder)
  assert found == results
  for number in range(2):
    name = f'votes_{number}.json'
    paths = [it.stages[POLICY].folder / name for it in (experiment, again)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
  one, other = (load_entry(it, POLICY) for it in (experiment, again))
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_votes_of_all_rounds_are_those_of_the_budget(whole, make_config, sft, tmp_path):
  experiment, results, _ = whole
  stage = experiment.stages[POLICY]
  assert results['votes'][POLICY] == {
    'rounds': 2,
    'votes': 16,
    'equal': results['votes'][POLICY]['equal'],
    'without_verdict': 0,
  }
  votes = [voting_rounds.read_votes(stage, number) for number in range(2)]
  assert [len(rows['payoff']) for rows in votes] == [8, 8]
  assert {abs(payoff) for rows in votes for payoff in rows['payoff']} == {0.5}
  judges = sorted(path.name for path in stage.folder.glob('judge_*'))
  assert judges == ['judge_0_0', 'judge_0_1', 'judge_1_0', 'judge_1_1']
  _, shot = run(make_config('one_shot'), copy_stages(sft, tmp_path))
  assert shot['votes']['one_shot']['rounds'] == 1
  assert shot['votes']['one_shot']['votes'] == 16


@pytest.mark.slow
def test_first_round_is_that_of_every_enhancer(whole, make_config, sft, tmp_path):
  """No judge is there to choose by, so that pairs differ by the stage's own key alone."""
  config = make_config()
  config.policies[POLICY].votes.enhancer = 'none'
  experiment, _ = run(config, copy_stages(sft, tmp_path))
  first, second = (
    [voting_rounds.read_votes(it.stages[POLICY], n) for n in (0, 1)]
    for it in (whole[0], experiment)
  )
  assert first[0] == second[0]
  assert first[1]['prompts'] == second[1]['prompts']
  assert first[1]['right'] != second[1]['right']
