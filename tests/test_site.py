"""The site of the documentation: it builds without a warning, and its search finds the answers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate

pytest.importorskip('mkdocs', reason='needs the extra [docs]')
pytest.importorskip('lunr', reason='needs the extra [test]')

ROOT = Path(__file__).parents[1]
# A newcomer's question -> the section that answers it.
ANSWERS = {
  'how do I use my reward function': 'how-do-i-use-my-own-reward-function-or-judge',
  'what is beta': 'what-is-beta-what-is-tau',
  'why is my run slow at first': 'why-is-my-run-slow-at-first',
  'does it resume': 'does-a-run-resume-after-it-was-stopped',
  'what format must my data have': 'how-do-i-use-my-own-data-to-train',
  'how do I load a GGUF file': 'how-do-i-fine-tune-a-pretrained-model-hub-folder-or-gguf-file',
  'which algorithm should I use': 'which-algorithm-should-i-use',
  'out of memory': 'what-do-i-do-when-it-runs-out-of-memory',
  'what is exploitability?': 'what-is-exploitability',
  'how do I export my model': 'how-do-i-export-a-model-to-transformers',
  'can I use PPO': 'can-i-use-ppo-grpo-or-dpo-as-in-trl',
  'how many rows do I need': 'how-many-rows-of-data-do-i-need',
  'where are my results': 'where-are-my-results',
  'how do I use several GPUs': 'how-do-i-use-gpus-or-tpus',
  'what is a judge': 'what-is-a-judge-and-which-are-available',
  'what is Nash-MD': 'what-is-nash-md',
}


@pytest.fixture(scope='module')
def site(tmp_path_factory):
  folder = tmp_path_factory.mktemp('site')
  build = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)]
  ended = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
  assert ended.returncode == 0, ended.stderr
  return folder


@pytest.fixture(scope='module')
def search(site):
  from tests.site_search import make_search  # needs lunr

  return make_search(json.loads((site / 'search' / 'search_index.json').read_text()))


def test_the_site_builds_without_a_warning(site):
  assert (site / 'settings' / 'index.html').exists()


@pytest.mark.parametrize('question', ANSWERS)
def test_the_first_result_answers_a_question(search, question):
  assert search.best(question) == f'questions/#{ANSWERS[question]}'


def test_every_setting_is_found_by_its_name(search):
  names = [name for name in generate.DESCRIPTIONS['settings'] if name.startswith('config.')]
  found = {name: search.best(name) for name in names}
  assert {name: place for name, place in found.items() if f'settings/#{name}' not in place} == {}


def test_metrics_and_functions_are_found_by_their_names(search):
  assert search.best('kl_to_reference').startswith('metrics/#kl_to_reference')
  assert search.best('gradient_norm_p90') == 'metrics/#gradient_norm_p90'
  assert search.best('make_train_step').startswith('api/library/')
  assert search.best('from_pretrained').startswith('api/library/')


def test_anchors_of_settings_and_metrics_are_unique(site):
  for page in ('settings', 'metrics'):
    anchors = re.findall(r' id="([^"]+)"', (site / page / 'index.html').read_text())
    assert sorted(anchors) == sorted(set(anchors)), page
