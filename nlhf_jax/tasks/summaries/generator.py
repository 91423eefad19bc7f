"""An embedded task with a known, intransitive preference: posts, summaries and a panel of raters.

A post hides one fact of each of five kinds among filler words. A summary has a style, known by its
opening, and a quality: the key facts it covers less those it invents. Every rater values quality,
and ranks the three styles in an order of their own; the three orders form a Latin square. So each
rater is transitive and the population is not (arXiv 2312.00886, appendix C.2): among equally good
summaries a report beats a list, a list beats a question and a question beats a report, two votes to
one. All text is made here; nothing is read from a file.
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
LONGEST = 13  # words of a summary; a longer one counts as unfinished

# Rater -> style -> score: each row a permutation, each column too, so no style wins on average.
_SCORES = np.array([[2, 1, 0], [0, 2, 1], [1, 0, 2]], float)
_NO_STYLE = -1.0
_STYLE_WEIGHT, _QUALITY_WEIGHT, _TEMPERATURE = 2.0, 4.0, 0.25

# Writers tell a fact right with a chance that is their care, else leave it out or invent it. Those
# of the demonstrations have one care and favourite styles; those whom the panel compares vary in
# care, up to perfection, so that the judge has seen what the policies will become.
_DEMONSTRATION_CARE, _DEMONSTRATION_SHARES = 0.55, (0.35, 0.40, 0.25)
_COMPARED_CARE, _COMPARED_SHARES = (0.4, 1.0), (1, 1, 1)


class PostTexts(NamedTuple):
  """A post, an imperfect summary to learn from, and two more for the panel to compare."""

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


def write_summary(told: dict[str, str], style: str) -> str:
  """A summary that tells these facts, kind -> word, in this style; kinds not given are left out."""
  if style == 'list':
    body = ' ; '.join(told[kind] for kind in FACTS if kind in told)
  else:
    body = ' '.join(_PROSE[kind].format(told[kind]) for kind in FACTS if kind in told)
  return ' '.join(filter(None, [_OPENING[style], body, _ENDING[style]]))


def restyle(summary: str, style: str) -> str:
  """The same summary behind another style's opening: the other style and the same quality.

  A summary without a style keeps its first words, which may be facts, and so may get too long.
  """
  words = summary.split()
  return ' '.join([_OPENING[style], *(words if find_style(summary) == 'none' else words[2:])])


def find_style(summary: str) -> str:
  """One of `STYLES` by the first two words, else 'none'."""
  opening = ' '.join(summary.split()[:2])
  return next((style for style in STYLES if _OPENING[style] == opening), 'none')


def quality(post: str, summary: str) -> float:
  """(covered - invented) / 5, less 1 if too long; at most 1. A fact told twice is an invention."""
  words = summary.split()
  told = [word for word in words if word in KIND]
  covered = len(set(told) & set(key_facts(post).values()))
  return (2 * covered - len(told)) / len(FACTS) - (len(words) > LONGEST)


def rater_scores(post: str, summary: str) -> np.ndarray:
  """The score each of the three raters gives to a summary, [3]."""
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
  """P(left > right | post) of the population: the chance that a random rater prefers left, [n]."""
  return rater_preferences(posts, left, right).mean(axis=1)


def votes(
  random: np.random.Generator, posts: Sequence[str], left: Sequence[str], right: Sequence[str]
) -> np.ndarray:
  """The share of a panel that votes for left: one 0/1 vote sampled from each rater, [n]."""
  chance = rater_preferences(posts, left, right)
  return (random.random(chance.shape) < chance).mean(axis=1)


def examples(seed: int) -> Iterator[Example]:
  """An endless stream of examples, with what a panel of three says of the two compared."""
  random, stream = np.random.default_rng(seed), post_texts(seed)
  while True:
    some = list(itertools.islice(stream, 256))
    posts, summaries, left, right = zip(*some, strict=True)
    shares = votes(random, posts, left, right).tolist()
    for post, summary, one, other, share in zip(posts, summaries, left, right, shares, strict=True):
      yield Example(post, one, other, share, 3, summary)


def post_texts(seed: int) -> Iterator[PostTexts]:
  """An endless stream of examples."""
  random = Random(seed)

  def summary(true, care, shares):
    told = {}
    for kind, word in true.items():
      luck = random.random()
      if luck < care:
        told[kind] = word
      elif luck < (1 + care) / 2:
        told[kind] = random.choice(FACTS[kind])
    return write_summary(told, random.choices(STYLES, shares)[0])

  while True:
    true = {kind: random.choice(words) for kind, words in FACTS.items()}
    units = [_IN_POST[kind].format(word) for kind, word in true.items()]
    units += random.choices(FILLER, k=random.randint(9, 17))
    random.shuffle(units)
    demonstration = summary(true, _DEMONSTRATION_CARE, _DEMONSTRATION_SHARES)
    compared = (summary(true, random.uniform(*_COMPARED_CARE), _COMPARED_SHARES) for _ in range(2))
    yield PostTexts(' '.join(units), demonstration, *compared)
