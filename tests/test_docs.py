"""The documentation: links, commands and names are right."""

import ast
import functools
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import nlhf_jax
from docs import generate
from nlhf_jax import command, configs
from nlhf_jax.algorithms.catalogue import ALGORITHMS
from nlhf_jax.data.schemas import SCHEMAS
from nlhf_jax.judges.registry import NAMES
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Scores
from tests import described_runs, documented_commands
from tests.experiments import pretrained
from tests.reporting.pages import PAGES as PAGES_OF_RUNS

ROOT = Path(__file__).parents[1]
README = ROOT / 'README.md'
PAGES = [
  *(ROOT / f'{name}.md' for name in ('README', 'CONTRIBUTING', 'SECURITY', 'CHANGELOG')),
  *(ROOT / folder / 'README.md' for folder in ('launch', 'benchmarks')),
  *sorted((ROOT / 'docs').rglob('*.md')),
]
MAX_LINES, MAX_ROWS, MAX_GRADE = 180, 8, 11
# Changes that let a command of a page end within a minute.
TOY = {
  **{
    f'{stage}.steps': 2 for stage in ('preference_model', 'policies.nash_md', 'policies.self_play')
  },
  **{
    f'{stage}.batch': 4 for stage in ('preference_model', 'policies.nash_md', 'policies.self_play')
  },
  **{'sft.steps': 2, 'sft.batch': 4, 'tournament.prompts': 8},
}
TOY_DATA = {
  'synthetic': {'data.posts': 32, 'data.held_out': 8},
  'file': {'data.prompt_length': 40, 'data.response_length': 8},
}


@functools.cache
def generated():
  """The files that are made while the site is built."""
  return {ROOT / 'docs' / path for path in [*generate.pages(), *generate.pictures()]}


def name(path):
  return str(path.relative_to(ROOT))


def blocks(path, language):
  """The code blocks of a page in a language."""
  return re.findall(rf'^```{language}\n(.*?)^```', path.read_text(), re.S | re.M)


def without_code(path):
  return re.sub(r'^```.*?^```', '', path.read_text(), flags=re.S | re.M)


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_relative_links_lead_to_files(page):
  for target in re.findall(r'\]\(([^)#\s]+)', without_code(page)):
    if not target.startswith('https://'):
      file = (page.parent / target).resolve()
      assert file.exists() or file in generated(), target


def test_anchors_in_links_are_headings():
  for page in PAGES:
    for target, anchor in re.findall(r'\]\(([^)#\s]*)#([^)]+)\)', without_code(page)):
      file = (page.parent / target).resolve() if target else page
      if file.exists() and not target.startswith('https://'):
        headings = re.findall(r'^#+ (.*)$', without_code(file), re.M)
        found = {re.sub(r'[^\w-]', '', heading.lower().replace(' ', '-')) for heading in headings}
        assert anchor in found, f'{name(page)}: {target}#{anchor}'


@functools.cache
def config_fields():
  """The fields and sections of all shipped configs, with one policy called NAME."""
  shipped = [command.load_config(config) for config in configs.names()]
  flat = {f'config.{field}' for config in shipped for field, _ in generate.flatten(config)}
  flat |= generate.base_fields().keys()
  return flat | {part.rpartition('.')[0] for part in flat}


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_names_in_sentences_exist(page):
  text, makefile = page.read_text(), (ROOT / 'Makefile').read_text()
  for target in re.findall(r'(?:`|^)make ([a-z][\w-]*)', text, re.M):
    assert re.search(rf'^{target}:', makefile, re.M), target
  for config in re.findall(r'--config=([a-z]\w*)', text):
    assert config in configs.names(), config
  for field in re.findall(r'`(?:--)?(config(?:\.\w+)+)(?==|`)', text):
    placeholder = field in ('config.json', 'config.FIELD') or '.arguments' in field
    assert placeholder or field in config_fields(), field


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_python_on_pages_parses_and_uses_what_is_exported(page):
  for text in blocks(page, 'python'):
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        assert node.value.id != 'nlhf' or node.attr in nlhf_jax.__all__, node.attr


def test_readme_is_short_and_names_every_package():
  lines = README.read_text().splitlines()
  assert len(lines) <= MAX_LINES
  tables = re.findall(r'(?:^\|.*\n)+', README.read_text(), re.M)
  assert max(table.count('\n') for table in tables) <= MAX_ROWS + 2
  tree = next(block for block in blocks(README, 'text') if block.startswith('nlhf_jax/'))
  packages = {path.parent.name for path in (ROOT / 'nlhf_jax').glob('*/__init__.py')}
  named = set(re.findall(r'^  (\w+)/', tree, re.M))
  assert named == packages
  folders = re.findall(r'^(?:(\w+)/ )?(\w+)/', tree, re.M)
  assert all((ROOT / folder).is_dir() for pair in folders for folder in pair if folder)
  assert f'all {len(ALGORITHMS)} algorithms' in README.read_text()


def prose(page):
  """The sentences of a page: no code, tables, headings or pictures; a name of code is one word."""
  blocks = [block.strip() for block in re.split(r'\n\s*\n', without_code(page))]
  text = '\n'.join(block for block in blocks if block and block[0] not in '#|!')
  text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', text)
  return re.sub(r'`[^`]*`', 'name', text).replace('*', '')


def test_readme_is_easy_to_read(record_property):
  textstat = pytest.importorskip('textstat', reason='needs the extra [test]')
  text = prose(README)
  assert len(text.split()) > 300
  grade = textstat.flesch_kincaid_grade(text)
  record_property('Flesch-Kincaid grade of the README', f'{grade:.1f} of at most {MAX_GRADE}')
  assert grade <= MAX_GRADE


def test_every_algorithm_is_in_the_catalogue_with_its_configs():
  page = generate.algorithms_page()
  assert re.findall(r'^### (\w+)$', page, re.M) == list(ALGORITHMS)
  trained = generate.configs_by_algorithm()
  language = {
    config for config in configs.names() if command.load_config(config).experiment == 'language'
  }
  assert language <= {config for names in trained.values() for config in names}
  assert all(f'`{config}`' in page for config in language)
  assert all(generate.tests_by_algorithm().values())


@pytest.mark.parametrize('name', ALGORITHMS)
def test_every_algorithm_has_equation_source_and_use(name):
  text, uses = inspect.getdoc(ALGORITHMS[name]), generate.DESCRIPTIONS['use_when']
  assert re.search(r'\w\(|~ |log |max ', text), text
  assert re.search(r'\b\d{4}\.\d{5}\b|\([A-Z]\. [A-Z]\w+, "', text), text
  assert uses.keys() == ALGORITHMS.keys()
  bare = re.sub(r'\[arXiv (\S+)\]\(https://arxiv\.org/abs/\1\)', '', generate.prose(text))
  assert not re.search(r'\b\d{4}\.\d{4}|arXiv', bare), bare


def test_every_setting_is_described_once():
  fields = {generate.described(field) for field in generate.base_fields()}
  assert fields == generate.DESCRIPTIONS['settings'].keys()
  page = generate.settings_page()
  for field in generate.base_fields():
    shown = generate.training_field(field) or field
    assert f'`{shown}`' in page or f'`{field}`' in page, field


def test_all_that_a_run_writes_is_described(toy_run):
  """Tests of other kinds of runs compare what they wrote, too."""
  assert described_runs.undescribed(toy_run.folder / 'run', 'language') == set()


@pytest.mark.parametrize('kind', sorted(configs.EXAMPLES.keys() - {'language'}))
def test_every_number_of_a_report_is_described(kind, tmp_path):
  results = PAGES_OF_RUNS[kind](tmp_path / 'report.html')
  assert list(described_runs.undescribed_results(results)) == []


def test_a_number_without_description_is_noticed():
  found = described_runs.undescribed_results({'tables': {'learned': {'win_rate': [1], 'new': 2}}})
  assert list(found) == ['tables.learned.new']
  assert described_runs.undescribed_metrics([{'loss': 1, 'new': 2}]) == {'new'}


def test_start_lists_every_extra_once():
  setup = ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  rows = re.findall(r'^\| (`\[.*?) \|', (ROOT / 'docs' / 'index.md').read_text(), re.M)
  listed = [name for row in rows for name in re.findall(r'\[(\w+)\]', row)]
  assert sorted(listed) == sorted(setup['options.extras_require'])


@pytest.mark.parametrize(
  ('page', 'names'),
  [('own_data', list(SCHEMAS)), ('own_judge', [*NAMES, 'oracle'])],
)
def test_guides_name_every_choice(page, names):
  text = (ROOT / 'docs' / 'guides' / f'{page}.md').read_text()
  assert [choice for choice in names if f'`{choice}`' not in text] == []


def test_rows_in_the_guide_to_data_are_read_by_their_schemas():
  text = (ROOT / 'docs' / 'guides' / 'own_data.md').read_text()
  examples = re.findall(r'^```json title="(\w+)"\n(.*?)^```', text, re.S | re.M)
  ours = ['comparisons', 'graded', 'demonstrations', 'prompts', 'unpaired', 'implicit_prompt']
  assert [schema for schema, _ in examples] == ours
  for schema, rows in examples:
    for row in rows.splitlines():
      example = SCHEMAS[schema](json.loads(row))
      prompt = example.prompt if isinstance(example.prompt, str) else example.prompt[-1]['content']
      assert prompt.strip() == 'What is tea?', schema


def test_loss_in_the_guide_to_algorithms_is_what_it_says(tmp_path):
  *_, program = blocks(ROOT / 'docs' / 'guides' / 'own_algorithm.md', 'python')
  (tmp_path / 'program.py').write_text(program)
  names = runpy.run_path(str(tmp_path / 'program.py'))
  log_probs = {'policy': (-1.0, -3.0), 'reference': (-2.0, -3.5)}  # log-ratios of 1 and 0.5
  scores = {
    slot: Scores(*(jnp.full((1, 1, 1), value) for value in pair))
    for slot, pair in log_probs.items()
  }
  for payoff, loss in ((0.25, 0.5), (-0.25, 1.5)):
    comparison = Comparison(None, None, payoff=np.full((1, 1, 1), payoff))
    np.testing.assert_allclose(names['my_algorithm'].loss(scores, comparison), [[[loss]]])


def toy_command(words):
  """A command of a page at toy size; what it says itself goes before."""
  if words[1] != 'run':
    return words
  source = 'file' if ':file' in words[2] else 'synthetic'
  changes = [f'--config.{field}={value}' for field, value in (TOY | TOY_DATA[source]).items()]
  return [*words[:3], *changes, *words[3:]]


@pytest.mark.slow
def test_commands_of_the_readme_and_programs_run(tmp_path):
  model = tmp_path / 'MODEL'
  pretrained.save(model)
  sizes = json_lines.read_json(model / 'config.json') | {'max_position_embeddings': 512}
  json_lines.write_json(model / 'config.json', sizes)  # room for the default length
  rows = [
    {'prompt': f'say {number}', 'chosen': f'{number} it is', 'rejected': 'no'}
    for number in range(12)
  ]
  json_lines.write(tmp_path / 'FILE.jsonl', rows)
  environment = os.environ | {'PYTHONPATH': str(ROOT)}

  def run(*arguments):
    ended = subprocess.run(
      [sys.executable, *arguments],
      cwd=tmp_path,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout

  for words in documented_commands.commands(README.read_text()):
    if words[0] == 'nlhf' and len(words) > 2:
      run('-m', 'nlhf_jax', *toy_command(words)[1:])
  assert (tmp_path / 'runs' / 'nash_md' / 'report.html').exists()
  assert (tmp_path / 'NEW_DIR' / 'adapter_model.safetensors').exists()
  (program,) = blocks(README, 'python')
  (tmp_path / 'program.py').write_text(f"batches_of_texts = [['say red', 'tell 1']] * 2\n{program}")
  run('program.py')
  game, others = blocks(ROOT / 'docs' / 'guides' / 'matrix_games.md', 'python')
  (tmp_path / 'others.py').write_text(others)
  run('others.py')
  (tmp_path / 'game.py').write_text(game)
  assert 2e-5 < float(run('game.py')) < 4e-5
