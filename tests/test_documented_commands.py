"""Every command of the documentation is one that a handler knows, checks and, slowly, tries."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nlhf_jax import __main__, command, main, plan
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import memory_plan
from nlhf_jax.experiments.start import make_experiment
from tests import documented_commands, stand_ins
from tests.test_docs import PAGES, ROOT, name

TEXTS = [*PAGES, ROOT / 'docs' / 'descriptions.toml']


@pytest.mark.parametrize('page', TEXTS, ids=name)
def test_commands_are_known_and_right(page):
  text = page.read_text()
  for words in documented_commands.commands(text):
    documented_commands.handler(words)(words)
  script = '\n'.join(documented_commands.BLOCK.findall(text))
  subprocess.run(['bash', '-n'], input=script, text=True, check=True)


@pytest.mark.parametrize(
  'line',
  [
    'cowsay moo',
    'nlhf fly',
    'nlhf run --config=nash_md --config.sft.steps=-1',
    'nlhf run --config=nash_md --confg.seed=1',
    'nlhf plan --config=nash_md --tracker=none',
    'nlhf compare runs/nash_md',
    'nlhf list nash_md',
    'nlhf export --run=runs/nash_md --policy=nash_md',
    "pip install 'nlhf-jax[tpu]'",
    "python -m pip install '.[no_such_extra]'",
    'python -m nlhf_jax.no_such_module',
    'python benchmarks/no_such_program.py',
    'python benchmarks/step.py --no-such-flag',
    'python -m pytest tests/no_such_test.py',
    'launch/local.sh 2 --config=no_such_config',
    'launch/tpu_vm.sh explode',
    'docker build -f launch/docker/Dockerfile --build-arg NO_SUCH_ARGUMENT=1 .',
    'kubectl apply -f launch/gke/no_such_manifest.yaml',
    'make no-such-target',
    'make run ARGS=--config.no_such_field=1',
    'vllm serve MODEL --served-model-name other',
  ],
)
def test_a_wrong_command_is_noticed(line):
  (words,) = documented_commands.split(line)
  with pytest.raises((AssertionError, LookupError, OSError, UserError)):
    documented_commands.handler(words)(words)


def test_messages_install_extras_of_a_checkout():
  """The index has no package of this name; what takes it must not be installed by mistake."""
  for path in ROOT.glob('nlhf_jax/**/*.py'):
    text = path.read_text()
    assert 'nlhf-jax[' not in text, path
    for what in re.findall(r"pip install '?(\.\[[a-z0-9]+\])", text):
      documented_commands.check_pip(['pip', 'install', what])


@pytest.fixture(scope='module')
def folder(toy_run, tmp_path_factory):
  """A folder with stand-ins for all files and runs that commands name."""
  folder = tmp_path_factory.mktemp('named')
  stand_ins.write(folder)
  for run in ('nash_md', 'mine', 'tau'):
    shutil.copytree(toy_run.folder / 'run', folder / 'runs' / run)
  shutil.copytree(toy_run.folder / 'stages', folder / 'runs' / 'stages')
  return folder


def prepare(words, toy):
  """The config of a run at toy size, with the changes of the command, and its name."""
  more = {'run': main.FLAGS, 'plan': plan.FLAGS}[words[1]]
  words = [word.replace('gs://BUCKET/', '') for word in words]
  settings, _ = documented_commands.read(words, more)
  config = command.load_config(settings.config)
  if 'preference_model' in config:
    config = toy(config)
    if 'path' in config.data:
      config.data.update(prompt_length=40, response_length=8)
  for word in words:
    if word.startswith('--config.'):
      command.apply_override(word, config, settings.config)
  return config, command.run_paths(settings)[0]


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES, ids=name)
def test_commands_pass_all_that_is_checked_before_training(page, folder, toy, monkeypatch, capsys):
  """Runs make their experiment of toy data, plans check it; `list` and `compare` run."""
  monkeypatch.chdir(folder)
  for words in documented_commands.commands(page.read_text()):
    if words[:2] in (['nlhf', 'list'], ['nlhf', 'compare']) and words[2:3] != ['RUN']:
      assert __main__.main(words) == 0
      assert capsys.readouterr().out
    elif words[:2] in (['nlhf', 'run'], ['nlhf', 'plan']) and len(words) > 2:
      config, run = prepare(words, toy)
      if words[1] == 'plan':
        memory_plan.check(config)
      else:
        assert make_experiment(config, run, Path('runs/stages')).name == run
