"""An embedded task with a known, intransitive preference: posts, summaries and a panel of raters.

A post hides one fact of each of five kinds among filler words. A summary has a style, determined by
its opening, and a quality: the key facts it covers minus those it invents. Every rater values
quality and has an order of the three styles; the three orders form a Latin square. So each rater is
transitive and the population is not (arXiv 2312.00886, appendix C.2): among equally good summaries,
a report beats a list, a list beats a question and a question beats a report, two votes to one. All
texts are generated here; no file is read.
"""

import itertools
from collections.abc import Iterator, Sequence
from random import Random
from typing import NamedTuple

import numpy as np

from nlhf_jax.data.schemas import Example

STYLES = ('report', 'list', 'question')

FACTS = {
  'who': 'baker nurse sailor farmer teacher painter pilot judge clown miner tailor monk waiter '
  'singer hunter guard',
  'did': 'sold lost stole found broke fixed hid bought dropped burned cleaned carried borrowed '
  'chased threw kept',
  'what': 'clock violin ladder lamp map bicycle kettle hat mirror drum letter basket rope chair '
  'ring book',
  'where': 'harbour market school church station bridge garden museum castle library beach farm '
  'hotel theatre mill bank',
  'when': 'monday tuesday wednesday thursday friday saturday sunday noon dawn dusk midnight easter '
  'spring summer autumn winter',
}
FACTS = {kind: tuple(words.split()) for kind, words in FACTS.items()}
KIND = {word: kind for kind, words in FACTS.items() for word in words}

FILLER = (
  'so um well honestly anyway like basically actually maybe really just then also still again '
  'kinda guess think know said heard told sorry please thanks everyone folks long story advice '
  'help weird funny wow yes no oh right sure okay'
)
FILLER = tuple(FILLER.split())

_IN_POST = {'who': '{}', 'did': '{}', 'what': '{}', 'where': 'at {}', 'when': 'around {}'}
_OPENING = {'report': 'in short', 'list': 'key points', 'question': 'guess what'}
_PROSE = {'who': 'the {}', 'did': '{}', 'what': 'the {}', 'where': 'at {}', 'when': '{}'}
_ENDING = {'report': '.', 'list': '', 'question': '?'}
MAX_WORDS = 13  # of a summary; a longer one counts as unfinished

# Rater -> style -> score: each row a permutation, each column too, so no style wins on average.
_SCORES = np.array([[2, 1, 0], [0, 2, 1], [1, 0, 2]], float)
_NO_STYLE = -1.0
_STYLE_WEIGHT, _QUALITY_WEIGHT, _TEMPERATURE = 2.0, 4.0, 0.25

# Writers state a fact correctly with a probability called their care, and otherwise leave it out or
# invent it. Writers of demonstrations have one care and prefer some styles. The care of the writers
# whom the panel compares varies up to 1, so that the judge's data include what policies may become.
_DEMONSTRATION_CARE, _DEMONSTRATION_SHARES = 0.55, (0.35, 0.40, 0.25)
_COMPARED_CARE, _COMPARED_SHARES = (0.4, 1.0), (1, 1, 1)


class PostTexts(NamedTuple):
  """A post, an imperfect summary as a demonstration, and two more for the panel to compare."""

  post: str
  summary: str
  left: str
  right: str


def vocabulary() -> list[str]:
  """Every word of a post or a summary."""
  frames = [*_IN_POST.values(), *_OPENING.values(), *_PROSE.values(), ';', *_ENDING.values()]
  return [*KIND, *FILLER, *' '.join(frames).replace('{}', '').split()]


def key_facts(post: str) -> dict[str, str]:
  """The key facts of a post, kind -> word."""
  return {KIND[word]: word for word in post.split() if word in KIND}


def write_summary(facts: dict[str, str], style: str) -> str:
  """A summary that states these facts, kind -> word, in this style; missing kinds are left out."""
  if style == 'list':
    body = ' ; '.join(facts[kind] for kind in FACTS if kind in facts)
  else:
    body = ' '.join(_PROSE[kind].format(facts[kind]) for kind in FACTS if kind in facts)
  return ' '.join(filter(None, [_OPENING[style], body, _ENDING[style]]))


def restyle(summary: str, style: str) -> str:
  """The summary with another style's opening: that style, and the same quality.

  A summary without a style keeps all its words, which may be facts, and so may become too long.
  """
  words = summary.split()
  return ' '.join([_OPENING[style], *(words if find_style(summary) == 'none' else words[2:])])


def find_style(summary: str) -> str:
  """The style, one of `STYLES` by the first two words, or 'none'."""
  opening = ' '.join(summary.split()[:2])
  return next((style for style in STYLES if _OPENING[style] == opening), 'none')


def quality(post: str, summary: str) -> float:
  """(covered - invented) / 5, minus 1 if too long; at most 1. Repeated facts count as invented."""
  words = summary.split()
  stated = [word for word in words if word in KIND]
  covered = len(set(stated) & set(key_facts(post).values()))
  return (2 * covered - len(stated)) / len(FACTS) - (len(words) > MAX_WORDS)


def rater_scores(post: str, summary: str) -> np.ndarray:
  """Each rater's score of a summary, [3]."""
  style = find_style(summary)
  taste = np.full(3, _NO_STYLE) if style == 'none' else _SCORES[:, STYLES.index(style)]
  return _STYLE_WEIGHT * taste + _QUALITY_WEIGHT * quality(post, summary)


def rater_preferences(
  posts: Sequence[str], left: Sequence[str], right: Sequence[str]
) -> np.ndarray:
  """Each rater's P(left > right | post), [n, 3]."""
  difference = np.array(
    [
      rater_scores(post, one) - rater_scores(post, other)
      for post, one, other in zip(posts, left, right, strict=True)
    ]
  )
  return 1 / (1 + np.exp(-difference / _TEMPERATURE))


def preference(posts: Sequence[str], left: Sequence[str], right: Sequence[str]) -> np.ndarray:
  """P(left > right | post) of the population: that of a random rater preferring left, [n]."""
  return rater_preferences(posts, left, right).mean(axis=1)


def votes(
  random: np.random.Generator, posts: Sequence[str], left: Sequence[str], right: Sequence[str]
) -> np.ndarray:
  """The share of a panel that votes for left: one 0/1 vote sampled from each rater, [n]."""
  chance = rater_preferences(posts, left, right)
  return (random.random(chance.shape) < chance).mean(axis=1)


def examples(seed: int) -> Iterator[Example]:
  """Yields examples without end, with one vote of each of three raters on the two summaries."""
  random, stream = np.random.default_rng(seed), post_texts(seed)
  while True:
    some = list(itertools.islice(stream, 256))
    posts, summaries, left, right = zip(*some, strict=True)
    shares = votes(random, posts, left, right).tolist()
    for post, summary, one, other, share in zip(posts, summaries, left, right, shares, strict=True):
      yield Example(post, one, other, share, 3, summary)


def post_texts(seed: int) -> Iterator[PostTexts]:
  """Yields posts and their summaries without end."""
  random = Random(seed)

  def summary(true, care, shares):
    facts = {}
    for kind, word in true.items():
      chance = random.random()
      if chance < care:
        facts[kind] = word
      elif chance < (1 + care) / 2:
        facts[kind] = random.choice(FACTS[kind])
    return write_summary(facts, random.choices(STYLES, shares)[0])

  while True:
    true = {kind: random.choice(words) for kind, words in FACTS.items()}
    units = [_IN_POST[kind].format(word) for kind, word in true.items()]
    units += random.choices(FILLER, k=random.randint(9, 17))
    random.shuffle(units)
    demonstration = summary(true, _DEMONSTRATION_CARE, _DEMONSTRATION_SHARES)
    compared = (summary(true, random.uniform(*_COMPARED_CARE), _COMPARED_SHARES) for _ in range(2))
    yield PostTexts(' '.join(units), demonstration, *compared)
