"""The task of asking for a missing fact in words: posts, a user who tells, raters, and a corpus.

A post says that something takes place on another day, and hints at the day or does not. The policy
leaves the day out, states one, or asks; the user then tells it, and the policy states it. The
raters, the chances and the cycle are those of `tasks.clarify`, so that on posts of one hint this is
the game of that module, for the policies that write what it has tokens for.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from nlhf_jax.data import dataset
from nlhf_jax.data.chat_templates import SPACED_TURNS
from nlhf_jax.data.conversations import Message
from nlhf_jax.data.dataset import Corpus
from nlhf_jax.data.schemas import Example
from nlhf_jax.errors import UserError
from nlhf_jax.games import matrices
from nlhf_jax.tasks.clarify import OUTCOMES, SCORES
from nlhf_jax.tasks.summaries.corpus import SyntheticData

DAYS = ('monday', 'tuesday', 'wednesday', 'thursday')
WITHOUT, STATED, ASK, TOLD = 'it has moved .', 'it is on {} .', 'which day ?', 'on {}'
LIKELY = 0.85  # the chance of a day that is hinted at
HINTS = ('i forgot the day', *(f'i think it is {day}' for day in DAYS))
SUBJECTS = (
  *('meeting', 'review', 'lecture', 'concert', 'dinner', 'match', 'wedding', 'exam', 'parade'),
  *('auction', 'debate', 'trial', 'opening', 'lesson', 'rehearsal', 'picnic', 'reunion'),
  *('interview', 'hearing', 'race'),
)
PLACES = (
  *('library', 'harbour', 'market', 'school', 'station', 'garden', 'museum', 'castle', 'theatre'),
  *('mill', 'bank', 'farm', 'church', 'hotel', 'bridge', 'park', 'office', 'studio', 'hall'),
  'gallery',
)
WHO = ('my boss', 'our teacher', 'the mayor', 'my sister', 'a friend', 'the club', 'my aunt')
POST = '{} says the {} at the {} has another day . {}'
MOST = len(SUBJECTS) * len(PLACES) * len(WHO) * len(HINTS)  # posts

# The three kinds of raters; each minds text of no other outcome more than all others.
OTHER = len(OUTCOMES)
RATERS = np.array([[*scores, -1] for scores in SCORES.values()], float)
PREFERENCES = matrices.population(RATERS)

# Shares of demonstrations that leave the day out, state one by its chance, and ask; and of sides of
# the comparisons, which also state a day at random.
DEMONSTRATED, COMPARED = (0.4, 0.3, 0.3), (0.3, 0.35, 0.35)


# --- Posts, the user, and the raters ---


def day_chances(post: str) -> Float[np.ndarray, '4']:
  """The chance of each day, by the hint of a post."""
  hinted = [post.rstrip().endswith(day) for day in DAYS]
  if not any(hinted):
    return np.full(len(DAYS), 1 / len(DAYS))
  return np.where(hinted, LIKELY, (1 - LIKELY) / (len(DAYS) - 1))


def tell(
  conversations: Sequence[Sequence[Mapping[str, str]]], seeds: Sequence[int]
) -> list[str | None]:
  """The user: tells the day to whoever asks, and ends the conversation otherwise."""

  def reply(conversation, seed):
    if conversation[-1]['content'].strip() != ASK:
      return None
    chances = day_chances(conversation[0]['content'])
    return TOLD.format(np.random.default_rng(seed).choice(DAYS, p=chances))

  return list(map(reply, conversations, seeds))


def outcome_of(post: str, transcript: str) -> Float[np.ndarray, '7']:
  """The chance of every outcome of a conversation; one who guesses is right by chance."""
  turns = transcript.split('\n\nUser: ')[:2]
  first, chances = turns[0].strip(), np.zeros(OTHER + 1)
  if first != ASK or len(turns) == 1:
    chances[:2], chances[2] = _answer(first, day_chances(post))
    return _others_last(chances)
  told, _, second = turns[1].partition('\n\nAssistant: ')
  true = np.array([told.strip() == TOLD.format(day) for day in DAYS], float)
  chances[3:5], chances[5] = _answer(second.strip(), true)
  return _others_last(chances)


def _answer(text: str, chances: np.ndarray) -> tuple[np.ndarray, float]:
  """The chances that an answer leaves the day out or is right, and that it is wrong."""
  stated = [text == STATED.format(day) for day in DAYS]
  if not any(stated):
    return np.array([text == WITHOUT, 0.0], float), 0.0
  right = float(chances @ stated)
  return np.array([0.0, right]), 1 - right


def _others_last(chances: np.ndarray) -> np.ndarray:
  chances[OTHER] = 1 - chances.sum()
  return chances


def preference(
  posts: Sequence[str], left: Sequence[str], right: Sequence[str]
) -> Float[np.ndarray, 'n']:
  """P(left > right) of n pairs of transcripts, by a random rater."""
  ours, theirs = (
    np.stack([outcome_of(post, text) for post, text in zip(posts, side, strict=True)])
    for side in (left, right)
  )
  return 0.5 + np.einsum('no,op,np->n', ours, PREFERENCES, theirs)


def measure(records: Sequence[Mapping]) -> dict[str, dict[str, float]]:
  """What policies do on posts with a hint and without one, by the records of a tournament.

  Returns:
    name -> policy -> number: the share that asks and then answers, and the exploitability, which is
    P - 1/2 of the best of all conversations that see whether there is a hint.
  """
  found: dict[str, dict[str, float]] = {}
  for kind, hinted in (('with a hint', True), ('without a hint', False)):
    group = [record for record in records if record['prompt'].endswith(DAYS) == hinted]
    for policy in group[0]['responses'] if group else ():
      outcomes = [outcome_of(it['prompt'], it['responses'][policy]) for it in group]
      mean = np.mean(outcomes, axis=0)
      found.setdefault(f'asks {kind}', {})[policy] = float(mean[3:6].sum())
      gap = exploitability(mean, day_chances(group[0]['prompt']))
      found.setdefault(f'exploitability {kind}', {})[policy] = gap
  return found


def exploitability(outcomes: Float[np.ndarray, '7'], chances: Float[np.ndarray, '4']) -> float:
  """The largest payoff of a conversation against one with these chances of outcomes."""
  gains = PREFERENCES @ outcomes
  stated = chances * gains[1] + (1 - chances) * gains[2]
  return float(max(gains[0], stated.max(), gains[3:6].max()))


# --- Examples ---


def posts(seed: int) -> Iterator[str]:
  """All posts, in random order."""
  parts = list(itertools.product(WHO, SUBJECTS, PLACES, HINTS))
  for place in np.random.default_rng(seed).permutation(len(parts)):
    yield POST.format(*parts[place])


def vocabulary() -> list[str]:
  """Every word of a post or a conversation."""
  frames = [POST, WITHOUT, STATED, ASK, TOLD, *HINTS, *WHO, *DAYS]
  return [*SUBJECTS, *PLACES, *' '.join(frames).replace('{}', '').split()]


def examples(seed: int, count: int) -> Iterator[Example]:
  """Yields the examples of `count` posts: for each a comparison with a demonstration, which is the
  first turn and, where that asks, another demonstration of the second."""
  random = np.random.default_rng([seed, 1])
  for post in itertools.islice(posts(seed), count):
    shown = write_conversation(random, post, DEMONSTRATED, 0.0)
    left = right = write_conversation(random, post, COMPARED, 0.3)
    while right == left:
      right = write_conversation(random, post, COMPARED, 0.3)
    chance = float(preference([post], [transcript(left)], [transcript(right)])[0])
    yield Example(post, left, right, random.binomial(3, chance) / 3, 3, shown[0])
    if len(shown) > 1:
      question = Message('user', post), Message('assistant', shown[0]), Message('user', shown[1])
      yield Example(question, demonstration=shown[2])


def write_conversation(
  random: np.random.Generator, post: str, shares: Sequence[float], careless: float
) -> tuple[str, ...]:
  """The turns of a conversation: the policy's or, if it asks, the policy's, the user's, the
  policy's.

  Args:
    random: draws it.
    post: the prompt.
    shares: of leaving the day out, of stating one, and of asking.
    careless: the chance that a day is stated at random.
  """
  kind = random.choice(3, p=shares)
  if kind == 0:
    return (WITHOUT,)
  day = random.choice(DAYS, p=day_chances(post))
  stated = random.choice(DAYS) if random.random() < careless else day
  answer = STATED.format(stated)
  return (answer,) if kind == 1 else (ASK, TOLD.format(day), answer)


def transcript(turns: Sequence[str]) -> str:
  """A conversation as judges of texts read it."""
  first, *rest = turns
  leads = itertools.cycle(('\n\nUser: ', '\n\nAssistant: '))
  return first + ''.join(lead + text for lead, text in zip(leads, rest, strict=False))


# --- The corpus ---


def make_clarify_corpus(data: SyntheticData, seed: int, pretrained: str, folder: Path) -> Corpus:
  """The task as a corpus, with its oracle.

  Comparisons are of whole conversations, for judges; prompts are posts alone.

  Args:
    data: how many posts, and how long texts may be.
    seed: seed of the texts and the votes.
    pretrained: model whose tokenizer is loaded instead of training one, if any.
    folder: where tokenised texts are stored.

  Raises:
    UserError: if a length is too short, there are not as many posts, or the tokenizer cannot be
      used.
  """
  count = data.posts + data.held_out
  if count > MOST:
    raise UserError(
      f'config.data.posts={data.posts} and config.data.held_out={data.held_out}: the task has only '
      f'{MOST} posts; lower them.'
    )

  def entries():
    return ((0, number, record) for number, record in enumerate(examples(seed, count), start=1))

  what = {
    'source': 'clarify',
    'seed': seed,
    'posts': count,
    'code': dataset.code_digest(Path(__file__).parent),
  }
  refuse = lambda file, number, problem, remedy: _refuse(pretrained, problem)
  tokenizer, tokenised = dataset.tokenise(
    folder, what, entries, vocabulary, data.vocabulary, pretrained, refuse, SPACED_TURNS
  )
  records = tokenised.records
  opens = records['left'] >= 0
  turns = tokenised.responses.lengths(records['demonstration'])
  _check_length('prompt_length', data.prompt_length, tokenised.prompts.lengths(records['prompt']))
  _check_length('response_length', data.response_length, turns)
  longest = max(int(tokenised.responses.lengths(records[side]).max()) for side in ('left', 'right'))
  # Posts come in their order, each with its examples.
  tested = np.cumsum(opens) > data.posts
  shown = dataset.make_splits(
    tokenizer, tokenised, records, tested, (data.prompt_length, data.response_length), entries
  )
  compared = dataset.make_splits(
    tokenizer, tokenised, records[opens], tested[opens], (data.prompt_length, longest), entries
  )
  for split in ('train', 'held_out'):
    compared.account[split]['demonstrations'] = shown.account[split]['demonstrations']
  return compared._replace(
    train=compared.train._replace(demonstrations=shown.train.demonstrations),
    held_out=compared.held_out._replace(demonstrations=shown.held_out.demonstrations),
    oracle=preference,
    measure=measure,
  )


def _refuse(pretrained, problem) -> None:
  raise UserError(
    f"config.model.hf='{pretrained}': {problem}, and the task has conversations; name a model with "
    'a chat template, or leave it empty.'
  )


def _check_length(field: str, length: int, needed: np.ndarray) -> None:
  most = needed.max()
  if most > length:
    raise UserError(
      f'config.data.{field}={length} is too short; texts of the task have up to {most} tokens; '
      'raise it.'
    )
