"""The public API: what `import nlhf_jax` gives, models as values, and training step by step."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

import nlhf_jax as nlhf
from nlhf_jax import trees
from nlhf_jax.algorithms import catalogue
from nlhf_jax.data import tokenizers
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.experiments.language.run import fine_tune
from nlhf_jax.models import lora
from nlhf_jax.models.decoder import decoder_from_apply
from nlhf_jax.storage import json_lines
from tests.experiments import pretrained

PROMPTS = ['one', 'two'] * 16


def earlier(prompts, left, right):
  """Prefers the response that comes first in the order of strings."""
  return [a < b for a, b in zip(left, right, strict=True)]


@pytest.fixture(scope='module')
def bigrams():
  """A model whose next-token logits depend on the last token alone; uniform."""
  tokenizer = tokenizers.train(['one two'], 300)
  decoder = decoder_from_apply(lambda params, tokens: params['table'][tokens], lambda _, h: h)
  params = {'table': jnp.zeros((len(tokenizer), len(tokenizer)))}
  return nlhf.LanguageModel(decoder, params, tokenizer)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The folder of a small chat model with random weights."""
  folder = tmp_path_factory.mktemp('models') / 'model'
  pretrained.save(folder)
  return folder


def test_import_is_quick_and_loads_no_jax():
  code = (
    'import sys, time; start = time.process_time(); import nlhf_jax; '
    "print(time.process_time() - start); assert not {'jax', 'numpy', 'flax'} & {*sys.modules}"
  )
  ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert float(ended.stdout) < 0.3


@pytest.mark.parametrize('module', [nlhf, nlhf.algorithms, nlhf.games, nlhf.judges])
def test_every_exported_name_exists(module):
  assert {*module.__all__} <= {*dir(module)}
  for name in module.__all__:
    assert getattr(module, name) is not None
  with pytest.raises(AttributeError, match='nosuch'):
    _ = module.nosuch


def test_algorithms_are_those_of_the_catalogue():
  assert nlhf.algorithms.nash_md_pg is catalogue.nash_md_pg
  assert {'sft', 'dpo', 'sppo', 'xpo'} < {*nlhf.algorithms.__all__}


def test_a_policy_learns_what_the_judge_prefers(bigrams):
  algorithm = nlhf.algorithms.nash_md_pg(beta=0.1, tau=0.001)
  judge, optimizer = nlhf.judges.from_function(earlier), optax.adam(0.3, b1=0.0)
  train = nlhf.make_train_step(bigrams, algorithm, judge, optimizer, response_length=4)
  state = train.init(jax.random.key(0))
  for step in range(40):
    state, metrics = train(state, PROMPTS, jax.random.key(step))
  assert set(metrics) >= {'loss', 'gradient_norm', 'payoff', 'response_length'}
  policy, start = (
    nlhf.generate(bigrams, params, PROMPTS, length=4, seed=1)
    for params in (state.slots['policy'], bigrams.params)
  )
  assert np.mean(earlier(PROMPTS, policy, start)) > 0.8
  for params in (bigrams.params, state.slots['reference']):
    assert not params['table'].any()


KTO = nlhf.algorithms.kto(beta=1.0, desirable=1.0, undesirable=1.0)


@pytest.mark.parametrize(
  ('algorithm', 'batch', 'wrong'),
  [
    (nlhf.algorithms.sft(), [('one', 'two')], ['one']),
    (nlhf.algorithms.dpo(beta=1.0), [('one', 'two', 'three')], [('one', 'two')]),
    (KTO, [('one', 'two', True), ('three', 'one', False)], [('one', 'two')]),
    (KTO, [('one', 'two', 'three'), ('three', 'one', 'two')], [('one', 'two')]),
  ],
)
def test_offline_algorithms_take_tuples(bigrams, algorithm, batch, wrong):
  train = nlhf.make_train_step(bigrams, algorithm, None, optax.sgd(1.0), response_length=8)
  state = train.init(jax.random.key(0))
  losses = []
  for step in range(3):
    state, metrics = train(state, batch, jax.random.key(step))
    losses.append(float(metrics['loss']))
  assert losses[0] > losses[1] > losses[2]
  with pytest.raises(UserError, match='this algorithm learns from examples'):
    train(state, wrong, jax.random.key(0))
  with pytest.raises(UserError, match='raise response_length=8'):
    train(state, [tuple(['a long text'] * len(batch[0]))], jax.random.key(0))


def test_sampled_comparisons_need_a_judge(bigrams):
  with pytest.raises(UserError, match='judge=None'):
    nlhf.make_train_step(bigrams, nlhf.algorithms.self_play(tau=0.1), None, optax.sgd(1.0))


def test_greedy_text_is_that_of_transformers(folder):
  model = nlhf.from_pretrained(folder)
  (ours,) = nlhf.generate(model, model.params, ['tell red'], length=6, temperature=0.0)
  ids = torch.tensor(tokenizers.prompt_ids(model.tokenizer, ['tell red']))
  settings = dict(max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).generate(ids, **settings)
  row = theirs[:, ids.shape[1] :].numpy()
  assert [ours] == tokenizers.response_texts(model.tokenizer, row, np.ones_like(row, bool))


def test_new_adapters_depend_on_key_and_add_nothing(folder):
  model = nlhf.from_pretrained(str(folder), lora_rank=2)
  assert not any(map(lora.is_adapter, trees.flatten(model.params)))
  algorithm, judge = nlhf.algorithms.self_play(tau=0.1), nlhf.judges.from_function(earlier)
  train = nlhf.make_train_step(model, algorithm, judge, optax.sgd(1.0))
  first, same, other = (
    trees.flatten(train.init(jax.random.key(seed)).slots['policy']) for seed in (0, 0, 1)
  )
  assert all(map(lora.is_adapter, first))
  for path, leaf in first.items():
    np.testing.assert_array_equal(leaf, same[path])
    assert bool(leaf.any()) == path.endswith('lora_a') == bool((leaf != other[path]).any())
  trained = model._replace(params=model.add_adapters(jax.random.key(0)))
  assert trained.add_adapters(jax.random.key(1)) is trained.params


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'name': 'no/such folder'}, "name='no/such folder' is no folder"),
    ({'dtype': 'float16'}, "dtype='float16' must be one of float32, bfloat16"),
    ({'remat': 'all'}, "remat='all' must be one of nothing, layers, dots"),
    ({'lora_rank': -1}, 'lora_rank=-1 must be at least 0'),
    ({'lora_alpha': 0.0}, r'lora_alpha=0\.0 above 0'),
  ],
)
def test_a_wrong_argument_of_from_pretrained_is_named(folder, arguments, message):
  with pytest.raises(UserError, match=message):
    nlhf.from_pretrained(**{'name': folder} | arguments)


def test_a_prompt_needs_room_for_its_response(folder):
  model = nlhf.from_pretrained(folder)
  judge = nlhf.judges.from_function(earlier)
  train = nlhf.make_train_step(model, nlhf.algorithms.self_play(tau=0.1), judge, optax.sgd(1.0))
  with pytest.raises(UserError, match='response_length=128 are more than the 64 positions'):
    train(train.init(jax.random.key(0)), ['tell red'], jax.random.key(0))


def test_a_policy_of_a_run_is_loaded(tmp_path, toy):
  config = pretrained.config(tmp_path, toy)
  config.sft.steps = 0
  run = tmp_path / 'runs' / 'nash_md'
  fine_tune(make_experiment(config, 'nash_md', tmp_path / 'runs' / 'stages'))
  json_lines.write_json(run / 'config.json', config.to_dict())
  loaded, given = nlhf.load_run(run, 'sft'), nlhf.from_pretrained(tmp_path / 'model')
  ours, theirs = (
    nlhf.generate(model, model.params, ['tell red', 'say blue'], length=8, temperature=0.0)
    for model in (loaded, given)
  )
  assert ours == theirs
  assert loaded.lora.rank == 2
  with pytest.raises(UserError, match=r"'nash_md'.* is not (done|trained)"):
    nlhf.load_run(run, 'nash_md')
  with pytest.raises(UserError, match='must be one of sft, nash_md'):
    nlhf.load_run(run, 'nobody')


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (None, 'is not the folder of a run: it has no config.json'),
    ({'experiment': 'tabular'}, 'is a run of kind tabular, which has no policies'),
    ({'experiment': 'language'}, 'damaged or from another version'),
    ({}, 'damaged or from another version'),
  ],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, settings, message):
  if settings is not None:
    (tmp_path / 'config.json').write_text(json.dumps(settings))
  with pytest.raises(UserError, match=message):
    nlhf.load_run(tmp_path, 'sft')


def test_a_game_is_made_of_win_probabilities():
  preferences = [[0.5, 0.7, 0.3], [0.3, 0.5, 0.7], [0.7, 0.3, 0.5]]
  game = nlhf.games.make_game(preferences, tau=0.1)
  nash = nlhf.games.equilibrium(game)
  np.testing.assert_allclose(nash.policy, 1 / 3, atol=1e-6)
  assert nlhf.games.exploitability(game, nash.policy) == pytest.approx(0, abs=1e-6)
  free = nlhf.games.make_game(preferences)
  assert nlhf.games.exploitability(free, [1, 0, 0]) == pytest.approx(0.2)
  with pytest.raises(UserError, match=r'no probability in \[0, 1\]'):
    nlhf.games.make_game([[0.0, 0.2], [-0.2, 0.0]])
