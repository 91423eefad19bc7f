"""Texts from files: what cannot be written or would be obeyed by a terminal."""

import pytest

from nlhf_jax.storage.texts import clean_text, printable


@pytest.mark.parametrize(
  ('text', 'clean'),
  [
    ('a\ud800', 'a\ufffd'),
    ('\udc00\ud800b', '\ufffd\ufffdb'),
    ('\ud83d\ude00', '\U0001f600'),
    ('\ud83d\ud83d\ude00', '\ufffd\U0001f600'),
    ('a\0b', 'a\ufffdb'),
    ('\ufeffé 漢字 \U0001f600\t\r\n\x1b[0m', '\ufeffé 漢字 \U0001f600\t\r\n\x1b[0m'),
    ('', ''),
  ],
)
def test_only_surrogates_and_nul_are_replaced(text, clean):
  assert clean_text(text) == clean
  clean.encode()


@pytest.mark.parametrize(
  ('text', 'shown'),
  [
    ('\x1b[2Jgone', '\\x1b[2Jgone'),
    ('a\rb\x07\x7f', 'a\\rb\\x07\\x7f'),
    ('\x9b31m', '\\x9b31m'),
    ('abc\u202efdp', 'abc\\u202efdp'),
    ('a\tb\nc é\U0001f600', 'a\tb\nc é\U0001f600'),
    ('a\ud800\0', 'a\ufffd\ufffd'),
  ],
)
def test_controls_are_shown(text, shown):
  assert printable(text) == shown
  assert printable(shown) == shown
