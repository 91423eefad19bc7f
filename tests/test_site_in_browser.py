"""The documentation's site as a reader sees it, served over localhost; skipped without Chromium."""

import json

import pytest

from tests import test_site
from tests.reporting import chromium
from tests.reporting.test_pages_in_browser import LEGIBLE, browser, look_at

__all__ = ['browser']
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(chromium.PROGRAM is None, reason=chromium.MISSING),
]
site = test_site.site

# What a reader sees first for a question: the page, and the section of it that is shown first.
SEARCH = """(async (question) => {
  const until = async (found) => {
    for (let tries = 0; tries < 600; tries++) {
      const value = found();
      if (value) return value;
      await new Promise((done) => setTimeout(done, 50));
    }
    throw new Error(`no answer to '${question}'`);
  };
  const field = document.querySelector('input[name=query]');
  const type = (text) => {
    field.value = text;
    for (const kind of ['input', 'keyup']) field.dispatchEvent(new Event(kind, {bubbles: true}));
  };
  const results = () => document.querySelector('.md-search-result__list > li');
  field.focus();
  type('');
  await until(() => !results());
  type(question);
  const links = [...(await until(results)).querySelectorAll('a')].map((link) => link.href);
  return links.find((link) => link.includes('#')) || links[0];
})"""


@pytest.fixture(scope='module')
def address(site):
  """The address of the served site."""
  with chromium.serve(site) as address:
    yield address


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [1400, 390])
def test_landing_page_is_legible(browser, address, width, dark):
  # The site remembers the scheme it was seen in, also as it changes on a page that is open.
  browser.open('about:blank')
  browser.call('Storage.clearDataForOrigin', origin=address, storageTypes='local_storage')
  assert look_at(browser, address, width, dark) == LEGIBLE
  scheme = browser.evaluate('document.body.dataset.mdColorScheme')
  assert scheme == ('slate' if dark else 'default')


def test_search_box_shows_the_answers_first(browser, address):
  browser.open(address)
  found = {
    question: browser.evaluate(f'{SEARCH}({json.dumps(question)})')
    for question in test_site.ANSWERS
  }
  expected = {
    question: f'{address}questions/#{answer}' for question, answer in test_site.ANSWERS.items()
  }
  assert found == expected
