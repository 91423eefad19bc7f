"""The commands: each mistake in their arguments gives one sentence and exit status 2."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nlhf_jax
from nlhf_jax import __main__ as program
from nlhf_jax import command, configs, main
from nlhf_jax.errors import Interrupted

ROOT = Path(__file__).parents[1]
CONFIG = '--config=configs/nash_md.py'
FILE = f'{CONFIG}:file'
RECORD = {'prompt': 'Say hi.', 'chosen': 'Hi!', 'rejected': 'No.'}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  monkeypatch.chdir(ROOT)
  monkeypatch.syspath_prepend(str(ROOT))  # as `python -m` does


@pytest.fixture
def complaint(capsys):
  """A function that returns the sentence with which the command refuses its arguments."""

  def complaint(*arguments):
    assert main.main(['main', *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    return error.removeprefix('error: ').strip()

  return complaint


@pytest.fixture
def configured(monkeypatch):
  """A function that returns the config with which the command would run, and the flags."""

  def configured(*arguments):
    given = []
    monkeypatch.setattr(main, 'run', lambda *settings: given.extend(settings))
    assert main.main(['main', *arguments]) == 0
    return given

  return configured


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ([], ['--config is missing', '--config=nash_md', 'nlhf list']),
    (['--config='], ['--config is missing']),
    (['--config'], ['Missing value', 'config']),
    (['--config=configs/none.py'], ["'configs/none.py'", 'No such file', 'nash_md, nash_md_group']),
    (
      ['--config=nash_mb'],
      ["no shipped config 'nash_mb'", 'nearest is nash_md;', 'tabular'],
    ),
    (['--config=nash_md.py'], ["cannot read 'nash_md.py'", 'the nearest is nash_md;']),
    (['--config=nash_md:foo'], ["'foo'", "['file', 'synthetic']"]),
    (['--config=configs'], ["'configs'"]),
    (['--config=nlhf_jax/errors.py'], ["'nlhf_jax/errors.py' has no function get_config"]),
    ([f'{CONFIG}:foo'], ["'foo'", "['file', 'synthetic']"]),
    ([CONFIG, 'configs/nash_md.py'], ["'configs/nash_md.py' is not a flag"]),
    ([CONFIG, '--wrkdir=x'], ["'wrkdir'", 'workdir', '--help']),
    ([CONFIG, '--steps=3'], ["'steps'", '--help']),
    ([CONFIG, '--config.sft.stepz=3'], ['--config.sft.stepz', 'nearest is --config.sft.steps.']),
    ([CONFIG, '--config.stf.steps=3'], ['--config.stf.steps', 'nearest is --config.sft.steps.']),
    ([FILE, '--config.data.pth=x'], ['--config.data.pth', 'nearest is --config.data.path.']),
    (
      [CONFIG, '--config.data.path=x'],
      ['--config.data.path: configs/nash_md.py has no such field'],
    ),
    ([CONFIG, '--config.=3'], ['no such field']),
    ([CONFIG, '--config.policies=3'], ['--config.policies is a section', 'nash_md']),
    ([CONFIG, '--config.sft.arguments=3'], ['--config.sft.arguments is a section']),
    ([CONFIG, '--config.sft.steps'], ['--config.sft.steps=700']),
    ([CONFIG, '--config.sft.steps', '3'], ["'3' is not a flag"]),
    (
      [CONFIG, '--config.remote.key', 'sk-0123456789abcdef'],
      ['an argument of 19 characters is not a flag', 'written --FLAG=VALUE'],
    ),
    ([CONFIG, '--config.sft.steps='], ["'' is not a whole number", '700']),
    ([CONFIG, '--config.sft.steps=many'], ['--config.sft.steps', "'many' is not a whole number"]),
    ([CONFIG, '--config.seed=1.5'], ['--config.seed', "'1.5' is not a whole number"]),
    ([CONFIG, '--config.sft.optimizer.b1=high'], ["'high' is not a number", '0.9']),
    ([FILE, '--config.data.skip_bad=maybe'], ["'maybe' is not True or False"]),
  ],
)
def test_wrong_arguments_give_one_sentence(complaint, arguments, expected):
  sentence = complaint(*arguments)
  for part in expected:
    assert part in sentence


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    ('import no_such_module', "No module named 'no_such_module'."),
    ('\nall: this is no Python', 'invalid syntax (mine.py, line 2).'),
  ],
)
def test_an_unloadable_config_is_named_with_the_reason(complaint, tmp_path, content, reason):
  path = tmp_path / 'mine.py'
  path.write_text(content)
  assert complaint(f'--config={path}') == f"--config: cannot load '{path}': {reason}"


def test_an_unknown_experiment_lists_the_known_ones(complaint, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('from ml_collections import ConfigDict\nget_config = ConfigDict\n')
  assert complaint(f'--config={path}') == (
    "config.experiment='None' must be one of evaluate, judges, language, "
    'sample_complexity, tabular, token_game.'
  )


def test_overrides_keep_the_type_of_their_field(configured):
  config, _ = configured(
    FILE,
    '--config.sft.steps=3',
    '--config.policies.nash_md.arguments.tau=1',
    '--config.data.skip_bad=true',
    '--config.data.path=a=b.jsonl',
    '--config.seed=-1',
  )
  assert config.sft.steps == 3
  assert config.policies.nash_md.arguments.tau == 1
  assert isinstance(config.policies.nash_md.arguments.tau, float)
  assert config.data.skip_bad is True
  assert config.data.path == 'a=b.jsonl'
  assert config.seed == -1


def test_the_last_override_of_a_field_counts(configured):
  config, settings = configured(
    '--config.sft.steps=3', '--workdir', 'here', CONFIG, '--config.sft.steps=4'
  )
  assert config.sft.steps == 4
  assert (settings.workdir, settings.stages) == ('here', None)


@pytest.mark.parametrize(
  ('name', 'source', 'argument'),
  [
    ('nash_md', 'nash_md', ''),
    ('nash_md:file', 'nash_md', 'file'),
    ('a/b.py', 'a/b.py', ''),
    ('a/b.py:file', 'a/b.py', 'file'),
    (r'C:\a\b.py', r'C:\a\b.py', ''),
    (r'C:\a\b.py:file', r'C:\a\b.py', 'file'),
    ('nash_md:', 'nash_md', ''),
  ],
)
def test_a_config_name_splits_at_its_argument(name, source, argument):
  assert command.split_name(name) == (source, argument)


def test_a_shipped_config_is_found_from_any_folder(configured, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'nash_md').mkdir()
  config, settings = configured('--config=nash_md:file')
  assert config.data.source == 'file'
  assert command.run_paths(settings) == (
    'nash_md_file',
    Path('runs/nash_md_file'),
    Path('runs/stages'),
  )


def test_a_store_keeps_the_stages_of_one_run(configured):
  _, settings = configured('--config=nash_md', '--store=gs://bucket/run')
  assert command.run_paths(settings)[2] == Path('runs/nash_md/stages')


@pytest.mark.parametrize('files', [[], ['__init__.py'], ['__init__.py', 'base.py', 'nash_md.py']])
@pytest.mark.parametrize('name', ['nash_md', 'configs/mine.py', 'elsewhere/configs/mine.py'])
def test_own_configs_folder_does_not_disturb_shipped_ones(tmp_path, files, name):
  own = tmp_path / ('elsewhere/configs' if 'elsewhere' in name else 'configs')
  for folder in {own, tmp_path / 'configs'}:
    folder.mkdir(parents=True)
    for file in files:
      (folder / file).write_text('' if file == '__init__.py' else 'raise SystemExit(file)')
  (own / 'steps.py').write_text('STEPS = 7\n')
  (own / 'mine.py').write_text(
    'from configs import steps\nfrom nlhf_jax.configs import base\n'
    "get_config = base.trains(nash_md=base.policy('self_play', steps=steps.STEPS, tau=0.0))\n"
  )
  start = [sys.executable, '-m', 'nlhf_jax', 'run', f'--config={name}', '--print']
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  ended = subprocess.run(
    start, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
  )
  assert ended.stderr == ''
  steps = 300 if name == 'nash_md' else 7
  assert f'--config.policies.nash_md.steps={steps}\n' in ended.stdout


def test_importing_a_missing_neighbour_names_the_remedy(complaint, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('from configs import none_such')
  assert complaint(f'--config={path}').endswith('as: from nlhf_jax.configs import base.')


def test_print_shows_the_changed_config(capsys):
  change = '--config.sft.steps=3'
  assert main.main(['main', '--config=nash_md', change, '--print']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert {change, '--config.policies.nash_md.arguments.beta=0.125'} < {*lines}
  # What is printed can be passed again.
  assert main.main(['main', '--config=nash_md', *lines, '--print']) == 0
  assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize('run', [main.main, program.main])
def test_version_needs_no_config(run, capsys):
  assert run(['nlhf', '--version']) == 0
  assert capsys.readouterr().out == f'nlhf_jax {nlhf_jax.__version__}\n'


def test_the_citation_has_the_version():
  assert f'\nversion: {nlhf_jax.__version__}\n' in (ROOT / 'CITATION.cff').read_text()


def test_list_describes_every_shipped_config(capsys):
  assert program.main(['nlhf', 'list']) == 0
  lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
  assert [name for name, _ in lines] == configs.names()
  assert all(text.endswith(('.', ':')) for _, text in lines)


def test_program_help_names_every_command(capsys):
  assert program.main(['nlhf', '--help']) == 0
  printed = capsys.readouterr().out
  assert all(f'\n  {name} ' in printed for name in (*program.MODULES, 'list'))


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ([], 'the first argument must be one of run, export, plan, compare, list'),
    (['walk'], "the command 'walk' must be one of run, export, plan, compare, list"),
    (['list', 'all'], "nlhf list takes no arguments; leave 'all' out."),
    (['run', '--config=nosuch'], "no shipped config 'nosuch'"),
    (['export', '--config=tabular'], 'trains no language models to export'),
    (['plan', '--config=tabular'], 'trains no policies'),
  ],
)
def test_a_wrong_command_gives_one_sentence(arguments, expected, capsys):
  assert program.main(['nlhf', *arguments]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert expected in error


def test_help_needs_no_config(capsys):
  assert main.main(['main', '--help']) == 0
  printed = capsys.readouterr()
  assert printed.err == ''
  for part in ('--config=nash_md', '--config.FIELD=VALUE', '--workdir', '--stages', '--[no]print'):
    assert part in printed.out


def test_an_interrupted_run_explains_how_to_resume(monkeypatch, capsys):
  def run(*_):
    raise Interrupted('sft, step 3 of 5')

  monkeypatch.setattr(main, 'run', run)
  assert main.main(['main', CONFIG]) == 130
  assert 'Stopped in sft, step 3 of 5.' in capsys.readouterr().out


@pytest.mark.parametrize(
  'error',
  [
    MemoryError('Unable to allocate 9 GiB'),
    RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes'),
  ],
)
def test_too_little_memory_gives_one_sentence(complaint, monkeypatch, error):
  def run(*_):
    raise error

  monkeypatch.setattr(main, 'run', run)
  assert complaint(CONFIG).startswith(f'there is not enough memory ({error}); lower the sizes')


def test_a_full_disk_gives_one_sentence(complaint, monkeypatch, tmp_path):
  def run(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(main, 'run', run)
  sentence = complaint(CONFIG, f'--workdir={tmp_path}')
  assert sentence.startswith(f"cannot write to '{tmp_path}': No space left on device (")
  assert 'bytes free); make room there, and run the same command again' in sentence


def test_a_bug_keeps_its_traceback(monkeypatch):
  def run(*_):
    raise ValueError('a bug')

  monkeypatch.setattr(main, 'run', run)
  with pytest.raises(ValueError, match='a bug'):
    main.main(['main', CONFIG])


def test_an_unwritable_work_directory_is_named(complaint, tmp_path):
  path = tmp_path / 'file'
  path.write_text('')
  small = ('--config.data.posts=8', '--config.data.held_out=8')
  sentence = complaint(CONFIG, *small, f'--workdir={path / "run"}')
  assert sentence.startswith(f"cannot write to '{path}")


def test_an_unwritable_parent_directory_is_named(complaint):
  sentence = complaint('--config=tabular', '--config.only=mwu', '--workdir=/proc/none/run')
  assert sentence == (
    "cannot write to '/proc/none': No such file or directory (0 bytes free); make it writable, or "
    'give another folder, and run the same command again: it continues from what was saved.'
  )


@pytest.mark.parametrize(
  ('content', 'expected'),
  [
    (None, ['cannot read', 'No such file']),
    ('', ['no rows found; write one JSON object per line']),
    ('\n\r\n', ['no rows found']),
    (json.dumps(RECORD), ['1 different prompt found; add some']),
    ('\nnot json\n', ['line 2: not valid JSON', 'skip_bad=True']),
    (
      json.dumps(RECORD | {'chosen': 5}),
      ["line 1: field 'chosen' is neither a string nor a list of messages but int"],
    ),
    (json.dumps(RECORD | {'prompt': 'why ' * 199}), ["line 1: field 'prompt' has", 'no room']),
  ],
)
def test_bad_data_gives_one_sentence(complaint, tmp_path, content, expected):
  path = tmp_path / 'mine.jsonl'
  if content is not None:
    path.write_text(content)
  sentence = complaint(FILE, f'--config.data.path={path}', f'--workdir={tmp_path}')
  assert str(path) in sentence
  for part in expected:
    assert part in sentence


@pytest.mark.parametrize(
  ('changes', 'expected'),
  [
    (
      ['schema=prompts'],
      "mine.jsonl' has too few demonstrations for config.sft: at least one is needed",
    ),
    (['schema=own'], "config.data.schema='own' is none of comparisons, graded"),
    (['part=2'], "config.data.part='2' must be like 1/3"),
    (['split=test'], None),
  ],
)
def test_data_settings_must_fit_the_data(complaint, tmp_path, changes, expected):
  path = tmp_path / 'mine.jsonl'
  path.write_text(''.join(json.dumps(RECORD | {'prompt': text}) + '\n' for text in ('a', 'b')))
  changes = [f'--config.data.{change}' for change in changes]
  if expected is None:  # only folders have splits
    path.rename(tmp_path / 'train.jsonl')
    path, expected = tmp_path, "config.data.split='test' is none of those of"
  sentence = complaint(FILE, f'--config.data.path={path}', *changes, f'--workdir={tmp_path / "w"}')
  assert expected in sentence


def test_missing_data_path_is_reported(complaint, tmp_path):
  assert '--config.data.path=FILE' in complaint(FILE, f'--workdir={tmp_path}')


@pytest.mark.parametrize(
  ('arguments', 'status', 'stream'),
  [(['--help'], 0, 'stdout'), ([CONFIG, '--config.sft.stepz=3'], 2, 'stderr')],
)
def test_the_process_exits_without_a_traceback(arguments, status, stream):
  command = [sys.executable, '-m', 'nlhf_jax.main', *arguments]
  ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
  assert ended.returncode == status
  printed = {'stdout': ended.stdout, 'stderr': ended.stderr}
  assert '--config' in printed.pop(stream)
  assert list(printed.values()) == ['']


@pytest.mark.parametrize(
  ('override', 'expected'),
  [
    ('policies.nash_md.steps=0', 'config.policies.nash_md.steps=0 must be at least 1'),
    ('preference_model.steps=-1', 'config.preference_model.steps=-1 must be'),
    ('policies.nash_md.batch=0', 'config.policies.nash_md.batch=0 must be'),
    ('sft.evaluate_every=0', 'config.sft.evaluate_every=0 must be'),
    ('policies.nash_md.arguments.tau=-0.1', 'tau=-0.1 must be at least 0'),
    ('policies.nash_md.arguments.tau=nan', 'tau=nan must be'),
    ('policies.nash_md.arguments.beta=1.5', 'arguments.beta=1.5 must be in [0, 1]'),
    ('policies.nash_md.arguments.beta=-1', 'beta=-1.0 must be in [0, 1]'),
    ('policies.nash_md.judge=human', "config.policies.nash_md.judge='human' must be one of"),
    ('policies.nash_md.feedback=votes', "feedback='votes' must be one of probability, vote"),
    ('policies.nash_md.entries=average', "'average' is not a slot of the algorithm; choose from"),
    ('sft.optimizer.learning_rate=0', 'learning_rate=0.0 must be above 0'),
    ('sft.optimizer.b1=1', 'b1=1.0 must be in [0, 1)'),
    ('sft.optimizer.clip=0', 'clip=0.0 must be'),
    ('sft.optimizer.warmup=-1', 'warmup=-1 must be'),
    ('remote.request=max_tokens', 'config.remote.request=max_tokens must be a JSON object'),
    ('remote.request={"model": "m"}', 'without model, messages and stream'),
    ('remote.prices.response=-1', 'config.remote.prices.response=-1.0 must be at least 0'),
    ('tournament.prompts=0', 'config.tournament.prompts=0 must be'),
    ('tournament.filters.temperature=0', 'temperature=0.0 must be above 0'),
    ('tournament.filters.top_p=0', 'top_p=0.0 must be'),
    ('tournament.filters.top_k=-1', 'top_k=-1 must be'),
    ('model.key_heads=3', 'must be a multiple of config.model.key_heads=3'),
    ('model.key_heads=0', 'config.model.key_heads=0 must be'),
    ('model.head_size=7', 'config.model.head_size=7 must be even'),
    ('model.layers=0', 'config.model.layers=0 must be'),
    ('seed=-1', 'config.seed=-1 must be in'),
    ('data.prompt_length=0', 'config.data.prompt_length=0 must be'),
    ('data.vocabulary=100', 'config.data.vocabulary=100 must be at least 259'),
    ('data.posts=0', 'config.data.posts=0 must be'),
    ('data.held_out=0', 'config.data.held_out=0 must be'),
    ('policies.nash_md.algorithm=mixture', "there is no 'mixture' in the catalogue"),
    ('policies.nash_md.algorithm=self_play', "'self_play' takes ['tau']"),
    ('data.source=file', '--config=configs/nash_md.py:synthetic or :file'),
    ('sft.algorithm=preference_model', 'config.sft.algorithm=preference_model must be sft'),
  ],
)
def test_an_invalid_setting_is_refused_at_once(complaint, tmp_path, override, expected):
  assert expected in complaint(CONFIG, f'--config.{override}', f'--workdir={tmp_path}')


@pytest.mark.parametrize('share', ['1', '0', '-0.1'])
def test_the_held_out_share_is_below_one(complaint, tmp_path, share):
  sentence = complaint(
    FILE, '--config.data.path=x', f'--config.data.held_out={share}', f'--workdir={tmp_path}'
  )
  assert 'must be in (0, 1)' in sentence
