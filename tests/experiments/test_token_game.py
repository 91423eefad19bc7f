"""The token game: enumeration agrees with sampling, and runs resume."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import command, main
from nlhf_jax.algorithms import catalogue
from nlhf_jax.data.batches import take
from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.experiments.token_game.active_learning import count_judged_pairs, count_votes
from nlhf_jax.experiments.token_game.config import make_experiment
from nlhf_jax.experiments.token_game.run import (
  course_of,
  first_solved,
  make_list_log_probs,
  make_reference,
  make_rollouts,
  make_solved_game,
  measure_policy,
  run,
  train_learner,
)
from nlhf_jax.models import scoring
from nlhf_jax.sampling.rollout import make_rollout
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison
from nlhf_jax.tasks.token_game import responses
from nlhf_jax.training import interrupts
from nlhf_jax.training.rollout_step import make_sample
from tests import described_runs

CONFIG = 'configs/token_game.py'


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  root = Path(__file__).parents[2]
  monkeypatch.chdir(root)
  monkeypatch.syspath_prepend(str(root))


@pytest.fixture
def toy():
  """A small config, whose run takes seconds."""
  config = command.load_config(CONFIG)
  config.model.update(width=16, layers=1, heads=2, key_heads=1, head_size=8, hidden=16)
  for row in config.methods.values():
    row.training.update(steps=2, batch=10, evaluate_every=2)
  for row in config.votes.learners.values():
    row.update(steps=4, batch=10, evaluate_every=2)
  return config


@pytest.fixture
def experiment(toy, tmp_path):
  return make_experiment(toy, 'token_game', tmp_path / 'stages')


@pytest.fixture
def sampled(experiment):
  """Two sides of responses to prompts in some order, with the places of the prompts."""
  game = experiment.game
  rollout = make_rollout(
    experiment.decoder, [{'policy': 1.0}] * 2, length=3, stop=game.stop, count=40
  )
  asked = np.array([3, 0, 4, 2, 1, 1])
  prompts = jax.tree.map(jnp.asarray, take(game.prompts, asked))
  sides = rollout({'policy': make_reference(experiment)}, prompts, jax.random.key(1))
  return asked, Comparison(prompts, *sides)


def test_prompts_are_distinct_and_of_several_lengths(experiment):
  game = experiment.game
  assert responses.prompt_texts(game) == ['∅', 'a', 'b', 'c', 'aa']
  assert game.prompts.mask.sum(axis=1).tolist() == [1, 2, 2, 2, 3]
  assert game.prompts.mask[:, -1].all()


def test_every_response_is_listed_once(experiment):
  game = experiment.game
  texts = responses.response_texts(game)
  assert len(texts) == len(set(texts)) == game.payoff.shape[-1] == 1 + 3 + 9 + 27
  lengths = [len(text.replace('∅', '')) for text in texts]
  assert game.responses.mask[0].sum(axis=1).tolist() == [min(n + 1, 3) for n in lengths]


def test_probabilities_of_the_listed_responses_sum_to_one(experiment):
  prompts, responses = jax.tree.map(jnp.asarray, experiment.game[:2])
  params = make_reference(experiment)
  log_probs = jax.jit(partial(scoring.log_probs, experiment.decoder))
  log_pi = log_probs(params, prompts, responses).sum(axis=-1)
  np.testing.assert_allclose(np.exp(log_pi).sum(axis=1), 1, atol=1e-5)
  np.testing.assert_allclose(make_list_log_probs(experiment)(params), log_pi, atol=1e-4)


def places(game, responses):
  """Indices of sampled responses in the list, computed independently of the judge."""
  listed = {tuple(row): place for place, row in enumerate(game.responses.tokens[0].tolist())}
  return np.array([[listed[tuple(row)] for row in rows] for rows in responses.tokens.tolist()])


def test_listed_probabilities_are_those_of_sampled_responses(experiment, sampled):
  asked, comparison = sampled
  listed = make_list_log_probs(experiment)(make_reference(experiment))
  at = places(experiment.game, comparison.left)
  assert len(np.unique(at)) > 10
  np.testing.assert_allclose(
    comparison.left.log_probs.sum(axis=-1), listed[asked[:, None], at], atol=1e-4
  )
  masks = experiment.game.responses.mask[0][at]
  np.testing.assert_array_equal(comparison.left.mask, masks)


def test_judge_returns_the_payoff_matrix(experiment, sampled):
  asked, comparison = sampled
  game = experiment.game
  left, right = places(game, comparison.left), places(game, comparison.right)
  expected = game.payoff[asked[:, None, None], left[:, :, None], right[:, None, :]]
  printed = responses.make_judge(game)(comparison)
  np.testing.assert_allclose(printed, expected, atol=1e-6)
  assert abs(expected).max() > 0.2


def test_styles_form_a_cycle_on_every_prompt(experiment):
  game = experiment.game
  first = game.responses.tokens[0, :, 0]
  styles = [first == symbol for symbol in range(3)]
  for payoff in game.payoff:
    np.testing.assert_allclose(payoff, -payoff.T, atol=1e-12)
    wins = [payoff[np.ix_(styles[s], styles[(s + 1) % 3])].mean() for s in range(3)]
    assert min(wins) > 0.1 or max(wins) < -0.1


def test_equilibrium_has_no_gap_unlike_the_reference(experiment):
  log_reference = make_list_log_probs(experiment)(make_reference(experiment))
  measured = make_solved_game(experiment, log_reference)
  nash = measure_policy(measured, np.asarray(measured.nash))
  assert nash['worst_gap'] < 1e-15
  assert nash['kl'] == pytest.approx(0, abs=1e-12)
  start = measure_policy(measured, log_reference)
  assert start['gap'] > 0.05
  assert start['kl_to_reference'] == pytest.approx(0, abs=1e-12)
  assert start['win_rate_against_reference'] == pytest.approx(0.5)


@pytest.mark.slow
def test_running_again_changes_nothing(toy, tmp_path, capsys):
  toy.game.response_length = 2
  for label in list(toy.methods)[1:-1]:
    del toy.methods[label]
  del toy.votes.learners.online_ipo

  def once():
    return run(make_experiment(toy, 'token_game', tmp_path / 'stages'), tmp_path)

  results = once()
  assert described_runs.undescribed(tmp_path, 'token_game') == set()
  for row in results['methods'].values():
    assert row['at'] == [0, 2]
    assert row['gap'][0] == results['reference']['gap'] != row['gap'][1] > 0
    assert row['tabular']['gap'][0] == pytest.approx(row['gap'][0])
  assert results['methods']['best_response']['tabular']['gap'][-1] == pytest.approx(
    results['reply']['gap']
  )
  assert json.loads((tmp_path / 'results.json').read_text())['tau'] == toy.tau
  assert (tmp_path / 'exploitability.png').read_bytes().startswith(b'\x89PNG')
  page = (tmp_path / 'report.html').read_text()
  assert page.count('class="plot"') == 5  # the matrix is drawn by the page
  assert page.count('<figure id=') == 6
  assert results['methods']['nash_md_pg']['judged'] == [0, 2 * 10]
  for label, row in results['learners'].items():
    assert row['judged'] == [0, 5 * 10, 2 * 5 * 10]
    assert row['gap'][0] == results['reference']['gap'] != row['gap'][1] != row['gap'][2], label
  assert 'best_response' in capsys.readouterr().out
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  once()
  after = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  assert after == before


@pytest.mark.slow
def test_resumed_learner_reuses_its_votes(toy, tmp_path, monkeypatch):
  """A run cut in its second round ends as the uncut one; votes are on the selected pairs."""
  toy.game.response_length = 2

  def learned(folder):
    experiment = make_experiment(toy, 'token_game', folder)
    params, listed = make_reference(experiment), make_list_log_probs(experiment)
    train_learner(experiment, 'oelhf', params, listed, make_solved_game(experiment, listed(params)))
    return experiment.learners['oelhf'].stage.folder

  whole = learned(tmp_path / 'whole')
  early = iter([False, False])
  with monkeypatch.context() as patch:
    patch.setattr(interrupts, 'requested', lambda: next(early, True))
    with pytest.raises(Interrupted, match='step 3 of 4'):
      learned(tmp_path / 'cut')
  cut = learned(tmp_path / 'cut')

  def gaps(at):
    rows = json_lines.read(at / 'metrics.jsonl')
    return [row['gap'] for row in rows if row['step'] and 'gap' in row]

  assert gaps(whole) == gaps(cut)
  assert len(gaps(whole)) == 2
  first, second = (
    np.array(json_lines.read_json(whole / f'votes_{n}.json')['wins']) for n in (0, 1)
  )
  np.testing.assert_array_equal(first, json_lines.read_json(cut / 'votes_0.json')['wins'])
  np.testing.assert_array_equal(second, json_lines.read_json(cut / 'votes_1.json')['wins'])
  assert (np.trace(first, axis1=1, axis2=2) == 0).all()
  assert 30 <= first.sum() <= 50  # without votes between equal responses
  assert (second >= first).all()
  assert 60 <= second.sum() <= 100


@pytest.fixture
def iterated(toy):
  """The learners of `configs/iterated.py` at toy size, two rounds each."""
  config = command.load_config('configs/iterated.py:token_game')
  config.model.update(toy.model)
  config.game.response_length = 2
  for row in (config.methods.online_ipo.training, *config.votes.learners.values()):
    row.update(steps=4, batch=10, evaluate_every=2)
  return config


def test_one_shot_learning_has_as_many_votes(iterated, tmp_path):
  iterated.votes.learners.one_shot.steps = iterated.votes.learners.iterated_none.steps = 5
  learners = make_experiment(iterated, 'iterated', tmp_path).learners
  shot, rounds = learners['one_shot'], learners['iterated_none']
  assert (shot.round_length, rounds.round_length) == (5, 2)
  assert count_votes(shot) == 3 * count_votes(rounds) == 3 * 5 * 10  # the third round is shorter


@pytest.mark.parametrize(
  ('row', 'pairs'),
  [
    (catalogue.online_ipo(0.1), 1),
    (catalogue.egpo(0.1, 2.0), 1),
    (catalogue.oelhf(0.1, 4), 1),
    (catalogue.nash_md_group(0.1, 0.1, 3, 2), 6),
  ],
)
def test_every_vote_on_the_selected_pairs_is_counted(row, pairs, iterated, tmp_path):
  learner = make_experiment(iterated, 'iterated', tmp_path).learners['iterated_none']
  learner = learner._replace(training=learner.training._replace(algorithm=row))
  assert count_votes(learner) == 5 * 10 * pairs
  assert count_votes(learner._replace(enhancer='uncertain')) == 5 * 10


def test_single_responses_have_no_votes(iterated, tmp_path):
  learner = make_experiment(iterated, 'iterated', tmp_path).learners['iterated_none']
  row = catalogue.sppo_pair(1.0, 3, 2)
  learner = learner._replace(training=learner.training._replace(algorithm=row))
  with pytest.raises(UserError, match='there are no pairs to vote on'):
    count_votes(learner)


def test_learners_without_an_enhancer_keep_their_stages(toy, tmp_path):
  learner = make_experiment(toy, 'token_game', tmp_path).learners['online_ipo']
  assert learner.stage.settings.keys() == {
    *('seed', 'tau', 'game', 'model', 'reference', 'batches', 'ridge', 'training', 'round')
  }
  assert 'enhancer' not in learner.stage.settings['training']
  for name in ('enhancer', 'candidates', 'one_shot'):
    del toy.votes.learners.online_ipo[name]  # a training alone will do
  assert make_experiment(toy, 'token_game', tmp_path).learners['online_ipo'].stage.folder == (
    learner.stage.folder
  )
  toy.votes.learners.online_ipo.update(enhancer='uncertain', candidates=2)
  other = make_experiment(toy, 'token_game', tmp_path).learners['online_ipo']
  assert other.stage.folder != learner.stage.folder


def votes_of(learner):
  return [
    np.array(json_lines.read_json(learner.stage.folder / f'votes_{number}.json')['wins'])
    for number in range(learner.training.steps // learner.round_length)
  ]


@pytest.mark.slow
def test_rounds_of_votes_with_and_without_enhancers(iterated, tmp_path):
  """Without an enhancer, votes are on the pairs that the algorithm selects."""
  experiment = make_experiment(iterated, 'iterated', tmp_path)
  params, listed = make_reference(experiment), make_list_log_probs(experiment)
  measured, game = make_solved_game(experiment, listed(params)), experiment.game
  for label in experiment.learners:
    train_learner(experiment, label, params, listed, measured)
  learners = experiment.learners

  plain = learners['iterated_none']
  sample = make_sample(plain.training.algorithm, make_rollouts(experiment))
  batch, expected = take(game.prompts, np.tile(np.arange(5), 2)), np.zeros_like(game.payoff)
  for number in range(5):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(plain.stage.key, 0), 4), number)
    pair = sample({'policy': params, 'reference': params}, batch, key)
    truth = responses.make_judge(game)(pair)[:, 0, 0]
    left_wins = jax.random.uniform(jax.random.fold_in(key, 3), (10, 1, 1))[:, 0, 0] < truth + 0.5
    rows = responses.make_find_rows(game)(pair)
    for prompt, left, right, won in zip(*map(np.ravel, rows), left_wins, strict=True):
      expected[(prompt, left, right) if won else (prompt, right, left)] += left != right
  np.testing.assert_array_equal(votes_of(plain)[0], expected)

  for label, learner in learners.items():
    wins = votes_of(learner)
    courses = course_of(learner, 0.3)['judged']
    assert courses == ([0, 100, 100] if label == 'one_shot' else [0, 50, 100])
    assert wins[-1].sum() <= 100
  uncertain, others = votes_of(learners['iterated_uncertain'])[-1], votes_of(plain)[-1]
  compared = [np.triu(wins + wins.swapaxes(1, 2) > 0).sum() for wins in (uncertain, others)]
  assert uncertain.sum() > others.sum()  # it avoids votes between equal responses
  assert compared[0] > compared[1]  # and looks at more pairs


@pytest.mark.parametrize(
  ('row', 'expected'),
  [(catalogue.online_ipo(0.1), 1), (catalogue.egpo(0.1, 2.0), 2), (catalogue.oelhf(0.1, 4), 15)],
)
def test_judged_pairs_are_counted_per_example(row, expected):
  assert count_judged_pairs(row) == expected


@pytest.mark.parametrize(
  ('gaps', 'expected'),
  [([0.3, 0.005, 0.02, 0.004, 0.003], 30), ([0.3, 0.005, 0.02, 0.004, 0.02], None), ([0.001], 0)],
)
def test_first_solved_requires_all_later_steps(gaps, expected):
  assert first_solved(list(range(0, 10 * len(gaps), 10)), gaps, 0.01) == expected


def test_one_tau_is_shared_by_all_methods(toy, tmp_path):
  command.apply_override('--config.tau=0.1', toy, CONFIG)
  assert {row.training.arguments.tau for row in toy.methods.values()} == {0.1}
  make_experiment(toy, 'token_game', tmp_path)


@pytest.mark.parametrize(
  ('override', 'expected'),
  [
    ('tau=0', 'config.tau=0.0 must be above 0'),
    ('target=0', 'config.target=0.0 must be above 0'),
    ('game.taste=-1', 'config.game.taste=-1.0 must be at least 0'),
    ('game.symbols=1', 'config.game.symbols=1 must be between 2 and 26'),
    ('game.response_length=9', 'but at most 1000 can be listed'),
    ('game.prompts=7', 'config.game.prompts=7: each batch has all of them'),
    ('model.head_size=7', 'config.model.head_size=7 must be even'),
    ('methods.inpo.training.algorithm=sft', "'sft' takes []"),
    ('votes.batches=0', 'config.votes.batches=0 must be at least 1'),
    ('votes.learners.oelhf.algorithm=dpo', "'dpo' takes ['beta']"),
    ('votes.learners.oelhf.enhancer=best', "enhancer='best' must be one of none, best_of_n, uncer"),
    ('votes.learners.oelhf.candidates=0', 'config.votes.learners.oelhf.candidates=0 must be at le'),
    ('votes.learners.oelhf.candidates=1000000', 'all pairs of candidates would need at least'),
    ('methods.inpo.tabular.solver=impo', "config.methods.inpo.tabular.solver: there is no 'impo'"),
    ('methods.egpo.tabular.arguments.eta=30', 'config.methods.egpo.tabular: a step of 30'),
  ],
)
def test_invalid_settings_give_one_sentence(capsys, tmp_path, override, expected):
  arguments = ['main', f'--config={CONFIG}', f'--workdir={tmp_path}', f'--config.{override}']
  assert main.main(arguments) == 2
  printed = capsys.readouterr().err
  assert expected in printed
  assert printed.count('\n') == 1
  assert not (tmp_path / 'results.json').exists()
