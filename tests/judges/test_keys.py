"""No key reaches a file or the terminal, whatever fails; checked on whole runs of the command."""

import json

import pytest

from nlhf_jax import compilation, main
from nlhf_jax.errors import UserError
from nlhf_jax.judges.keys import check_secrets, read_key, redact
from tests.judges.faults import Reply, completion, serve

pytest.importorskip('openai', reason='the remote judge needs the extra remote')

KEY = 'sk-0a1B2c3D4e5F6g7H8i9J'
HINT = '0a1B2c3D4e5F6g7H8i9J'  # what no prefix or escape changes
PROMPTS = ['Question one?', 'Question two?', 'Question three?']

token = {'token': KEY, 'logprob': -0.1, 'top_logprobs': []}
redirect = Reply(b'', 307, {'Location': f'http://other.example/{KEY}?key={KEY}'})
# What the server answers -> what the command says.
SERVERS = {
  'wrong key': (Reply({'error': {'message': f'{KEY} is wrong'}}, 401), 'HTTP 401 - ... is wrong'),
  'no credit': (Reply({'error': f'{KEY}: pay'}, 402), 'HTTP 402 - ...: pay'),
  'other error': (Reply({'detail': [{'msg': f'not {KEY}'}]}, 422), 'HTTP 422 - not ...'),
  'page': (Reply(f'<html><p>{KEY} no</html>'.encode(), 400), 'HTTP 400 - ... no'),
  'text': (Reply(f'Bearer {KEY}'.encode(), 418), 'HTTP 418 - Bearer ...'),
  'redirect': (redirect, 'redirects (307) to http://other.example/...?key=...;'),
  'malformed': (Reply(f'{{"choices": "{KEY}'.encode()), 'no answer in'),
  'error as answer': (Reply({'error': {'message': KEY}}), "no answer but '...'"),
  'unreadable': (Reply(completion(f'You sent {KEY}.')), "the answer 'You sent ....'"),
  'tokens': (Reply(completion('Hm', [token])), "the answer 'Hm'"),
  'verdict': (Reply(completion(f'{KEY}\n\nSummary 1 is better.', [token])), 'Report: '),
}
# A flag -> what the command says.
FLAGS = {
  f'--config.remote.key={KEY}': 'must be the name of an environment variable',
  '--config.remote.key=gsk_0a1B2c3D4e5F6g7H8i9J': 'must be the name of an environment variable',
  f'--config.remote.url=https://me:{KEY}@x/v1': 'no user, no password and no query',
  f'--config.remote.url=https://x/v1?key={KEY}': 'no user, no password and no query',
  f'--config.remote.url={KEY}': "the remote judge's url must be like",
  f'--config.remote.request={{"api_key": "{KEY}"}}': 'config.remote.request has a field for a key',
}


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
  """A function (flags) -> output of an evaluation of two files; checks that the key is nowhere."""
  monkeypatch.setattr(compilation, 'keep_programs', lambda folder: None)
  monkeypatch.setenv('JUDGE_KEY', KEY)
  (tmp_path / 'files').mkdir()
  for name, text in {'long': 'A long answer.', 'short': 'No.'}.items():
    rows = [{'instruction': prompt, 'output': text, 'generator': name} for prompt in PROMPTS]
    (tmp_path / 'files' / f'{name}.json').write_text(json.dumps(rows))

  def run(*flags):
    files = ','.join(str(tmp_path / 'files' / f'{name}.json') for name in ('long', 'short'))
    workdir = tmp_path / 'run'
    defaults = {'entries': files, 'judges': 'remote', 'remote.model': 'm', 'remote.retries': '0'}
    settings = [f'--config.{name}={value}' for name, value in defaults.items()]
    main.main(['nlhf', '--config=evaluate', f'--workdir={workdir}', *settings, *flags])
    written = [path for path in tmp_path.rglob('*') if path.is_file()]
    output = ''.join(capfd.readouterr())
    assert HINT not in output
    for path in written:
      assert HINT.encode() not in path.read_bytes(), path
    return output

  return run


@pytest.mark.parametrize('name', SERVERS)
def test_echoed_key_is_redacted(name, run):
  reply, sentence = SERVERS[name]
  with serve(lambda content, before: reply) as served:
    output = run('--config.remote.key=JUDGE_KEY', f'--config.remote.url={served.url}')
    assert {it.headers['authorization'] for it in served.seen} == {f'Bearer {KEY}'}
  assert sentence in output
  assert 'Traceback' not in output


@pytest.mark.parametrize('last', ['--workdir=', '--print'])
@pytest.mark.parametrize('flag', FLAGS)
def test_key_in_the_config_is_refused(flag, last, run, tmp_path):
  url = [] if 'url' in flag else ['--config.remote.url=http://127.0.0.1:9/v1']
  output = run(flag, *url, *([last] if last == '--print' else []))
  assert FLAGS[flag] in output
  assert not (tmp_path / 'run').exists()


def test_unset_variable_is_named_and_odd_names_are_not(monkeypatch):
  monkeypatch.setenv('lower_name', 'x' * 20)
  assert read_key('lower_name') == 'x' * 20
  section = {'key': 'lower_name', 'url': '', 'request': '{}'}
  check_secrets({'remote': section})
  with pytest.raises(UserError, match="key='SOME_KEY_2' is not an environment variable"):
    read_key('SOME_KEY_2')
  for odd in ('AKIAIOSFODNN7EXAMPLE', 'hunter2', 'AIzaSyA0a1B2', '$OPENAI_API_KEY', 'A B'):
    with pytest.raises(UserError) as raised:
      check_secrets({'remote': section | {'key': odd}})
    assert odd not in str(raised.value)


def test_short_keys_do_not_change_verdicts():
  assert redact('1', '1') == '1'
  assert redact('', 'a') == 'a'
