"""The search of the documentation, as the JavaScript of mkdocs-material 9.8 does it."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lunr.builder import Builder
from lunr.index import Index
from lunr.stop_word_filter import WORDS, stop_word_filter


class SiteSearch(NamedTuple):
  """An index of the sections of a site, and the pattern of what separates words."""

  index: Index
  separator: str

  def best(self, question: str) -> str:
    """The location of the section that the search shows first."""
    words = [word for text in question.split() for word in self._expand(text)]
    terms = {term for word in words for term in re.split(r'[\s\-]+', word.lower())}
    scores = {}
    for match in self.index.search(' '.join(f'{word}*' for word in words)):
      matched = match['match_data'].metadata
      found = {term for term in terms if any(one.startswith(term) for one in matched)}
      share = len(found) / len(found | terms - set(WORDS))
      is_page = '#' not in match['ref']
      scores[match['ref']] = match['score'] * (1 + (is_page + share) ** 2)
    return max(scores, key=scores.get, default='')

  def _expand(self, text: str) -> list[str]:
    """What is searched for a word; of one with hyphens only the last part may be incomplete."""
    return [
      text[: part.start()] + piece + text[part.end() :]
      for part in re.finditer(r'[^\-]+', text)
      for piece in re.split(self.separator, part[0])
      if piece
    ]


def make_search(contents: Mapping[str, Any]) -> SiteSearch:
  """The search of a site, from its `search/search_index.json`."""
  settings = contents['config']
  assert settings['pipeline'] == ['stopWordFilter']  # no stemmer
  builder = Builder()
  builder.b(0)
  builder.ref('location')
  builder.pipeline.add(stop_word_filter)
  for field, options in settings['fields'].items():
    builder.field(field, options['boost'], _make_extractor(field, settings['separator']))
  for section in contents['docs']:
    builder.add(section, {'boost': section.get('boost', 1)})
  return SiteSearch(builder.build(), settings['separator'])


def _make_extractor(field: str, separator: str) -> Callable[[Mapping[str, Any]], list[str]]:
  """The words of a field of a section; tags of HTML separate words."""

  def extract(section):
    texts = section.get(field, '')
    joined = ' '.join(texts) if isinstance(texts, list) else texts
    return [word for word in re.split(f'<[^>]*>|{separator}', joined) if word]

  return extract
