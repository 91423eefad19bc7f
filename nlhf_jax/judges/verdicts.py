"""Readers of what a language model writes as a judge: a choice, a rating, two ratings, or a label.

All readers share one rule. Thinking is no part of the answer: what counts stands after it, and an
answer whose thinking does not end has no verdict. Of several verdicts the last one counts. Those
that the text only mentions do not: after "not", before "if", and in a list of the choices ("[[A]],
[[B]] or [[C]]"). An answer that was cut has a verdict only if it ends with one. If the last verdict
is none of the choices, such as a rating off the scale, the answer is unusable.

`FIRST_MATCH` holds FastChat's own readers, for figures that are to be compared with published ones.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple


class Answer(NamedTuple):
  """The answer of an endpoint.

  `first` holds the log-probabilities (nats) of tokens at the first position whose token has a
  letter or digit: the token of the answer, then the most likely ones. It is empty if the endpoint
  returns none. `cut` tells whether the endpoint stopped the model before its end.
  """

  text: str
  first: Mapping[str, float] = MappingProxyType({})
  prompt_tokens: int = 0
  response_tokens: int = 0
  cut: bool = False


class Mention(NamedTuple):
  """A verdict that the text names at [start, end); `value` is None if it is not a choice."""

  start: int
  end: int
  value: int | float | None


# P(left > right): 1, 0, 1/2 or between; or a rating. None: the answer has no verdict.
Read = Callable[[Answer], int | float | None]

SCALE = (1, 10)  # of ratings
TIE = 0.1  # ratings that differ by at most this are a tie

_TAG = '(?:think|thinking|thoughts?|reasoning|reflection|analysis)'
THINKING = re.compile(
  rf'<\s*{_TAG}\s*>|\[THINK\]|◁think▷|<\|begin_of_thought\|>'
  r'|<\|channel\|>\s*(?:analysis|commentary)',
  re.IGNORECASE,
)
THOUGHT = re.compile(
  rf'<\s*/\s*{_TAG}\s*>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>'
  r'|<\|channel\|>\s*final\s*<\|message\|>',
  re.IGNORECASE,
)
CONTROL_TOKEN = re.compile(r'<\|\w{1,20}\|>|</s>')

_JOIN = r'(?:or|and|to|vs|versus|out of)\b'
LISTED = re.compile(
  rf'[^\w\n]*(?:[,/|\u2013-]|\b{_JOIN})[^\w\n]*(?:{_JOIN})?[^\w\n]*', re.IGNORECASE
)
NEGATED = re.compile(
  r"(?:\bnot|n['\u2019]t|\bnever|\bnor|\bneither|\binstead of)"
  r'[^\w.,:;!?\n]+(?:\w+[^\w.,:;!?\n]+)?$'
  r'|\b(?:than|over|beats)[^\w.,:;!?\n]+$',
  re.IGNORECASE,
)
CONDITIONAL = re.compile(r'[\s"\'\u201d\u2019`*]*(?:if|when|means|for a tie)\b', re.IGNORECASE)

DOUBLE = re.compile(r'\[\[([^\[\]\n]{1,40})\]\]')
RATED = re.compile(r'\b(?:rating|score|grade)s?\b[\s:=*`]*\[([-0-9.,\s]{1,20})\](?![\](\[])', re.I)
ALONE = re.compile(r'^[\s>*`]*\[([-0-9.,\s]{1,20})\][\s*`.]*$', re.MULTILINE)
NUMBER = re.compile(r'-?[0-9]{1,9}(?:\.[0-9]{1,9})?')
BETTER = re.compile(r'([ab])\s*(>{1,3}|<{1,3}|={1,2}|≫|≪|≈|~)\s*([ab])')


def final_part(text: str) -> str:
  """What stands after the thinking; empty if the thinking does not end."""
  part = THOUGHT.split(text)[-1]
  return '' if THINKING.search(part) else CONTROL_TOKEN.sub(' ', part)


def last_verdict(text: str, mentions: Sequence[Mention], cut: bool) -> int | float | None:
  """The value of the last mention that is a verdict; None without one.

  Args:
    text: that the mentions refer to.
    mentions: in the order of the text.
    cut: whether the text was cut; then nothing may follow the verdict.
  """
  listed = set()
  for number in range(1, len(mentions)):
    before, after = mentions[number - 1], mentions[number]
    if before.value != after.value and LISTED.fullmatch(text[before.end : after.start]):
      listed |= {number - 1, number}
  for number in reversed(range(len(mentions))):
    start, end, value = mentions[number]
    negated = NEGATED.search(text[max(0, start - 40) : start])
    if number not in listed and not negated and not CONDITIONAL.match(text, end):
      return None if cut and re.search(r'[\w\[<]', text[end:]) else value
  return None


# --- Choices and ratings in brackets ---


def read_choice(answer: Answer) -> int | float | None:
  """MT-Bench's verdict `[[A]]`, `[[B]]` or `[[C]]`, a tie; or Arena-Hard's `[[A>>B]]`, `[[A=B]]`.

  The letter or `tie` alone is a verdict, too. P(A > B), or None.
  """
  text = _unescape(final_part(answer.text))
  mentions = [
    Mention(*found.span(), _choice(found[1]))
    for found in DOUBLE.finditer(text)
    if re.match(r'\W*[A-Za-z]', found[1])
  ]
  return last_verdict(text, mentions, answer.cut) if mentions else _choice(text)


def _choice(text: str) -> int | float | None:
  words = text.strip(' \t\r\n*_`"\'“”.:').lower()
  words = re.sub(r'^(?:assistant|answer|response|model)\s+', '', words)
  compared = BETTER.fullmatch(words)
  if not compared:
    return {'a': 1.0, 'b': 0.0, 'c': 0.5, 'tie': 0.5}.get(words)
  first, sign, second = compared.groups()
  if first == second:
    return None
  if sign[0] in '=≈~':
    return 0.5
  return float((first == 'a') == (sign[0] in '>≫'))


def read_rating(answer: Answer) -> int | float | None:
  """MT-Bench's rating `[[8.5]]` or `Rating: [8]`, on the scale `SCALE`, or None."""
  return _read_numbers(answer, 1, lambda ratings: ratings[0])


def read_two_ratings(answer: Answer) -> int | float | None:
  """P(A > B) from MT-Bench's two ratings `[[8,7.5]]`, on the scale `SCALE`, or None."""
  return _read_numbers(answer, 2, lambda ratings: _compare(*ratings))


def _read_numbers(
  answer: Answer, count: int, convert: Callable[[list], int | float]
) -> int | float | None:
  text = _unescape(final_part(answer.text))
  found = [it for it in DOUBLE.finditer(text) if re.search('[0-9]', it[1])]
  found = found or sorted([*RATED.finditer(text), *ALONE.finditer(text)], key=lambda it: it.end())
  mentions = []
  for match in found:
    parts = [part.strip(' *_`') for part in match[1].split(',')]
    ratings = [_number(part) for part in parts if NUMBER.fullmatch(part)]
    usable = len(ratings) == len(parts) == count and all(
      SCALE[0] <= rating <= SCALE[1] for rating in ratings
    )
    mentions.append(Mention(*match.span(), convert(ratings) if usable else None))
  return last_verdict(text, mentions, answer.cut)


def _number(digits: str) -> int | float:
  return float(digits) if '.' in digits else int(digits)


def _compare(first: int | float, second: int | float) -> float:
  return 0.5 if abs(first - second) <= TIE else float(first > second)


def _unescape(text: str) -> str:
  """The text without the backslashes of Markdown and LaTeX before brackets."""
  return re.sub(r'\\([\[\]])', r'\1', text)


# FastChat's `output_format` of a prompt -> the reader of its answers.
CHOICES: Mapping[str, Read] = {'[[A]]': read_choice, '[[rating_a,rating_b]]': read_two_ratings}
RATINGS: Mapping[str, Read] = {'[[rating]]': read_rating}


# --- FastChat's readers: the first match in the whole text ---


def _first_rating(answer: Answer) -> int | float | None:
  digits = r'(\d+\.?\d*)'
  found = re.search(rf'\[\[{digits}\]\]', answer.text) or re.search(rf'\[{digits}\]', answer.text)
  return _number(found[1]) if found else None


def _first_choice(answer: Answer) -> int | float | None:
  choices = {'[[A]]': 1.0, '[[B]]': 0.0, '[[C]]': 0.5}
  return next((value for choice, value in choices.items() if choice in answer.text), None)


def _first_two_ratings(answer: Answer) -> int | float | None:
  digits = r'(\d+\.?\d*),\s?(\d+\.?\d*)'
  found = re.search(rf'\[\[{digits}\]\]', answer.text) or re.search(rf'\[{digits}\]', answer.text)
  return _compare(*map(_number, found.groups())) if found else None


FIRST_MATCH: Mapping[str, Read] = {
  '[[rating]]': _first_rating,
  '[[A]]': _first_choice,
  '[[rating_a,rating_b]]': _first_two_ratings,
}
# The setting `config.mt_bench.reading` -> readers by `output_format`.
READINGS = {'last': RATINGS | CHOICES, 'fastchat': FIRST_MATCH}


# --- Labels: the answer "1", "2" or "tie" to the template of two summaries ---

LABELS = {'1': 1.0, '2': 0.0, 'tie': 0.5}
# A line that consists of these words and a label: "Preferred Summary - 1", "My answer is: 2".
_WORDS = (
  "i|it|it's|is|a|the|my|so|would|overall|therefore|thus|hence|final|preferred|better|best|winning|"
  'winner|answer|verdict|choice|preference|choose|prefer|pick|select|summary|number|option|one'
)
LABEL_LINE = re.compile(
  rf'^[^\w\n]*(?:(?:{_WORDS})[^\w\n]+)*(1|2|tie)(?!\w)[^\w\n?:]*$', re.IGNORECASE | re.MULTILINE
)
WORD = re.compile(r'\w')
DECIDING = re.compile(r'prefer|better|best|winn|answer|verdict|choice|choose|pick|select', re.I)
CLAUSE = re.compile(r'[^.!?\n;:,]+(?!\s*\?)')
_DEGREE = r'(?:(?:clearly|much|far|slightly|definitely|overall|also|by|the|a|bit|more)\s+)*'
_GOOD = r'(?:better|best|preferred|preferable|superior|stronger|winner)'
_END = r'(?=\s*$|\s+(?:than|because|as|since|overall|due|and|but|here)\b)'
LABEL_CLAUSES = (
  re.compile(
    rf'\bsummary\s+(1|2)\s+is\s+{_DEGREE}{_GOOD}(?:\s+(?:summary|one|choice|option))?{_END}', re.I
  ),
  re.compile(
    r'\bI\s+(?:would\s+|strongly\s+)*(?:prefer|choose|pick|select)\s+summary\s+(1|2)\b', re.I
  ),
  re.compile(rf'\b{_GOOD}\s+(?:summary|one)\s+is\s+(?:summary\s+)?(?:number\s+)?(1|2)\b', re.I),
)
# "Preferred Summary - 1, because it is short"
STATED = re.compile(
  r'\b(?:(?:preferred|better|best)(?:\s+summary)?|answer|verdict|choice|preference|winner)\s*'
  r'(?:is\s*)?[-:=\u2013\u2014]\s*(?:summary\s+)?(1|2|tie)(?![\w/])(?!\s*(?:or|and)\b)',
  re.IGNORECASE,
)
NEGATED_CLAUSE = re.compile(
  r'\b(?:not|cannot|never|neither|nor|if|whether|which|when|unless)\b'
  r"|n['\u2019]t\b|^\s*that\b",
  re.IGNORECASE,
)


def read_label(answer: Answer) -> int | float | None:
  """P(1 > 2) from a label, alone or in a sentence such as "Summary 1 is better.", or None.

  The log-probabilities of the labels count only where the label is the whole answer: the first
  token of another answer may be the number of a list.
  """
  text = re.sub(r'[*_`"“”#]', ' ', final_part(answer.text))
  mentions = sorted(_label_mentions(text), key=lambda mention: mention.end)
  verdict = last_verdict(text, mentions, answer.cut)
  label = strip_token(answer.text)
  if verdict is None or label not in LABELS or label != _first_token(answer):
    return verdict
  probability = probability_from_first_token(LABELS, answer.first)
  return verdict if probability is None else probability


def _label_mentions(text: str) -> Iterator[Mention]:
  lines = list(LABEL_LINE.finditer(text))
  # Lines of a label alone that differ are headings, "Summary 1" and "Summary 2".
  bare = {found[1].lower() for found in lines if not DECIDING.search(found[0])}
  for found in lines:
    ends = not WORD.search(text, found.end())
    if len(bare) < 2 or ends or DECIDING.search(found[0]):
      yield Mention(found.start(1), found.end(1), LABELS[found[1].lower()])
  for found in STATED.finditer(text):
    yield Mention(found.start(1), found.end(1), LABELS[found[1].lower()])
  for clause in CLAUSE.finditer(text):
    for pattern in LABEL_CLAUSES:
      for found in pattern.finditer(clause[0]):
        if not NEGATED_CLAUSE.search(clause[0], 0, found.start()):
          start, end = (clause.start() + place for place in found.span())
          yield Mention(start, end, LABELS[found[1]])


def _first_token(answer: Answer) -> str:
  return strip_token(next(iter(answer.first), ''))


def strip_token(token: str) -> str:
  """The token in lower case, without surrounding whitespace and punctuation."""
  return re.sub(r'^[\W_]+|[\W_]+$', '', token).lower()


def probability_from_first_token(
  labels: Mapping[str, float], first: Mapping[str, float]
) -> int | float | None:
  """P = sum_l p(l) labels[l] / sum_l p(l), with p(l) summed over all spellings of a label.

  None if the labels have less than half of the probability: the answer does not begin with one.
  """
  mass = dict.fromkeys(labels, 0.0)
  for token, log_prob in first.items():
    if strip_token(token) in mass:
      mass[strip_token(token)] += math.exp(log_prob)
  total = sum(mass.values())
  if total < 0.5:
    return None
  return sum(p * labels[label] for label, p in mass.items()) / total
