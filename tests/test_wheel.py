"""The wheel: built, installed in a folder of its own, and used from an empty one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nlhf_jax
from nlhf_jax import configs

ROOT = Path(__file__).parents[1]
SOURCES = ('LICENSE', 'README.md', 'configs', 'nlhf_jax', 'pyproject.toml', 'setup.cfg', 'setup.py')


def pip(*arguments):
  command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet', *arguments]
  subprocess.run([*map(str, command)], check=True)


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """The folder in which the wheel is installed, without what it depends on."""
  folder = tmp_path_factory.mktemp('wheel')
  (folder / 'source').mkdir()
  for name in SOURCES:  # a copy, for the build leaves files beside its sources
    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
    copy(ROOT / name, folder / 'source' / name)
  pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, folder / 'source')
  (wheel,) = folder.glob('*.whl')
  pip('install', '--no-deps', '--no-compile', '--target', folder / 'site', wheel)
  return folder / 'site'


@pytest.fixture
def nlhf(installed, tmp_path):
  """A function that runs the installed program in an empty folder."""

  def run(*arguments, start=(installed / 'bin' / 'nlhf',)):
    return subprocess.run(
      [sys.executable, *start, *arguments],
      cwd=tmp_path,
      env=os.environ | {'PYTHONPATH': str(installed)},
      capture_output=True,
      text=True,
      check=False,
    )

  return run


def test_the_installed_package_is_the_one_used(nlhf, installed):
  ended = nlhf('-c', 'import nlhf_jax; print(nlhf_jax.__file__)', start=())
  assert ended.stdout.strip() == str(installed / 'nlhf_jax' / '__init__.py')


def test_the_wheel_has_every_config(nlhf):
  listed = nlhf('list').stdout.splitlines()
  assert [line.split()[0] for line in listed] == configs.names()


@pytest.mark.parametrize('start', ['nlhf', '-m nlhf_jax', '-m nlhf_jax.main'])
def test_a_config_is_found_by_its_name(nlhf, installed, start):
  started = {
    'nlhf': (installed / 'bin' / 'nlhf', 'run'),
    '-m nlhf_jax': ('-m', 'nlhf_jax', 'run'),
    '-m nlhf_jax.main': ('-m', 'nlhf_jax.main'),
  }[start]
  ended = nlhf('--config=nash_md', '--config.sft.steps=20', '--print', start=started)
  assert ended.stderr == ''
  assert '--config.sft.steps=20\n' in ended.stdout
  assert '--config.policies.nash_md.arguments.beta=0.125\n' in ended.stdout


def test_a_missing_config_lists_those_there_are(nlhf):
  ended = nlhf('run', '--config=nosuch')
  assert ended.returncode == 2
  assert ended.stdout == ''
  assert ended.stderr.startswith("error: --config: there is no shipped config 'nosuch'; ")
  assert ', '.join(configs.names()) in ended.stderr


def test_an_own_config_imports_the_shipped_base(nlhf, tmp_path):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / '__init__.py').write_text('')
  own = 'from nlhf_jax.configs import base\nget_config = base.trains()\n'
  (tmp_path / 'configs' / 'mine.py').write_text(own)
  assert nlhf('run', '--config=configs/mine.py', '--print').stderr == ''
  assert nlhf('run', '--config=nash_md', '--print').stderr == ''


def test_the_wheel_has_types_and_pages(installed):
  package = installed / 'nlhf_jax'
  ours = Path(nlhf_jax.__file__).parent
  files = {path.relative_to(ours) for path in ours.rglob('*') if path.is_file()}
  shipped = {path.relative_to(package) for path in package.rglob('*') if path.is_file()}
  assert Path('py.typed') in shipped
  assert {path for path in files if '__pycache__' not in path.parts} <= shipped
