"""Sends many requests at once to an OpenAI-compatible endpoint (`/chat/completions`).

Retries, backoff and timeouts are those of the `openai` client: it retries after a timeout, a lost
connection, and the statuses 408, 409, 429 and 5xx, waiting for as long as the endpoint requests
(`Retry-After`, up to 120 s), else for 0.5, 1, 2, 4, 8, 8, ... seconds, each of which is reduced at
random by up to a quarter. This module adds limits on concurrency and rate, a cache of answers, and
interruption.
"""

import asyncio
import importlib
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from nlhf_jax.errors import UserError, first_line
from nlhf_jax.judges import answer_cache
from nlhf_jax.judges.verdicts import Answer, strip_token
from nlhf_jax.ranges import AtLeastOne, Count, NonNegative, Positive

POLL = 0.1  # seconds between checks for an interruption
FATAL = (401, 404)  # statuses that any request would get: wrong key, address or model


class Endpoint(NamedTuple):
  """Where requests are sent, and how.

  Attributes:
    url: the base, such as `https://api.openai.com/v1`.
    model: its name at the endpoint.
    key: the environment variable that holds the API key; empty if the endpoint needs none.
    cache: the file in which answers are stored.
    concurrency: the maximal number of requests in flight.
    per_minute: the maximal number of requests that this process sends per minute, including
      retries; 0 for no limit.
    timeout: seconds without a response after which a request is given up.
    retries: the maximal number of retries of a request.
  """

  url: str
  model: str
  key: str
  cache: Path
  concurrency: AtLeastOne = 16
  per_minute: NonNegative = 0.0
  timeout: Positive = 120.0
  retries: Count = 6


class Failure(NamedTuple):
  """Why a request has no answer; failures of the same kind have the same `reason`."""

  reason: str
  detail: str


Request = Mapping[str, Any]
# (index of the request, outcome, whether the outcome comes from the cache)
Receive = Callable[[int, Answer | Failure, bool], None]
Query = Callable[[Sequence[Request], Receive, Callable[[], float | None]], None]


def make_query(endpoint: Endpoint, counts: Counter) -> Query:
  """A function (requests, receive, ending) that sends requests until all have an outcome.

  It calls `receive(index, outcome, cached)` once for each request, first for those that the cache
  answers. Answers are on disk before they are received; failures are not stored, so a later call
  sends these requests again. It polls `ending()`: None means to continue; a number means to send
  no new request, and to wait at most that many seconds, from then on, for requests in flight.
  `counts['requests']` is incremented for each request sent, including retries.

  Raises:
    UserError: if the `openai` package or the key is missing, or the URL contains a secret. The
      returned function raises it if the endpoint rejects the key, the address or the model, or if
      the cache cannot be used.
  """
  openai = _openai()
  secret = _secret(endpoint)
  wait_for_turn = make_rate_limiter(endpoint.per_minute)

  async def before_request(request):
    await wait_for_turn()
    counts['requests'] += 1

  def connect():
    return openai.AsyncOpenAI(
      base_url=endpoint.url,
      api_key=secret or 'none',
      timeout=endpoint.timeout,
      max_retries=endpoint.retries,
      http_client=openai.DefaultAsyncHttpxClient(event_hooks={'request': [before_request]}),
    )

  async def query_all(requests, receive, ending):
    with answer_cache.open_cache(endpoint.cache) as cache:
      names = [answer_cache.request_digest(endpoint.url.rstrip('/'), it) for it in requests]
      remaining = []
      for index, name in enumerate(names):
        found = answer_cache.get(cache, name)
        if found:
          receive(index, found, True)
        else:
          remaining.append(index)
      if not remaining:
        return
      indices = iter(remaining)

      async def work(client):
        while ending() is None and (index := next(indices, None)) is not None:
          outcome = await _send(openai, client, requests[index], endpoint, secret)
          if isinstance(outcome, Answer):
            outcome = answer_cache.put(cache, names[index], outcome)
          receive(index, outcome, False)

      async with connect() as client:
        workers = [work(client) for _ in range(min(endpoint.concurrency, len(remaining)))]
        await wait_for_all(workers, ending)

  return lambda requests, receive, ending: asyncio.run(query_all(requests, receive, ending))


async def _send(openai, client, request: Request, endpoint: Endpoint, secret: str):
  """The answer to one request, or why there is none."""
  try:
    raw = await client.chat.completions.with_raw_response.create(
      model=request['model'], messages=request['messages'], extra_body=dict(request)
    )
  except openai.APIStatusError as error:
    message = redact(secret, first_line(error))
    if error.status_code in FATAL:
      raise UserError(
        f"the judge '{endpoint.model}' at {endpoint.url} cannot be queried ({message}); check url "
        f"and model, and the key in the environment variable '{endpoint.key}'."
      ) from None
    return Failure(f'status_{error.status_code}', message)
  except openai.APITimeoutError:
    return Failure('timeout', f'no response for {endpoint.timeout:g} s')
  except openai.APIConnectionError as error:
    return Failure('connection', redact(secret, first_line(error.__cause__ or error)))
  return parse(raw.http_response.content)


async def wait_for_all(work: Sequence[Awaitable[None]], ending: Callable[[], float | None]) -> None:
  """Waits for all tasks; the first error, or `ending` (`make_query`), cancels the others."""
  tasks = [asyncio.ensure_future(piece) for piece in work]
  running, since = set(tasks), None
  try:
    while running:
      done, running = await asyncio.wait(running, timeout=POLL)
      for task in done:
        task.result()
      grace = ending()
      if grace is not None:
        since = since or time.monotonic()
        if time.monotonic() - since >= grace:
          return
  finally:
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def make_rate_limiter(per_minute: float) -> Callable[[], Awaitable[None]]:
  """A coroutine that returns when the caller may send: evenly spaced turns; 0 for no waiting."""
  next_turn = 0.0  # on the monotonic clock

  async def wait_for_turn():
    nonlocal next_turn
    if per_minute:
      now = time.monotonic()
      turn = max(now, next_turn)
      next_turn = turn + 60 / per_minute
      await asyncio.sleep(turn - now)

  return wait_for_turn


def parse(body: bytes) -> Answer | Failure:
  """The answer in the body of a response."""
  try:
    reply = json.loads(body)
    choice = reply['choices'][0]
    text = choice['message']['content'] or ''
    content = (choice.get('logprobs') or {}).get('content') or []
    usage = reply.get('usage') or {}
    tokens = (int(usage.get(name) or 0) for name in ('prompt_tokens', 'completion_tokens'))
    return Answer(text.strip(), dict(_first_token_log_probs(content)), *tokens)
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    return Failure('malformed', f'no answer in {body[:80]!r}')


def _first_token_log_probs(content: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
  """Tokens and log-probabilities at the first position whose token has a letter or digit."""
  for position in content:
    if strip_token(position['token']):
      for token in (position, *(position.get('top_logprobs') or ())):
        if token['logprob'] is not None:  # JSON has no minus infinity
          yield token['token'], min(float(token['logprob']), 0.0)
      return


def redact(secret: str, text: str) -> str:
  """The text without the key, which an endpoint may repeat in its message."""
  return text.replace(secret, '...') if secret else text


def _openai():
  try:
    return importlib.import_module('openai')
  except ImportError:
    raise UserError(
      "a remote judge needs the package openai; install it with pip install 'nlhf-jax[remote]'."
    ) from None


def check_url(url: str) -> None:
  """Refuses a URL that is malformed or contains a secret; the message does not repeat the secret.

  Raises:
    UserError: the message describes a valid URL.
  """
  try:
    parts = urlsplit(url)
    valid = parts.scheme in ('http', 'https') and parts.hostname and parts.port != 0
  except ValueError:
    parts, valid = urlsplit(''), False
  if parts.username or parts.password or parts.query:
    raise UserError(
      "the remote judge's url must have no user, no password and no query; the key is read from "
      'the environment variable that key names.'
    )
  if not valid:
    raise UserError(f"the remote judge's url='{url}' must be like https://api.openai.com/v1.")


def _secret(endpoint: Endpoint) -> str:
  """The key, after checking the URL and that a header can contain it. No message contains it."""
  check_url(endpoint.url)
  secret = os.environ.get(endpoint.key, '').strip() if endpoint.key else ''
  if endpoint.key and not (secret and secret.isascii() and secret.isprintable()):
    raise UserError(
      f"the remote judge's key='{endpoint.key}' is not an environment variable that holds a key; "
      f'export {endpoint.key}=... before the run, or leave key empty if the endpoint needs none.'
    )
  return secret
