"""Every page as a reader sees it, wide and narrow, light and dark; skipped without Chromium."""

from pathlib import Path

import pytest

from tests.reporting import chromium
from tests.reporting.pages import PAGES

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(chromium.PROGRAM is None, reason=chromium.MISSING),
]
LEGIBILITY = (Path(__file__).parent / 'legibility.js').read_text(encoding='utf-8')
NARROW = ('sample_complexity',)  # pages whose tables fit 390 pixels
LEGIBLE = {'overlaps': [], 'faint': [], 'small': [], 'scroll': 0}


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
  opened = chromium.Browser(tmp_path_factory.mktemp('browser'))
  yield opened
  opened.close()


def look_at(browser, page, width, dark):
  """What a reader could not read on a page, which must have left no message on the console."""
  browser.messages.clear()
  browser.open(page, width, dark)
  seen = browser.evaluate(LEGIBILITY)
  assert browser.messages == []
  assert seen.pop('texts') > 50
  return seen


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1400, 390])
@pytest.mark.parametrize('name', PAGES)
def test_page_is_legible(browser, pages, name, width, dark):
  assert look_at(browser, pages[name], width, dark) == LEGIBLE


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1400, 390])
def test_page_of_a_run_is_legible(browser, toy_run, width, dark):
  assert look_at(browser, toy_run.folder / 'run' / 'report.html', width, dark) == LEGIBLE


@pytest.mark.parametrize('name', PAGES)
def test_first_column_stays_in_view(browser, pages, name):
  browser.open(pages[name], 390)
  moved = browser.evaluate("""(() => {
    for (const box of document.querySelectorAll('details')) box.open = true;
    const boxes = [...document.querySelectorAll('.scroll')].filter(
      (box) => box.querySelector('table') && box.scrollWidth > box.clientWidth);
    return boxes.map((box) => {
      box.scrollLeft = 60;
      return box.querySelector('tbody th[scope=row]').getBoundingClientRect().left -
        box.getBoundingClientRect().left;
    });
  })()""")
  assert moved or name in NARROW
  assert max(map(abs, moved), default=0) < 5


def test_what_is_pointed_at_is_explained(browser, pages):
  browser.open(pages['language'])
  shown = browser.evaluate("""['.heat td.cell.win', '.link.cyclic', '.term'].map((selector) => {
    const target = document.querySelector(selector);
    target.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
    const tip = document.getElementById('tip');
    return tip.hidden ? '' : tip.textContent;
  })""")
  cell, link, term = shown
  assert ' beats ' in cell
  assert 'interval' in cell
  assert link.endswith('part of a cycle') or 'part of a cycle;' in link
  assert len(term) > 20


def test_samples_are_filtered_and_compared(browser, pages):
  browser.open(pages['language'])
  cards = browser.evaluate("""(() => {
    const pick = document.querySelector('select[aria-label="Mark differences"]');
    pick.value = 'sft';
    pick.dispatchEvent(new Event('change'));
    return [...document.querySelectorAll('#responses .card')].map(
      (card) => [...card.querySelectorAll('ins')].map((word) => word.textContent));
  })()""")
  assert cards == [[], ['nash_md'], ['self_play'], ['a_policy_with_a_rather_long_name']]
  browser.open(pages['comparison'])
  left = browser.evaluate("""(() => {
    const field = document.querySelector('[data-filters=pairs]');
    field.value = 'question 11';
    field.dispatchEvent(new Event('input'));
    return [...document.getElementById('pairs').children].filter((row) => !row.hidden).length;
  })()""")
  assert left == 1
