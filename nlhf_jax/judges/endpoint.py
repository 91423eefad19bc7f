"""Asks an OpenAI-compatible endpoint (`/chat/completions`) many questions at once.

Retries, backoff and timeouts are those of the `openai` client: it asks again after a timeout, a
connection that was cut, 408, 409, 429 and 5xx, after the seconds that the endpoint names
(`Retry-After`, up to 120), else after 0.5, 1, 2, 4, 8, 8, ... less up to a quarter. What it lacks
is here: how many at once, how many a minute, what is kept, and an end in the middle.
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

POLL = 0.1  # seconds between looks at whether to end
HOPELESS = (401, 404)  # what any question would get: the key, the address or the model is wrong


class Endpoint(NamedTuple):
  """Where and how to ask.

  Attributes:
    url: its base, as `https://api.openai.com/v1`.
    model: its name there.
    key: the environment variable that holds the key; empty for an endpoint that wants none.
    cache: the file in which answers are kept.
    concurrency: questions that are on their way at the same time, at most.
    per_minute: requests a minute of this process at most, retries included; 0 for no limit.
    timeout: seconds of silence after which a request is given up.
    retries: of a question, at most.
  """

  url: str
  model: str
  key: str
  cache: Path
  concurrency: int = 16
  per_minute: float = 0.0
  timeout: float = 120.0
  retries: int = 6


class Failure(NamedTuple):
  """Why there is no answer; failures of one kind share their `reason`."""

  reason: str
  detail: str


Request = Mapping[str, Any]
Receive = Callable[[int, Answer | Failure, bool], None]
Query = Callable[[Sequence[Request], Receive, Callable[[], float | None]], None]


def make_query(endpoint: Endpoint, counts: Counter) -> Query:
  """A function (requests, tell, ending) that returns when all are told, or when it is to end.

  `tell(place, outcome, kept)` is called once for each request, those first whose answer was kept.
  An answer is on the disk before it is told; a failure is not kept, and asked again another time.
  `ending()` is looked at all the time: None to go on; else nothing new is asked, and answers on
  their way are waited for as long as it says, in seconds since the first such look.
  `counts['requests']` grows with each that is sent, retries included.

  Raises:
    UserError: if the `openai` package or the key is missing, or the address has a secret in it; the
      function, if the endpoint does not know key, address or model, or the cache cannot be used.
  """
  openai = _openai()
  secret = _secret(endpoint)
  turn = make_rate_limiter(endpoint.per_minute)

  async def before(request):
    await turn()
    counts['requests'] += 1

  def connected():
    return openai.AsyncOpenAI(
      base_url=endpoint.url,
      api_key=secret or 'none',
      timeout=endpoint.timeout,
      max_retries=endpoint.retries,
      http_client=openai.DefaultAsyncHttpxClient(event_hooks={'request': [before]}),
    )

  async def answer(client, request) -> Answer | Failure:
    try:
      raw = await client.chat.completions.with_raw_response.create(
        model=request['model'], messages=request['messages'], extra_body=dict(request)
      )
    except openai.APIStatusError as error:
      said = redact(secret, first_line(error))
      if error.status_code in HOPELESS:
        raise UserError(
          f"the judge '{endpoint.model}' at {endpoint.url} cannot be asked ({said}); check url and "
          f"model, and the key in the environment variable '{endpoint.key}'."
        ) from None
      return Failure(f'status_{error.status_code}', said)
    except openai.APITimeoutError:
      return Failure('timeout', f'silent for {endpoint.timeout:g} s')
    except openai.APIConnectionError as error:
      return Failure('connection', redact(secret, first_line(error.__cause__ or error)))
    return parse(raw.http_response.content)

  async def ask_all(requests, tell, ending):
    with answer_cache.open_cache(endpoint.cache) as kept:
      names = [
        answer_cache.request_digest(endpoint.url.rstrip('/'), request) for request in requests
      ]
      left = []
      for place, name in enumerate(names):
        found = answer_cache.get(kept, name)
        if found:
          tell(place, found, True)
        else:
          left.append(place)
      if not left:
        return
      places = iter(left)

      async def work(client):
        while ending() is None and (place := next(places, None)) is not None:
          outcome = await answer(client, requests[place])
          if isinstance(outcome, Answer):
            outcome = answer_cache.put(kept, names[place], outcome)
          tell(place, outcome, False)

      async with connected() as client:
        await wait_for_all(
          [work(client) for _ in range(min(endpoint.concurrency, len(left)))], ending
        )

  return lambda requests, tell, ending: asyncio.run(ask_all(requests, tell, ending))


async def wait_for_all(work: Sequence[Awaitable[None]], ending: Callable[[], float | None]) -> None:
  """Waits for all the work; the first error, or `ending`, ends the rest of it."""
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
  """A function to wait in until it is one's turn: turns are evenly spaced; 0 is no wait at all."""
  free = 0.0  # when the next turn is, on the monotonic clock

  async def turn():
    nonlocal free
    if per_minute:
      now = time.monotonic()
      mine = max(now, free)
      free = mine + 60 / per_minute
      await asyncio.sleep(mine - now)

  return turn


def parse(body: bytes) -> Answer | Failure:
  """An answer from what the endpoint sent."""
  try:
    reply = json.loads(body)
    choice = reply['choices'][0]
    text = choice['message']['content'] or ''
    content = (choice.get('logprobs') or {}).get('content') or []
    usage = reply.get('usage') or {}
    tokens = (int(usage.get(name) or 0) for name in ('prompt_tokens', 'completion_tokens'))
    return Answer(text.strip(), dict(_first(content)), *tokens)
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    return Failure('malformed', f'no answer in {body[:80]!r}')


def _first(content: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
  """Token and log-probability of the alternatives of the first token with a letter or digit."""
  for place in content:
    if strip_token(place['token']):
      for token in (place, *(place.get('top_logprobs') or ())):
        if token['logprob'] is not None:  # JSON has no minus infinity
          yield token['token'], min(float(token['logprob']), 0.0)
      return


def redact(secret: str, text: str) -> str:
  """The text, if an endpoint repeats the key, without it."""
  return text.replace(secret, '...') if secret else text


def _openai():
  try:
    return importlib.import_module('openai')
  except ImportError:
    raise UserError(
      "a remote judge needs the package openai; install it with pip install 'nlhf-jax[remote]'."
    ) from None


def check_url(url: str) -> None:
  """Refuses an address that is none, or that has a secret in it, which appears in no sentence.

  Raises:
    UserError: that says what it should be like.
  """
  try:
    parts = urlsplit(url)
    sound = parts.scheme in ('http', 'https') and parts.hostname and parts.port != 0
  except ValueError:
    parts, sound = urlsplit(''), False
  if parts.username or parts.password or parts.query:
    raise UserError(
      "the remote judge's url must be an address alone, without a user, a password or a ?; a key "
      'comes from the environment variable that is named by key.'
    )
  if not sound:
    raise UserError(f"the remote judge's url='{url}' must be as https://api.openai.com/v1.")


def _secret(endpoint: Endpoint) -> str:
  """The key, after a look at whether it can be sent, and to where. It appears in no sentence."""
  check_url(endpoint.url)
  secret = os.environ.get(endpoint.key, '').strip() if endpoint.key else ''
  if endpoint.key and not (secret and secret.isascii() and secret.isprintable()):
    raise UserError(
      f"the remote judge's key='{endpoint.key}' is no environment variable that holds a key; "
      f'export {endpoint.key}=... before the run, or give an empty name if none is wanted.'
    )
  return secret
