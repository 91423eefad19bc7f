"""A language model behind an endpoint as a judge.

What counts, and what does not: a verdict, or a tie that the judge states, is an answer. An answer
that cannot be read, and a question that after all retries has none, are *unusable*: the preference
of that pair is NaN, never 1/2; `judges.antisymmetric` then makes NaN of the pair if either order
is, and an update leaves out the whole prompt (`selection.judged`). Once more than a stated
share of the last 100 questions is unusable, the run ends.
"""

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from nlhf_jax import distributed
from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.judges.endpoint import Endpoint, Failure, make_query
from nlhf_jax.judges.verdicts import Answer, Template

RECENT = 100  # questions over which the unusable ones are counted
GRACE = 5.0  # seconds that an interruption waits for answers on their way
PATIENCE = 2.0  # seconds before there is a progress bar

Pair = tuple[str, str, str]  # prompt, left, right


class RemoteJudge(NamedTuple):
  """A judge that is asked over the network.

  `preference(prompts, left, right)` is what `judges.of_texts` takes: P(left > right), [n], NaN for
  the unusable ones. It may be called from any thread; calls are answered in turn.

  `counts()` says what happened so far in this process, for metrics; what never happened is not in
  it: questions `asked` (in so many `requests`, retries included) and answered from what was `kept`;
  how many were `unusable`, and of each reason; pairs with verdicts `in_both_orders`, and those of
  them that `disagree`, in which the same place won twice; `prompt_tokens` and `response_tokens` of
  the answers to what was asked, and their `cost`, if there are prices.
  """

  preference: Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray]
  counts: Callable[[], dict[str, float]]


def make_remote_judge(
  endpoint: Endpoint,
  template: Template,
  *,
  sampling: Mapping[str, Any] | None = None,
  tolerated: float = 0.2,
  prices: tuple[float, float] | None = None,
  stop: Callable[[], bool] = lambda: False,
) -> RemoteJudge:
  """A judge that asks an endpoint by a template.

  A pair of the same text twice is a tie, and not asked about. Of several processes the first one
  asks for all.

  Args:
    endpoint: whom.
    template: how.
    sampling: fields of the request that differ from the template's; None takes a field away.
    tolerated: share of unusable ones among the last 100 questions above which the run ends.
    prices: of a million prompt tokens and of a million response tokens.
    stop: whether the user asked to stop.

  Raises:
    UserError: see `make_ask`; and by `preference`, when too much is unusable.
    Interrupted: by `preference`, if the user asked to stop. Every answer so far is kept.
  """
  counts: Counter[str] = Counter()
  ask = make_query(endpoint, counts)
  fields = update_request(template.sampling, sampling or {})
  verdict, note_orders = _verdicts(endpoint, template, tolerated, counts), _orders(counts)
  thread = ThreadPoolExecutor(1, 'judge')  # a notebook has a loop of its own in its thread

  def judge(pairs: Sequence[Pair], ending) -> dict[Pair, float]:
    requests = [
      {'model': endpoint.model, 'messages': template.messages(*pair), **fields} for pair in pairs
    ]
    bar = tqdm(
      total=len(pairs),
      desc=endpoint.model,
      unit='answer',
      mininterval=0.5,
      delay=PATIENCE,
      leave=False,
    )
    said = {}

    def tell(place, outcome, kept):
      said[pairs[place]] = verdict(outcome, kept)
      bar.update()

    with bar:
      ask(requests, tell, ending)
    if len(said) < len(pairs):
      raise Interrupted(
        f"asking the judge '{endpoint.model}', {len(said)} of {len(pairs)} questions"
      )
    note_orders(said)
    return said

  def answered(prompts, left, right) -> np.ndarray:
    triples = list(zip(prompts, left, right, strict=True))
    pairs = [pair for pair in dict.fromkeys(triples) if pair[1] != pair[2]]
    said = _waited(thread, lambda ending: judge(pairs, ending), stop)
    return np.array([said.get(triple, 0.5) for triple in triples])

  def preference(prompts, left, right):
    return distributed.asked_of_first(lambda: answered(prompts, left, right), (len(prompts),))

  return RemoteJudge(preference, lambda: _priced(counts, prices))


def update_request(fields: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of a request, some of them changed; None takes a field away."""
  return {name: value for name, value in {**fields, **by}.items() if value is not None}


class ChatClient(NamedTuple):
  """A language model that is asked in text: who it is, what it says, and counts, as of `Remote`.

  `speak` takes (system prompt, user prompt) of each. It says nothing, '', to questions that have no
  answer after all retries; those are asked again another time.
  """

  about: str
  generate: Callable[[Sequence[tuple[str, str]]], list[str]]
  counts: Callable[[], Mapping[str, float]]


def make_chat_client(
  endpoint: Endpoint,
  sampling: Mapping[str, Any],
  prices: tuple[float, float] | None = None,
  stop: Callable[[], bool] = lambda: False,
) -> ChatClient:
  """A language model behind an endpoint.

  Args:
    endpoint: whom.
    sampling: fields of the request.
    prices: of a million prompt tokens and of a million response tokens.
    stop: whether the user asked to stop.

  Raises:
    UserError: see `make_ask`.
    Interrupted: by `speak`, if the user asked to stop. Every answer so far is kept.
  """
  counts: Counter[str] = Counter()
  ask, thread = make_query(endpoint, counts), ThreadPoolExecutor(1, 'judge')

  def speak(shown):
    said: dict[int, str] = {}
    requests = []
    for system, user in shown:
      messages = [{'role': 'system', 'content': system}, {'role': 'user', 'content': user}]
      requests.append({'model': endpoint.model, 'messages': messages, **sampling})

    def tell(place, outcome, kept):
      _count(counts, outcome, kept)
      said[place] = outcome.text if isinstance(outcome, Answer) else ''
      if isinstance(outcome, Failure):
        counts.update(['unusable', outcome.reason])

    _waited(thread, lambda ending: ask(requests, tell, ending), stop)
    if len(said) < len(requests):
      raise Interrupted(f"asking '{endpoint.model}', {len(said)} of {len(requests)} questions")
    return [said[place] for place in range(len(requests))]

  return ChatClient(f'{endpoint.model} at {endpoint.url}', speak, lambda: _priced(counts, prices))


def _count(counts: Counter, outcome: Answer | Failure, kept: bool) -> None:
  counts['kept' if kept else 'asked'] += 1
  if isinstance(outcome, Answer) and not kept:
    counts['prompt_tokens'] += outcome.prompt_tokens
    counts['response_tokens'] += outcome.response_tokens


def _priced(counts: Counter, prices: tuple[float, float] | None) -> dict[str, int | float]:
  if not prices:
    return dict(counts)
  tokens = counts['prompt_tokens'], counts['response_tokens']
  return {**counts, 'cost': float(np.dot(prices, tokens)) / 1e6}


def _waited(
  thread: ThreadPoolExecutor, work: Callable[[Callable[[], float | None]], Any], stop
) -> Any:
  """What work gives in a thread of its own; it is told how long to wait once it is to end."""
  abandoned = threading.Event()

  def ending():
    return 0.0 if abandoned.is_set() else GRACE if stop() else None

  future = thread.submit(work, ending)
  try:
    return future.result()
  except BaseException:  # a second Ctrl-C reaches this thread, not that one
    abandoned.set()
    raise


def _verdicts(
  endpoint: Endpoint, template: Template, tolerated: float, counts: Counter
) -> Callable[[Answer | Failure, bool], float]:
  """A function (outcome, kept) -> P(left > right), NaN if unusable; too many raise."""
  recent: deque[bool] = deque(maxlen=RECENT)  # unusable or not

  def verdict(outcome, kept):
    _count(counts, outcome, kept)
    if isinstance(outcome, Failure):
      said, (reason, detail) = None, outcome
    else:
      said, reason, detail = template.read(outcome), 'unreadable', repr(outcome.text[:80])
    recent.append(said is None)
    if said is not None:
      return said
    counts.update(['unusable', reason])
    if sum(recent) > tolerated * RECENT:
      raise UserError(
        f"the judge '{endpoint.model}' at {endpoint.url} gave no usable verdict on {sum(recent)} "
        f'of the last {len(recent)} questions, more than the share {tolerated:g} of {RECENT} that '
        f'is tolerated (the last one: {reason}, {detail}). Its answers are kept: mend what is '
        'wrong and run again.'
      )
    return np.nan

  return verdict


def _orders(counts: Counter) -> Callable[[Mapping[Pair, float]], None]:
  """A function that is shown verdicts, and counts the pairs that it has seen in both orders."""
  waiting: dict[Pair, float] = {}  # those whose other order is yet to come

  def note(said):
    for (prompt, left, right), here in said.items():
      there = waiting.pop((prompt, right, left), None)
      if there is None:
        waiting[prompt, left, right] = here
      elif not np.isnan(here + there):
        counts['in_both_orders'] += 1
        counts['disagree'] += int((here - 0.5) * (there - 0.5) > 0)

  return note
