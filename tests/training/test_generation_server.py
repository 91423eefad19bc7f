"""Policies that a generation server samples: its requests, its weights, and what goes wrong."""

import json
import socket
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax import trees
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language import run as language
from nlhf_jax.experiments.language.config import make_experiment
from nlhf_jax.experiments.policy_folder import write_policy
from nlhf_jax.experiments.stages import make_policy_rollouts
from nlhf_jax.models import lora, scoring
from nlhf_jax.sampling.token import UNFILTERED
from nlhf_jax.structs import Prompts
from nlhf_jax.training import served_rollout
from nlhf_jax.training.generation_server import Completion, Sampling, ServerSettings, connect
from tests.experiments import pretrained
from tests.laws import tiny
from tests.training import generation_servers

SAMPLING = Sampling(length=4, stop=2, filters=UNFILTERED._replace(temperature=0.7, top_k=5))
KINDS = {'vllm': generation_servers.vllm, 'sglang': generation_servers.sglang}


def settings(url, kind='vllm', **changes):
  changed = dict(model='policy', key='', folder='weights', retries=0) | changes
  return ServerSettings(kind, url, **changed)


def choice(index, tokens, finish, log_probs=None):
  log_probs = [-0.5] * len(tokens) if log_probs is None else log_probs
  return {
    'index': index,
    'token_ids': tokens,
    'logprobs': {'token_logprobs': log_probs},
    'finish_reason': finish,
  }


def completed(*choices):
  """What the client makes of these choices of a server."""
  with generation_servers.serve(lambda path, body: {'choices': list(choices)}) as url:
    return connect(settings(url)).complete([[5]] * len(choices), SAMPLING)


def test_requests_and_answers_of_vllm():
  seen = []

  def answer(path, body):
    seen.append((path, body))
    return {'choices': [choice(1, [7, 8], 'stop'), choice(0, [7, 2], 'stop', [-0.1, -0.2])]}

  with generation_servers.serve(answer) as url:
    found = connect(settings(url)).complete([[5, 6], [9]], SAMPLING)
  ((path, body),) = seen
  assert (path, body['prompt']) == ('/v1/completions', [[5, 6], [9]])
  assert body['max_tokens'] == 4
  assert body['stop_token_ids'] == [2]
  assert (body['temperature'], body['top_k'], body['top_p']) == (0.7, 5, 1.0)
  # The second answer came first, and had its stop token left out.
  assert found == [Completion([7, 2], [-0.1, -0.2]), Completion([7, 8, 2], [-0.5, -0.5])]


def test_a_response_ends_at_its_first_stop_token_or_at_the_limit():
  assert completed(choice(0, [3, 2, 4, 2], 'length')) == [Completion([3, 2], [-0.5, -0.5])]
  assert completed(choice(0, [3, 4, 5, 6], 'length'))[0].tokens == [3, 4, 5, 6]


@pytest.mark.parametrize(
  ('choices', 'problem'),
  [
    ([choice(0, [3, 4], 'length', [-0.5])], 'do not fit'),
    ([choice(0, ['a'], 'stop')], 'do not fit'),
    ([choice(0, [], 'length')], 'a response of 0 tokens'),
    ([choice(0, [1, 1, 1, 1, 1], 'length')], 'a response of 5 tokens'),
    ([choice(0, [1, 3], 'abort')], "ended by 'abort'"),
    ([{'index': 0, 'text': 'of an older server'}], 'token_ids'),
  ],
)
def test_unusable_completions_are_refused(choices, problem):
  with pytest.raises(UserError, match='sent no usable completions') as error:
    completed(*choices)
  assert problem in str(error.value)
  assert 'vllm serve' in str(error.value)


def test_too_few_completions_are_refused():
  with (
    generation_servers.serve(lambda path, body: {'choices': [choice(0, [2], 'stop')]}) as url,
    pytest.raises(UserError, match='1 completions of 2 prompts'),
  ):
    connect(settings(url)).complete([[1], [1]], SAMPLING)


def test_a_server_that_refuses_or_is_not_there_is_named():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    url = f'http://127.0.0.1:{free.getsockname()[1]}'
  with pytest.raises(UserError, match=f"{url} does not answer .*run the same command.*'weights'"):
    connect(settings(url)).complete([[1]], SAMPLING)
  with generation_servers.serve(lambda path, body: None) as url:
    client = connect(settings(url, 'sglang'))
    with pytest.raises(UserError, match=r'refuses /generate \(status 404: Not Found\).*sglang'):
      client.complete([[1]], SAMPLING)
  with generation_servers.serve(lambda path, body: {'success': False, 'message': 'no room'}) as url:
    weights = served_rollout.Weights(Path('weights'), False, '')
    with pytest.raises(UserError, match='could not load weights: no room'):
      connect(settings(url, 'sglang')).load(weights)


@pytest.mark.parametrize(
  ('url', 'key', 'message'),
  [
    ('http://user:secret@host', '', 'no user, no password'),
    ('localhost:8000', '', "the generation server's url"),
    ('http://localhost', 'NLHF_NO_SUCH_KEY', "the generation server's key"),
  ],
)
def test_a_wrong_address_or_key_is_refused(url, key, message):
  with pytest.raises(UserError, match=message) as error:
    connect(settings(url, key=key))
  assert 'secret' not in str(error.value)


def test_fingerprints_differ_where_a_leaf_does():
  tree = {'a': jax.numpy.arange(6.0).reshape(2, 3), 'b': jax.numpy.ones(4, 'bfloat16')}
  same = served_rollout.fingerprint(tree)
  assert np.array_equal(same, served_rollout.fingerprint(jax.tree.map(lambda leaf: leaf * 1, tree)))
  swapped = tree | {'a': tree['a'][::-1]}  # the same numbers, in other places
  moved = tree | {'b': tree['b'].at[2].set(1.01)}
  flipped = tree | {'a': tree['a'].at[0].multiply(-1)}  # the signs of two numbers, and of 0
  for other in (swapped, moved, flipped):
    assert (np.asarray(served_rollout.fingerprint(other)) != np.asarray(same)).sum() == 1


def test_the_weight_of_a_slot_is_a_temperature(monkeypatch):
  """As in EGPO and tempered SPPO, which sample a mixture of one slot with another weight than 1."""
  monkeypatch.setattr(served_rollout._Publisher, 'publish', lambda *given: None)
  asked = []

  def complete(prompts, sampling):
    asked.append((len(prompts), sampling.filters.temperature))
    return [Completion([2], [-0.5])] * len(prompts)

  client = served_rollout.Client(lambda weights: None, complete)
  server = served_rollout.Server(client, Path(), lambda *given: None, False, 0.1)
  mixtures = [{'policy': 0.5}, {'policy': 1.0}, {'policy': 0.5}]
  rollout = served_rollout.make_served_rollout(server, tiny.decoder(3), mixtures, length=4, stop=2)
  prompts = Prompts(np.ones((3, 2), np.int32), np.ones((3, 2), bool))
  assert len(rollout({}, prompts, jax.random.key(0))) == 3
  assert asked == [(6, 2.0), (3, 1.0)]


# --- A whole model: what is sampled, and with which weights ---


@pytest.fixture(scope='module')
def of_adapters(tmp_path_factory, toy):
  """A config of self-play with adapters on a pretrained toy, and its folder."""
  folder = tmp_path_factory.mktemp('served')
  config = pretrained.config(folder, toy)
  config.policies = {'self_play': config.policies.nash_md}
  row = config.policies.self_play
  row.update(algorithm='self_play', sampler='server', judge='lengths', steps=3)
  del row.arguments['beta']
  config.judges = 'lengths'
  config.generation_server.retries = 0
  return config, folder


def make_rollout(config, folder, url, kind):
  config = config.copy_and_resolve_references()
  config.generation_server.update(url=url, kind=kind, folder=str(folder / kind))
  experiment = make_experiment(config, 'served', folder / 'stages')
  policy = experiment.policies['self_play']
  rollout = make_policy_rollouts(experiment, policy)([{'policy': 1.0}, {'policy': 1.0}])
  prompts = Prompts(*(leaf[:3] for leaf in experiment.corpus.train.prompts.all()))
  return experiment, rollout, prompts


def moved(params, by):
  """Parameters whose adapters are moved."""
  leaves = trees.flatten(params)
  return trees.unflatten(
    {path: leaf + by if lora.is_adapter(path) else leaf for path, leaf in leaves.items()}
  )


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_the_server_samples_from_the_weights_that_it_is_given(of_adapters, kind, capsys):
  config, folder = of_adapters
  model = generation_servers.Model(folder / 'model')
  with generation_servers.serve(partial(KINDS[kind], model)) as url:
    experiment, rollout, prompts = make_rollout(config, folder, url, kind)
    params = {'policy': experiment.model.begin(jax.random.key(0))}
    left, right = rollout(params, prompts, jax.random.key(1))
    assert 'log-probabilities agree within' in capsys.readouterr().out
    assert left.tokens.shape == right.tokens.shape == (3, 1, 8)
    assert left.log_probs is None
    assert left.mask.any(axis=-1).all()
    stop = experiment.corpus.tokenizer.eos_token_id
    ended = ((np.asarray(left.tokens) == stop) & np.asarray(left.mask)).sum(axis=-1)
    assert ((ended == 1) | np.asarray(left.mask).all(axis=-1)).all()
    rollout(params, prompts, jax.random.key(2))
    assert model.loads == 1  # the same weights are not loaded again
    changed = {'policy': moved(params['policy'], 0.3)}
    rollout(changed, prompts, jax.random.key(3))
    assert model.loads == 2
    assert [path.name[-2:] for path in (folder / kind).iterdir()] == ['-2']
    model.frozen = True
    with pytest.raises(UserError, match='still answers with the weights from before'):
      rollout({'policy': moved(params['policy'], -0.3)}, prompts, jax.random.key(4))


@pytest.mark.slow
def test_another_model_is_noticed(of_adapters, tmp_path):
  config, folder = of_adapters
  pretrained.save(tmp_path, 'mistral')
  model = generation_servers.Model(tmp_path)
  model.frozen, model.adapters = True, {}
  model.load()
  with generation_servers.serve(partial(generation_servers.sglang, model)) as url:
    experiment, rollout, prompts = make_rollout(config, folder, url, 'sglang')
    params = {'policy': experiment.model.begin(jax.random.key(0))}
    with pytest.raises(UserError, match='it serves another model'):
      rollout(params, prompts, jax.random.key(1))


@pytest.mark.slow
def test_self_play_on_the_embedded_task_by_a_server(config_named, tmp_path):
  """A whole run with all weights: SFT, two updates of self-play, the tournament."""
  config = config_named('nash_md')
  del config.policies.nash_md
  config.policies.self_play.update(sampler='server', judge='oracle')
  config.policies.self_play.optimizer.warmup = 0  # the first update moves the weights
  config.judges = 'lengths'
  config.generation_server.update(url='http://x', folder=str(tmp_path / 'weights'), retries=0)
  model = generation_servers.Model(tmp_path / 'weights')
  with generation_servers.serve(partial(generation_servers.vllm, model)) as url:
    config.generation_server.url = url
    experiment = make_experiment(config, 'served', tmp_path / 'stages')
    results = language.run(experiment, tmp_path / 'run')
  assert model.loads == 2
  assert results['policies'] == ['sft', 'self_play']
  lines = (experiment.stages['self_play'].folder / 'metrics.jsonl').read_text().splitlines()
  record = json.loads(lines[-1])
  assert np.isfinite(record['loss'])
  assert 'entropy' not in record


@pytest.mark.slow
def test_log_probabilities_of_a_written_policy_are_those_computed_here(of_adapters, tmp_path):
  config, folder = of_adapters
  config = config.copy_and_resolve_references()
  config.generation_server.update(url='http://x', folder='weights')
  experiment = make_experiment(config, 'served', folder / 'stages')
  params = moved(experiment.model.begin(jax.random.key(0)), 0.3)
  (tmp_path / 'adapter').mkdir()
  write_policy(experiment, params, tmp_path / 'adapter', merged=False)
  model = generation_servers.Model(folder / 'model')
  model.load('policy-1', tmp_path / 'adapter')
  prompts = Prompts(*(leaf[:3] for leaf in experiment.corpus.train.prompts.all()))
  rows = served_rollout._token_ids(prompts)
  sampled = model.respond(rows, 8, 1.0, [experiment.corpus.tokenizer.eos_token_id], 'policy-1')
  answers = [Completion(it.tokens, it.log_probs) for it in sampled]
  responses = served_rollout._pad(answers, 3, 8, experiment.corpus.tokenizer.eos_token_id)
  ours = scoring.log_probs(experiment.model.decoder, params, prompts, responses)
  for row, answer in zip(np.asarray(ours)[:, 0], answers, strict=True):
    np.testing.assert_allclose(row[: len(answer.log_probs)], answer.log_probs, atol=2e-4)


@pytest.mark.parametrize(
  ('policy', 'server', 'message'),
  [
    ({'sampler': 'vllm'}, {}, "sampler='vllm' must be one of built_in, server"),
    ({}, {'url': ''}, 'generation_server.url is empty'),
    ({}, {'folder': ''}, 'generation_server.folder is empty'),
    ({}, {'kind': 'tgi'}, "kind='tgi' must be one of vllm, sglang"),
    ({}, {'tolerated_gap': 0.0}, 'tolerated_gap=0.0 must be above 0'),
  ],
)
def test_wrong_settings_are_refused(config_named, tmp_path, policy, server, message):
  config = config_named('nash_md')
  del config.policies.nash_md
  config.policies.self_play.update({'sampler': 'server'} | policy)
  config.generation_server.update({'url': 'http://localhost:1', 'folder': 'weights'} | server)
  with pytest.raises(UserError, match=message):
    make_experiment(config, 'wrong', tmp_path)


def test_mixtures_are_refused_with_the_reason(config_named, tmp_path):
  config = config_named('nash_md')
  config.policies.nash_md.sampler = 'server'
  with pytest.raises(UserError, match='a mixture of policy and reference token by token'):
    make_experiment(config, 'wrong', tmp_path)
