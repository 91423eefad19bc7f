"""The report in a browser; skipped if there is no Chromium."""

import html
import re
import shutil
import subprocess

import numpy as np
import pytest

from nlhf_jax.evaluation import tournament
from nlhf_jax.reporting import tournament_page

BROWSER = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason='no Chromium; apt-get install chromium')
POLICIES = ['sft', 'nash_md', 'self_play']
PROMPTS = 805


def rendered(path, *options):
  """The elements of the page after its scripts have run without a message on the console."""
  ran = subprocess.run(
    [
      BROWSER,
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      f'--user-data-dir={path.parent}/browser',
      '--enable-logging=stderr',
      '--v=0',
      '--virtual-time-budget=10000',
      *options,
      '--dump-dom',
      f'file://{path}',
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert ran.returncode == 0, ran.stderr[-2000:]
  assert [line for line in ran.stderr.splitlines() if 'CONSOLE' in line] == []
  before, _, after = ran.stdout.partition('<script type="application/json"')
  return html.unescape(before + after.partition('</script>')[2].partition('<script>')[0])


def lines(count):
  """Records of a tournament in which each policy beats the one before it; 805 have 5 MB."""
  random = np.random.default_rng(0)
  rows = []
  for number in range(count):
    rate = random.beta(6, 4, size=(3, 3))
    rate = np.tril(rate, -1) + np.triu(1 - rate.T, 1) + 0.5 * np.eye(3)
    texts = {name: f'<b>{name}</b> & {number} ' + 'and yet ' * 235 for name in POLICIES}
    rows.append(
      {
        'prompt': f'Question {number}: what <i>now</i>?',
        'responses': texts,
        'preferences': {judge: rate.tolist() for judge in ('oracle', 'learned')},
      }
    )
  return rows


def section(page, name):
  """The text of a section."""
  found = re.search(f'<section id="{name}".*?</section>', page, re.DOTALL)
  assert found, f'no section {name}'
  return found[0]


def test_page_of_five_megabytes_is_complete(tmp_path):
  rows = lines(PROMPTS)
  path = tmp_path / 'report.html'
  tournament_page.write(path, {'name': 'whole', **tournament.summarise(rows)}, [], rows)
  assert path.stat().st_size > 4_700_000
  page = rendered(path)
  heat = section(page, 'win-rates')
  assert len(re.findall('<td class="cell (win|lose)', heat)) == 2 * 6  # both judges, off diagonal
  assert len(re.findall('<td class="cell self"', heat)) == 2 * 3
  ranking = section(page, 'ranking')
  places = [ranking.index(f'<code>{name}</code>') for name in POLICIES[::-1]]
  assert places == sorted(places)
  browser = section(page, 'responses')
  assert f'{PROMPTS} prompts, one response per policy' in browser
  assert f'1 of {PROMPTS}' in browser
  assert 'Question 0: what <i>now</i>?' in browser  # unescaped above: it is text on the page
  assert browser.count('<article') == 3


def test_page_of_benchmarks_alone_is_complete(tmp_path):
  table = {'title': 'MT-Bench', 'note': 'Of 10.', 'columns': ['average'], 'rows': [['one', 7.5]]}
  path = tmp_path / 'report.html'
  tournament_page.write(path, {'name': 'alone', 'policies': ['one'], 'benchmarks': [table]}, [], [])
  page = rendered(path)
  assert '7.50' in section(page, 'benchmarks')
  assert 'results of benchmarks' in page
  assert page.count('<section') == 1
