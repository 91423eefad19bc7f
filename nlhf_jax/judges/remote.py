"""The judge `remote`: a language model behind an OpenAI-compatible endpoint.

A verdict, a stated tie included, is an answer. An answer without a verdict, and a request that
fails after all retries, are *unusable*: the preference of that pair is NaN, never 1/2. They are not
stored, so the next run requests them again. `judge.antisymmetric` makes the payoff of a pair NaN if
either order is, and an update leaves out the whole prompt (`selection.drop_unjudged`). If more than
a given share of the last 100 requests is unusable, the run ends.
"""

import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlhf_jax import distributed
from nlhf_jax.errors import Interrupted, UserError
from nlhf_jax.judges import judge_prompts
from nlhf_jax.judges.endpoint import Endpoint, Query, Receive, Request, Usable, make_query
from nlhf_jax.judges.judge import TextPreference
from nlhf_jax.judges.judge_prompts import Template
from nlhf_jax.judges.keys import check_secrets
from nlhf_jax.judges.kinds import ExternalJudge, ExternalKind, Section, judge_by_texts
from nlhf_jax.judges.response_body import Failure
from nlhf_jax.judges.verdicts import Answer
from nlhf_jax.progress import progress
from nlhf_jax.ranges import Fraction
from nlhf_jax.storage.texts import printable

RECENT = 100  # requests among which the unusable ones are counted
GRACE = 5.0  # seconds that an interruption waits for requests in flight
BAR_DELAY = 2.0  # seconds before a progress bar appears
EXCERPT = 80  # characters of an unusable answer that a message repeats
CHAT_SAMPLING = {'temperature': 0.0, 'max_tokens': 2048}  # those of MT-Bench's judge
# Settings that change no answer.
TRANSPORT = ('key', 'concurrency', 'per_minute', 'timeout', 'retries')

Pair = tuple[str, str, str]  # prompt, left, right


class RemoteJudge(NamedTuple):
  """A judge that is queried over the network.

  `preference(prompts, left, right)` returns P(left > right), [n], NaN for unusable answers. It may
  be called from any thread; calls are served one after the other.

  `counts()` returns the counters of this process so far, for metrics; zeros are left out. They are
  `asked`, answers from the endpoint, and `requests` sent for them, retries included; `cached`,
  answers from the cache, and those found `damaged_in_cache`; `unusable` answers, in total and by
  reason; pairs with verdicts `in_both_orders`, and how many of them `disagree`, because the same
  position won twice; `prompt_tokens` and `response_tokens` of the answers from the endpoint, and
  their `cost` if there are prices.

  `last_failure()` says why the last unusable answer is unusable; it is empty if there is none.
  """

  preference: TextPreference
  counts: Callable[[], dict[str, float]]
  last_failure: Callable[[], str]


class Usage(NamedTuple):
  """The counters of a judge, and its last failure."""

  counts: Counter[str]
  failures: deque[Failure]

  def add(self, outcome: Answer | Failure, usable: bool, cached: bool) -> None:
    """Counts an outcome."""
    self.counts['cached' if cached else 'asked'] += 1
    if isinstance(outcome, Answer) and not cached:
      self.counts['prompt_tokens'] += outcome.prompt_tokens
      self.counts['response_tokens'] += outcome.response_tokens
    if not usable:
      failure = outcome if isinstance(outcome, Failure) else describe_answer(outcome)
      self.counts.update(['unusable', failure.reason])
      self.failures.append(failure)

  def last_failure(self) -> str:
    """As of `RemoteJudge`."""
    return f'{self.failures[-1].reason}, {self.failures[-1].detail}' if self.failures else ''


def make_usage() -> Usage:
  """Usage of a judge that was not queried yet."""
  return Usage(Counter(), deque(maxlen=1))


def describe_answer(answer: Answer) -> Failure:
  """Why an answer is unusable, with its end, where the verdict should be."""
  text = printable(' '.join(answer.text.split()))
  shown = repr(text if len(text) <= EXCERPT else f'...{text[-EXCERPT:]}')
  if answer.cut:
    return Failure('cut_off', f'the length limit (max_tokens) cut the answer after {shown}')
  return Failure('unreadable', f'the answer {shown}')


def make_remote_judge(
  endpoint: Endpoint,
  template: Template,
  *,
  sampling: Mapping[str, Any] | None = None,
  tolerated: Fraction = 0.2,
  prices: tuple[float, float] | None = None,
  stop: Callable[[], bool] = lambda: False,
) -> RemoteJudge:
  """A judge that queries an endpoint with a template.

  Equal texts are a tie, for which no request is sent. The first of several processes sends all.

  Args:
    endpoint: receives the requests.
    template: formats questions and parses answers.
    sampling: fields of the request that differ from the template's; None removes a field.
    tolerated: share of unusable answers among the last 100 requests above which the run ends.
    prices: of a million prompt tokens and of a million response tokens.
    stop: whether the user asked to stop.

  Raises:
    UserError: see `make_query`; and from `preference`, if too many answers are unusable.
    Interrupted: from `preference`, if the user asked to stop. All answers so far are stored.
  """
  usage = make_usage()
  query, count_orders = make_query(endpoint, usage.counts), _make_order_counter(usage.counts)
  fields = update_request(template.sampling, sampling or {})
  read = _make_reader(endpoint, template, tolerated, usage)
  usable = lambda _, answer: template.read(answer) is not None
  thread = ThreadPoolExecutor(1, 'judge')  # a notebook runs an event loop in its own

  def request(pair: Pair) -> Request:
    return {'model': endpoint.model, 'messages': template.messages(*pair), **fields}

  def query_pairs(pairs: Sequence[Pair], ending) -> dict[Pair, float]:
    found: dict[int, float] = {}

    def receive(index, outcome, cached):
      found[index] = read(outcome, cached)

    _query_with_bar(query, [*map(request, pairs)], usable, receive, ending)
    if len(found) < len(pairs):
      raise Interrupted(
        f"querying the judge '{printable(endpoint.model)}', {len(found)} of {len(pairs)} questions"
      )
    by_pair = {pair: found[index] for index, pair in enumerate(pairs)}
    count_orders(by_pair)
    return by_pair

  def compare(prompts, left, right) -> np.ndarray:
    triples = list(zip(prompts, left, right, strict=True))
    pairs = [pair for pair in dict.fromkeys(triples) if pair[1] != pair[2]]
    found = _run_in_thread(thread, lambda ending: query_pairs(pairs, ending), stop)
    return np.array([found.get(triple, 0.5) for triple in triples])

  def preference(prompts, left, right):
    return distributed.compute_on_first(lambda: compare(prompts, left, right), (len(prompts),))

  return RemoteJudge(preference, lambda: _with_cost(usage.counts, prices), usage.last_failure)


def _query_with_bar(
  query: Query, requests: Sequence[Request], usable: Usable, receive: Receive, ending
) -> None:
  """Queries; slow queries show a progress bar."""
  label = printable(requests[0]['model']) if requests else ''
  with progress(len(requests), label, 'answer', delay=BAR_DELAY, leave=False) as bar:

    def receive_and_show(index, outcome, cached):
      receive(index, outcome, cached)
      bar.update()

    query(requests, usable, receive_and_show, ending)


def update_request(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of a request with some changes; None removes a field."""
  return {name: value for name, value in {**fields, **changes}.items() if value is not None}


class ChatClient(NamedTuple):
  """A language model behind an endpoint; the other fields are as in `RemoteJudge`.

  `generate(prompts, usable)` takes a (system prompt, user prompt) for each answer, and returns the
  answers, or why a request failed after all retries. Only usable answers are stored; a later call
  requests the others again.
  """

  about: str
  generate: Callable[[Sequence[tuple[str, str]], Usable], list[Answer | Failure]]
  counts: Callable[[], Mapping[str, float]]
  last_failure: Callable[[], str]


def make_chat_client(
  endpoint: Endpoint,
  sampling: Mapping[str, Any],
  prices: tuple[float, float] | None = None,
  stop: Callable[[], bool] = lambda: False,
) -> ChatClient:
  """A client of a language model behind an endpoint.

  Args:
    endpoint: receives the requests.
    sampling: fields of the request.
    prices: of a million prompt tokens and of a million response tokens.
    stop: whether the user asked to stop.

  Raises:
    UserError: see `make_query`.
    Interrupted: from `generate`, if the user asked to stop. All answers so far are stored.
  """
  usage = make_usage()
  query, thread = make_query(endpoint, usage.counts), ThreadPoolExecutor(1, 'judge')

  def generate(prompts, usable):
    outcomes: dict[int, Answer | Failure] = {}
    requests = []
    for system, user in prompts:
      messages = [{'role': 'system', 'content': system}, {'role': 'user', 'content': user}]
      requests.append({'model': endpoint.model, 'messages': messages, **sampling})

    def receive(index, outcome, cached):
      usage.add(outcome, isinstance(outcome, Answer) and usable(index, outcome), cached)
      outcomes[index] = outcome

    _run_in_thread(
      thread, lambda ending: _query_with_bar(query, requests, usable, receive, ending), stop
    )
    if len(outcomes) < len(requests):
      raise Interrupted(
        f"querying '{printable(endpoint.model)}', {len(outcomes)} of {len(requests)} questions"
      )
    return [outcomes[index] for index in range(len(requests))]

  about = f'{printable(endpoint.model)} at {endpoint.url}'
  return ChatClient(about, generate, lambda: _with_cost(usage.counts, prices), usage.last_failure)


def _with_cost(counts: Counter, prices: tuple[float, float] | None) -> dict[str, int | float]:
  if not prices:
    return dict(counts)
  tokens = counts['prompt_tokens'], counts['response_tokens']
  return {**counts, 'cost': float(np.dot(prices, tokens)) / 1e6}


def _run_in_thread(
  thread: ThreadPoolExecutor, work: Callable[[Callable[[], float | None]], Any], stop
) -> Any:
  """Runs `work(ending)` in the thread; `ending` is that of `make_query`."""
  abandoned = threading.Event()

  def ending():
    return 0.0 if abandoned.is_set() else GRACE if stop() else None

  future = thread.submit(work, ending)
  try:
    return future.result()
  except BaseException:  # a second Ctrl-C interrupts this thread only
    abandoned.set()
    raise


def _make_reader(
  endpoint: Endpoint, template: Template, tolerated: float, usage: Usage
) -> Callable[[Answer | Failure, bool], float]:
  """(outcome, cached) -> P(left > right), NaN if unusable; raises if too many are."""
  recent: deque[bool] = deque(maxlen=RECENT)  # unusable or not

  def read(outcome, cached):
    probability = None if isinstance(outcome, Failure) else template.read(outcome)
    usage.add(outcome, probability is not None, cached)
    recent.append(probability is None)
    if probability is not None:
      return probability
    if sum(recent) > tolerated * RECENT:
      raise UserError(
        f"the judge '{printable(endpoint.model)}' at {endpoint.url} gave no usable verdict on "
        f'{sum(recent)} of the last {len(recent)} questions; more than {tolerated * RECENT:g} of '
        f'{RECENT} stop a run (config.remote.tolerated={tolerated:g}). The last one: '
        f'{usage.last_failure()}. The verdicts are stored in {endpoint.cache}; mend the cause and '
        'run again, which requests the others again.'
      )
    return np.nan

  return read


def _make_order_counter(counts: Counter) -> Callable[[Mapping[Pair, float]], None]:
  """A function that counts pairs with verdicts in both orders, over all its calls."""
  waiting: dict[Pair, float] = {}  # pairs seen in one order

  def count_orders(found):
    for (prompt, left, right), forward in found.items():
      backward = waiting.pop((prompt, right, left), None)
      if backward is None:
        waiting[prompt, left, right] = forward
      elif not np.isnan(forward + backward):
        counts['in_both_orders'] += 1
        counts['disagree'] += int((forward - 0.5) * (backward - 0.5) > 0)

  return count_orders


# --- From the section `remote` of a config ---


def make_endpoint(section: Section, folder: Path) -> Endpoint:
  """The endpoint; its answers are stored in the folder."""
  require_model(section)
  transport = {field: section[field] for field in TRANSPORT}
  return Endpoint(section['url'], section['model'], cache=folder / 'answers.sqlite', **transport)


def require_model(section: Section) -> None:
  """Refuses a section without an endpoint or a model, or with a secret."""
  for field in ('url', 'model'):
    if not section[field]:
      raise UserError(f'config.remote.{field} is empty; name the endpoint and its model.')
  check_secrets({'remote': section})


def make_template(section: Section) -> Template:
  """The template that the section names."""
  if section['template'] == 'summaries':
    return judge_prompts.SUMMARIES
  if not section['judge_prompts']:
    raise UserError(
      f"config.remote.template='{section['template']}' must be summaries, or a prompt of the file "
      'that config.remote.judge_prompts names.'
    )
  return judge_prompts.pairwise_template(section['judge_prompts'], section['template'])


def read_prices(section: Section) -> tuple[float, float] | None:
  """Prices of a million prompt tokens and of a million response tokens; None if both are 0."""
  prices = (section['prices']['prompt'], section['prices']['response'])
  return prices if any(prices) else None


def configure_chat_client(section: Section, folder: Path, stop: Callable[[], bool]) -> ChatClient:
  """The client of the section's model, sampled as MT-Bench samples its judge."""
  sampling = update_request(CHAT_SAMPLING, json.loads(section['request']))
  return make_chat_client(make_endpoint(section, folder), sampling, read_prices(section), stop)


def _make(section: Section, folder: Path, stop: Callable[[], bool]) -> ExternalJudge:
  judge = make_remote_judge(
    make_endpoint(section, folder),
    make_template(section),
    sampling=json.loads(section['request']),
    tolerated=section['tolerated'],
    prices=read_prices(section),
    stop=stop,
  )
  about = f'{printable(section["model"])} at {section["url"]}'
  return judge_by_texts(about, judge.preference, judge.counts, judge.last_failure)


def _settings(section: Section) -> object:
  """The model, and the requests that it receives."""
  template = make_template(section)
  require_model(section)
  messages = template.messages('prompt', 'left', 'right')
  sampling = {**template.sampling, **json.loads(section['request'])}
  return [section['url'], section['model'], messages, sampling]


KIND = ExternalKind('remote', _make, _settings, section='remote')
