"""The rule for characters that no text should hold, for every reader and printer of texts.

Half of a surrogate pair cannot be written to a file or sent to a server, and a NUL ends a text for
some programs. Other control characters are content, but a terminal would obey them.
"""

import re

REPLACEMENT = '\ufffd'

# Control characters apart from tab and newline, and those that reorder the text after them.
_CONTROLS = re.compile('[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]')


def clean_text(text: str) -> str:
  """The text with U+FFFD in place of each lone surrogate and each NUL; pairs become characters."""
  units = text.encode('utf-16-le', 'surrogatepass')
  return units.decode('utf-16-le', 'replace').replace('\0', REPLACEMENT)


def printable(text: str) -> str:
  """A clean text for messages and terminals: controls but tab and newline are shown as `\\x1b`."""
  return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], clean_text(text))
