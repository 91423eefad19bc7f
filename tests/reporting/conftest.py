"""What tests of pages share."""

import pytest

from tests.reporting.pages import PAGES


@pytest.fixture(scope='session')
def pages(tmp_path_factory):
  """Name -> path of a page of every kind."""
  written = {}
  for name, write in PAGES.items():
    written[name] = tmp_path_factory.mktemp(name) / 'report.html'
    write(written[name])
  return written
