"""Sends many requests at once to an OpenAI-compatible endpoint (`/chat/completions`).

Retries, backoff and timeouts are those of the `openai` client: it retries after a timeout, a lost
connection, and the statuses 408, 409, 429 and 5xx, waiting for as long as the endpoint requests
(`Retry-After`, up to 120 s), else for 0.5, 1, 2, 4, 8, 8, ... seconds, each of which is reduced at
random by up to a quarter. This module adds limits on concurrency and rate, a cache of answers, and
interruption.
"""

import asyncio
import contextlib
import importlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from sqlite3 import Connection
from typing import Any, NamedTuple

from nlhf_jax.errors import UserError, first_line
from nlhf_jax.judges import answer_cache
from nlhf_jax.judges.keys import check_url, read_key, redact
from nlhf_jax.judges.response_body import Failure, parse, server_sentence, status_failure
from nlhf_jax.judges.verdicts import Answer
from nlhf_jax.ranges import AtLeastOne, Count, NonNegative, Positive
from nlhf_jax.storage.texts import clean_text, printable

POLL = 0.1  # seconds between checks for an interruption
MAX_BODY = 2**24  # bytes of a response


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
    timeout: seconds without a response, or without its end, after which a request is given up.
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


Request = Mapping[str, Any]
# (index of the request, answer) -> whether the answer can be used; others are not stored.
Usable = Callable[[int, Answer], bool]
# (index of the request, outcome, whether the outcome comes from the cache)
Receive = Callable[[int, Answer | Failure, bool], None]
Query = Callable[[Sequence[Request], Usable, Receive, Callable[[], float | None]], None]


def make_query(endpoint: Endpoint, counts: Counter) -> Query:
  """A function (requests, usable, receive, ending) that sends requests until all have an outcome.

  It calls `receive(index, outcome, cached)` once for each request, first for those that the cache
  answers. Usable answers are on disk before they are received. Others and failures are not stored,
  so a later call sends these requests again. It polls `ending()`: None means to continue; a number
  means to send no new request, and to wait at most that many seconds, from then on, for requests in
  flight. `counts['requests']` is incremented for each request sent, including retries. Halves of
  surrogate pairs, which no request can contain, are replaced by U+FFFD.

  Raises:
    UserError: if the `openai` package or the key is missing, or the URL contains a secret. The
      returned function raises it if the endpoint rejects the key, the address or the model, if it
      redirects, or if the cache cannot be used.
  """
  openai = _openai()
  check_url(endpoint.url)
  secret = read_key(endpoint.key)
  connect = _make_connect(openai, endpoint, secret, counts)

  async def query_all(requests, usable, receive, ending):
    requests = [_clean(request) for request in requests]
    with answer_cache.open_cache(endpoint.cache) as cache:
      names = [answer_cache.request_digest(endpoint.url.rstrip('/'), it) for it in requests]
      remaining = []
      for index, name in enumerate(names):
        found = _look_up(cache, name, partial(usable, index), counts)
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
          if isinstance(outcome, Answer) and usable(index, outcome):
            outcome = answer_cache.put(cache, names[index], outcome)
          receive(index, outcome, False)

      async with connect() as client:
        workers = [work(client) for _ in range(min(endpoint.concurrency, len(remaining)))]
        await wait_for_all(workers, ending)

  return lambda *arguments: asyncio.run(query_all(*arguments))


def _make_connect(openai, endpoint: Endpoint, secret: str, counts: Counter) -> Callable[[], Any]:
  """A function that opens a client, whose requests are counted and wait for their turn."""
  wait_for_turn = make_rate_limiter(endpoint.per_minute)

  async def before_request(request):
    await wait_for_turn()
    counts['requests'] += 1

  async def on_response(response):
    await read_body(response, endpoint.timeout)

  return lambda: openai.AsyncOpenAI(
    base_url=endpoint.url,
    api_key=secret or 'none',
    timeout=endpoint.timeout,
    max_retries=endpoint.retries,
    http_client=openai.DefaultAsyncHttpxClient(
      event_hooks={'request': [before_request], 'response': [on_response]},
      follow_redirects=False,
    ),
  )


def _clean(value: Any) -> Any:
  """A JSON value with all of its texts cleaned."""
  if isinstance(value, str):
    return clean_text(value)
  if isinstance(value, Mapping):
    return {name: _clean(item) for name, item in value.items()}
  return [_clean(item) for item in value] if isinstance(value, list) else value


def _look_up(
  cache: Connection, name: str, usable: Callable[[Answer], bool], counts: Counter
) -> Answer | None:
  """The stored answer, if it is usable; others are removed, and damaged ones counted."""
  try:
    found = answer_cache.get(cache, name)
  except ValueError:
    counts['damaged_in_cache'] += 1
    return None
  if found and not usable(found):  # it was, to another reader
    answer_cache.remove(cache, name)
    return None
  return found


async def read_body(response: Any, seconds: float) -> None:
  """Reads the body of a response of `httpx`, within limits of size and time.

  What is beyond them is left out, and `response.extensions['gave_up']` says why, as a `Failure`.
  """
  parts, size = [], 0
  try:
    async with asyncio.timeout(seconds), contextlib.aclosing(response.aiter_bytes()) as body:
      async for part in body:
        parts.append(part)
        size += len(part)
        if size > MAX_BODY:
          text = f'the response has more than {MAX_BODY >> 20} MiB'
          response.extensions['gave_up'] = Failure('too_large', text)
          break
  except TimeoutError:
    text = f'the response did not end within {seconds:g} s'
    response.extensions['gave_up'] = Failure('timeout', text)
  await response.aclose()
  response._content = b''.join(parts)  # what `aread` sets; it would read without a limit


async def _send(openai, client, request: Request, endpoint: Endpoint, secret: str):
  """The answer to one request, or why there is none."""
  try:
    raw = await client.chat.completions.with_raw_response.create(
      model=request['model'], messages=request['messages'], extra_body=dict(request)
    )
    response = raw.http_response
  except openai.APIStatusError as error:
    response = error.response
  except openai.APITimeoutError:
    return Failure('timeout', f'no response for {endpoint.timeout:g} s')
  except openai.APIConnectionError as error:
    reason = first_line(error.__cause__ or error)
    return Failure('connection', printable(redact(secret, reason)))
  outcome = _outcome(response, endpoint, secret)
  if isinstance(outcome, Failure) and outcome.fatal:
    key = f", and the key in the environment variable '{endpoint.key}'" if endpoint.key else ''
    raise UserError(
      f"the judge '{printable(endpoint.model)}' at {endpoint.url} cannot be queried "
      f'({outcome.detail}); check config.remote.url and .model{key}.'
    ) from None
  return outcome


def _outcome(response: Any, endpoint: Endpoint, secret: str) -> Answer | Failure:
  """What a response means.

  Raises:
    UserError: if the endpoint redirects.
  """
  status, place = response.status_code, response.headers.get('location')
  if 300 <= status < 400 and place:
    place = server_sentence(place.encode(errors='replace'), secret)
    raise UserError(
      f'the judge at {endpoint.url} redirects ({status}) to {place}; redirects are not followed, '
      'because all texts would go there: set config.remote.url to that address if you trust it.'
    )
  if 'gave_up' in response.extensions:
    return response.extensions['gave_up']
  if 200 <= status < 300:
    return parse(response.content, secret)
  return status_failure(status, response.content, secret)


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


def _openai():
  try:
    return importlib.import_module('openai')
  except ImportError:
    raise UserError(
      "a remote judge needs the package openai; run pip install '.[remote]' in a checkout."
    ) from None
