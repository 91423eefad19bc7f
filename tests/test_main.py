"""The command: whatever is wrong with it is said in one sentence, with exit status 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nlhf_jax import main
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
  """A function that gives the sentence with which the command refuses its arguments."""

  def complaint(*arguments):
    assert main.main(['main', *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith('error: ')
    assert said.count('\n') == 1
    return said.removeprefix('error: ').strip()

  return complaint


@pytest.fixture
def configured(monkeypatch):
  """A function that gives the config with which the command would run, and the flags."""

  def configured(*arguments):
    given = []
    monkeypatch.setattr(main, 'run', lambda *settings: given.extend(settings))
    assert main.main(['main', *arguments]) == 0
    return given

  return configured


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ([], ['--config is missing', '--config=configs/nash_md.py']),
    (['--config='], ['--config is missing']),
    (['--config'], ['Missing value', 'config']),
    (['--config=configs/none.py'], ["'configs/none.py'", 'No such file']),
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
    ([CONFIG, '--config.sft.steps='], ["'' is not a whole number", '700']),
    ([CONFIG, '--config.sft.steps=many'], ['--config.sft.steps', "'many' is not a whole number"]),
    ([CONFIG, '--config.seed=1.5'], ['--config.seed', "'1.5' is not a whole number"]),
    ([CONFIG, '--config.sft.optimizer.b1=high'], ["'high' is not a number", '0.9']),
    ([FILE, '--config.data.skip_bad=maybe'], ["'maybe' is not True or False"]),
  ],
)
def test_a_mistake_in_the_arguments_is_one_sentence(complaint, arguments, expected):
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
def test_a_config_that_cannot_be_loaded_is_named_with_the_reason(
  complaint, tmp_path, content, reason
):
  path = tmp_path / 'mine.py'
  path.write_text(content)
  assert complaint(f'--config={path}') == f"--config: cannot load '{path}': {reason}"


def test_a_config_of_no_known_kind_is_told_which_kinds_there_are(complaint, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('from ml_collections import ConfigDict\nget_config = ConfigDict\n')
  assert complaint(f'--config={path}') == (
    "config.experiment='None' must be one of evaluate, sample_complexity, judges, language, "
    'tabular, token_game.'
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


def test_overrides_work_in_any_order_and_the_last_one_counts(configured):
  config, settings = configured(
    '--config.sft.steps=3', '--workdir', 'here', CONFIG, '--config.sft.steps=4'
  )
  assert config.sft.steps == 4
  assert (settings.workdir, settings.stages) == ('here', None)


def test_help_is_no_mistake_and_needs_no_config(capsys):
  assert main.main(['main', '--help']) == 0
  said = capsys.readouterr()
  assert said.err == ''
  for part in ('--config=configs/nash_md.py', '--config.FIELD=VALUE', '--workdir', '--stages'):
    assert part in said.out


def test_stopping_says_how_to_go_on(monkeypatch, capsys):
  def run(*_):
    raise Interrupted('sft, step 3 of 5')

  monkeypatch.setattr(main, 'run', run)
  assert main.main(['main', CONFIG]) == 130
  assert 'Stopped in sft, step 3 of 5.' in capsys.readouterr().out


def test_a_fault_of_the_program_is_not_hidden(monkeypatch):
  def run(*_):
    raise ValueError('a bug')

  monkeypatch.setattr(main, 'run', run)
  with pytest.raises(ValueError, match='a bug'):
    main.main(['main', CONFIG])


def test_a_folder_that_cannot_be_made_is_named(complaint, tmp_path):
  path = tmp_path / 'file'
  path.write_text('')
  small = ('--config.data.posts=8', '--config.data.held_out=8')
  sentence = complaint(CONFIG, *small, f'--workdir={path / "run"}')
  assert sentence.startswith(f"cannot write to '{path}")


def test_a_folder_with_no_parent_that_can_be_made_is_named(complaint):
  said = complaint('--config=configs/tabular.py', '--config.only=mwu', '--workdir=/proc/none/run')
  assert said == "cannot write to '/proc/none': No such file or directory."


@pytest.mark.parametrize(
  ('content', 'expected'),
  [
    (None, ['cannot read', 'No such file']),
    ('', ['no rows found; write one JSON object a line']),
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
def test_a_mistake_in_a_file_is_one_sentence(complaint, tmp_path, content, expected):
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
      ['form=prompts'],
      "mine.jsonl' has too few demonstrations for config.sft: some have to be trained on",
    ),
    (['form=own'], "config.data.form='own' is none of comparisons, graded"),
    (['part=2'], "config.data.part='2' must be like 1/3"),
    (['split=test'], None),
  ],
)
def test_what_the_data_is_taken_for_has_to_fit(complaint, tmp_path, changes, expected):
  path = tmp_path / 'mine.jsonl'
  path.write_text(''.join(json.dumps(RECORD | {'prompt': text}) + '\n' for text in ('a', 'b')))
  changes = [f'--config.data.{change}' for change in changes]
  if expected is None:  # a file has no splits; what is named is looked for in folders only
    path.rename(tmp_path / 'train.jsonl')
    path, expected = tmp_path, "config.data.split='test' is none of those of"
  sentence = complaint(FILE, f'--config.data.path={path}', *changes, f'--workdir={tmp_path / "w"}')
  assert expected in sentence


def test_data_without_a_file_asks_for_one(complaint, tmp_path):
  assert '--config.data.path=FILE' in complaint(FILE, f'--workdir={tmp_path}')


@pytest.mark.parametrize(
  ('arguments', 'status', 'stream'),
  [(['--help'], 0, 'stdout'), ([CONFIG, '--config.sft.stepz=3'], 2, 'stderr')],
)
def test_the_command_itself_ends_with_the_status_and_no_traceback(arguments, status, stream):
  command = [sys.executable, '-m', 'nlhf_jax.main', *arguments]
  ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
  assert ended.returncode == status
  said = {'stdout': ended.stdout, 'stderr': ended.stderr}
  assert '--config' in said.pop(stream)
  assert list(said.values()) == ['']


@pytest.mark.parametrize(
  ('override', 'expected'),
  [
    ('policies.nash_md.steps=0', 'config.policies.nash_md.steps=0 must be at least 1'),
    ('preference_model.steps=-1', 'config.preference_model.steps=-1 must be'),
    ('policies.nash_md.batch=0', 'config.policies.nash_md.batch=0 must be'),
    ('sft.evaluate_every=0', 'config.sft.evaluate_every=0 must be'),
    ('policies.nash_md.arguments.tau=-0.1', 'tau=-0.1 must be at least 0'),
    ('policies.nash_md.arguments.tau=nan', 'tau=nan must be'),
    ('policies.nash_md.arguments.beta=1.5', "the slot 'policy' would get the weight -0.5"),
    ('policies.nash_md.arguments.beta=-1', 'beta=-1.0 must be at least 0'),
    ('policies.nash_md.judge=human', "config.policies.nash_md.judge='human' must be one of"),
    ('policies.nash_md.feedback=vote', "feedback='vote' must be one of probability, verdict"),
    ('policies.nash_md.players=average', "'average' is not a slot of it; choose from"),
    ('sft.optimizer.learning_rate=0', 'learning_rate=0.0 must be above 0'),
    ('sft.optimizer.b1=1', 'b1=1.0 must be in [0, 1)'),
    ('sft.optimizer.clip=0', 'clip=0.0 must be'),
    ('sft.optimizer.warmup=-1', 'warmup=-1 must be'),
    ('remote.request=max_tokens', 'config.remote.request=max_tokens must be a JSON object'),
    ('remote.request={"model": "m"}', 'model, messages and stream are none of them'),
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
def test_a_value_that_cannot_work_is_refused_before_any_work(
  complaint, tmp_path, override, expected
):
  assert expected in complaint(CONFIG, f'--config.{override}', f'--workdir={tmp_path}')


@pytest.mark.parametrize('share', ['1', '0', '-0.1'])
def test_a_share_of_held_out_prompts_is_a_proper_share(complaint, tmp_path, share):
  said = complaint(
    FILE, '--config.data.path=x', f'--config.data.held_out={share}', f'--workdir={tmp_path}'
  )
  assert 'in (0, 1) if it is a share' in said
