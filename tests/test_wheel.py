"""The wheel: built, installed in a folder of its own, and used from an empty one."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import nlhf_jax
from nlhf_jax import configs

ROOT = Path(__file__).parents[1]
SOURCES = ('LICENSE', 'README.md', 'configs', 'nlhf_jax', 'pyproject.toml', 'setup.cfg', 'setup.py')


ADDRESS = 'https://host.example/owner/name'
# The flags with which a run of `nash_md` is short.
TOY = tuple(
  f'--config.{field}={value}'
  for field, value in {
    **{'model.width': 16, 'model.layers': 1, 'model.hidden': 16, 'model.head_size': 8},
    **{'model.heads': 2, 'model.key_heads': 1, 'data.posts': 32, 'data.held_out': 8},
    **{
      f'{stage}.{field}': value
      for stage in ('sft', 'preference_model', 'policies.self_play', 'policies.nash_md')
      for field, value in {'steps': 2, 'batch': 4}.items()
    },
    'tournament.prompts': 8,
  }.items()
)


def pip(*arguments, **variables):
  command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--quiet', *arguments]
  subprocess.run([*map(str, command)], env=os.environ | variables, check=True)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A copy of what the wheel is built from, for the build leaves files beside it."""
  folder = tmp_path_factory.mktemp('source')
  for name in SOURCES:
    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
    copy(ROOT / name, folder / name)
  return folder


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
  """A wheel that names the address of its repository."""
  folder, address = tmp_path_factory.mktemp('wheel'), {'NLHF_REPOSITORY': f'{ADDRESS}.git'}
  pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, source, **address)
  (built,) = folder.glob('*.whl')
  return built


@pytest.fixture(scope='module')
def installed(wheel):
  """The folder in which the wheel is installed, without what it depends on."""
  site = wheel.parent / 'site'
  pip('install', '--no-deps', '--no-compile', '--target', site, wheel)
  return site


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


@pytest.mark.slow
def test_two_commands_lead_from_a_wheel_to_a_report(wheel, tmp_path):
  environment, folder = tmp_path / 'environment', tmp_path / 'empty'
  folder.mkdir()
  subprocess.run([sys.executable, '-m', 'venv', '--without-pip', environment], check=True)
  python = environment / 'bin' / 'python'
  pip('--python', python, 'install', '--no-index', '--no-deps', wheel)
  # Other packages are those of the tests, for there may be no network. They suffice, or pip fails.
  (site,) = environment.glob('lib/python*/site-packages')
  (site / 'others.pth').write_text(sysconfig.get_paths()['purelib'])
  pip('--python', python, 'install', '--no-index', wheel)
  run = [environment / 'bin' / 'nlhf', 'run', '--config=nash_md', *TOY]
  others = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  options = {'cwd': folder, 'env': others, 'capture_output': True, 'text': True}
  ended = subprocess.run(run, **options, check=False)
  assert ended.returncode == 0, ended.stderr
  assert 'Win rate of row over column, oracle judge' in ended.stdout
  page = (folder / 'runs' / 'nash_md' / 'report.html').read_text()
  assert f'<code>nlhf run --config=nash_md {" ".join(TOY)}</code>' in page
  assert '<dt>Commit</dt>' not in page  # which a checkout has


def read_links(description):
  """The targets of the links and images of a description in Markdown, in its order."""
  page = pytest.importorskip('markdown').markdown(description, extensions=['extra'])
  assert '[![' not in re.sub('<code.*?</code>', '', page, flags=re.DOTALL)
  return re.findall(r'(?:href|src)="([^"]*)"', page)


def test_links_of_the_package_page_are_absolute(wheel):
  with zipfile.ZipFile(wheel) as files:
    (name,) = (name for name in files.namelist() if name.endswith('.dist-info/METADATA'))
    metadata = email.message_from_bytes(files.read(name))
  assert metadata['Description-Content-Type'] == 'text/markdown'
  links = read_links(metadata.get_payload())
  assert [link for link in links if not re.match('https?://', link)] == []
  assert f'{ADDRESS}/raw/HEAD/benchmarks/results/quality.png' in links
  own = [link.removeprefix(f'{ADDRESS}/').split('/', 2)[2] for link in links if ADDRESS in link]
  assert own == [link for link in read_links((ROOT / 'README.md').read_text()) if ':' not in link]
  urls = dict(url.split(', ') for url in metadata.get_all('Project-URL'))
  assert urls['Source'] == ADDRESS
  assert urls['Documentation'] == f'{ADDRESS}/blob/HEAD/docs/index.md'
  assert {'Changelog', 'Issues'} <= urls.keys()


def build_metadata(source, folder, address):
  return subprocess.run(
    [sys.executable, 'setup.py', '--quiet', 'dist_info', '--output-dir', folder],
    cwd=source,
    env=os.environ | {'NLHF_REPOSITORY': address},
    capture_output=True,
    text=True,
    check=False,
  )


def test_without_an_address_the_package_page_has_no_relative_link(source, tmp_path):
  assert build_metadata(source, tmp_path, '').returncode == 0
  (path,) = tmp_path.glob('*.dist-info/METADATA')
  metadata = email.message_from_bytes(path.read_bytes())
  assert 'Project-URL' not in metadata
  readme = (ROOT / 'README.md').read_text()
  assert read_links(metadata.get_payload()) == [link for link in read_links(readme) if ':' in link]
  assert 'start has the steps one by one' in metadata.get_payload()


def test_an_address_that_is_no_address_is_refused(source, tmp_path):
  ended = build_metadata(source, tmp_path, 'git@host.example:owner/name.git')
  assert ended.returncode != 0
  assert 'must be like https://HOST/OWNER/NAME.' in ended.stderr
