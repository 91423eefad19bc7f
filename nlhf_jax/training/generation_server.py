"""Clients of generation servers, vLLM's and SGLang's, which sample responses of one plain model.

A client has two methods: `load` makes the server read weights from a folder, and `complete` samples
responses to prompts. Both are given as token ids, so that no text is tokenised twice. Retries,
backoff and timeouts are those of the `openai` client.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nlhf_jax.errors import UserError, first_line
from nlhf_jax.judges.keys import check_url, read_key, redact
from nlhf_jax.ranges import Count, Positive
from nlhf_jax.sampling.token import Filters
from nlhf_jax.storage.texts import printable

MAX_SENTENCE = 300  # characters of a server's answer in a message


class ServerSettings(NamedTuple):
  """Where a generation server is, and how it gets its weights.

  Attributes:
    kind: `vllm` or `sglang`.
    url: its root, such as `http://localhost:8000`.
    model: the name under which vLLM serves its model.
    key: the environment variable that holds an API key; empty if the server needs none.
    folder: where weights are written for the server to read; both must see it.
    timeout: seconds without a response after which a request is given up.
    retries: the maximal number of retries of a request.
    tolerated_gap: nats a token; training stops if the server's log-probabilities differ from those
      computed here by more, on average.
  """

  kind: str
  url: str
  model: str
  key: str
  folder: str
  timeout: Positive = 600.0
  retries: Count = 3
  tolerated_gap: Positive = 0.1


class Completion(NamedTuple):
  """A response as token ids, with its stop token if it ended; and their log-probabilities."""

  tokens: list[int]
  log_probs: list[float]


class Sampling(NamedTuple):
  """How responses are sampled: at most `length` tokens, up to the token `stop`."""

  length: int
  stop: int
  filters: Filters


class Weights(NamedTuple):
  """Weights to load: a folder in the Hugging Face layout, of an adapter or of a whole model."""

  folder: Path
  is_adapter: bool
  name: str  # of the adapter; another one for each version


class Client(NamedTuple):
  """A connection to a server.

  Attributes:
    load: makes the server use these weights from now on.
    complete: one response to each prompt of token ids.
  """

  load: Callable[[Weights], None]
  complete: Callable[[Sequence[Sequence[int]], Sampling], list[Completion]]


def connect(settings: ServerSettings) -> Client:
  """A client of the server that the settings describe; nothing is sent yet.

  Raises:
    UserError: if the package `openai` or the key is missing, or the URL is malformed. Methods of
      the client raise it if the server does not answer, refuses, or answers something else.
  """
  openai = _openai()
  check_url(settings.url, 'the generation server')
  secret = read_key(settings.key, 'the generation server')
  transport = openai.OpenAI(
    base_url=settings.url.rstrip('/').removesuffix('/v1'),
    api_key=secret or 'none',
    timeout=settings.timeout,
    max_retries=settings.retries,
    http_client=openai.DefaultHttpxClient(follow_redirects=False),
  )

  def post(path: str, body: Mapping[str, Any], to_text: bool = False) -> Any:
    try:
      return transport.post(path, cast_to=str if to_text else object, body=dict(body))
    except openai.APIStatusError as error:
      text = printable(redact(secret, error.response.text))[:MAX_SENTENCE]
      raise UserError(
        f'the generation server at {settings.url} refuses {path} (status {error.status_code}: '
        f'{text}); {_HELP[settings.kind]}.'
      ) from None
    except openai.APIConnectionError as error:
      reason = printable(redact(secret, first_line(error.__cause__ or error)))
      raise UserError(
        f'the generation server at {settings.url} does not answer ({reason}); '
        f'{_HELP[settings.kind]}; then run the same command again: weights for it are in '
        f"'{settings.folder}'."
      ) from None

  load, complete = _KINDS[settings.kind](post, settings)

  def checked(prompts, sampling):
    try:
      return _check(complete(prompts, sampling), len(prompts), sampling)
    except (KeyError, TypeError, ValueError, IndexError) as error:
      raise UserError(
        f'the generation server at {settings.url} sent no usable completions '
        f'({type(error).__name__}: {first_line(error)}); {_HELP[settings.kind]}.'
      ) from None

  return Client(load, checked)


def _vllm(post: Callable, settings: ServerSettings):
  """The requests of vLLM 0.10.2 and later; with `VLLM_SERVER_DEV_MODE=1` it reloads weights."""
  served = {'model': settings.model}

  def load(weights):
    if weights.is_adapter:
      body = {'lora_name': weights.name, 'lora_path': str(weights.folder)}
      post('/v1/load_lora_adapter', body, to_text=True)
      if served['model'] != settings.model:
        post('/v1/unload_lora_adapter', {'lora_name': served['model']}, to_text=True)
      served['model'] = weights.name
    else:
      post('/collective_rpc', {'method': 'reload_weights'}, to_text=True)
      post('/reset_prefix_cache', {}, to_text=True)

  def complete(prompts, sampling):
    filters = sampling.filters
    answer = post(
      '/v1/completions',
      dict(
        model=served['model'],
        prompt=[list(prompt) for prompt in prompts],
        max_tokens=sampling.length,
        temperature=filters.temperature,
        top_k=filters.top_k or -1,
        top_p=filters.top_p,
        stop_token_ids=[sampling.stop],
        ignore_eos=True,  # no other token ends a response
        **_PLAIN,
        logprobs=1,
        return_token_ids=True,
        add_special_tokens=False,
      ),
    )
    choices = sorted(answer['choices'], key=lambda choice: choice['index'])
    return [
      (choice['token_ids'], choice['logprobs']['token_logprobs'], choice['finish_reason'])
      for choice in choices
    ]

  return load, complete


def _sglang(post: Callable, settings: ServerSettings):
  """The requests of SGLang's own API, which knows token ids."""
  served: dict[str, str] = {}

  def load(weights):
    if weights.is_adapter:
      post('/load_lora_adapter', {'lora_name': weights.name, 'lora_path': str(weights.folder)})
      if served:
        post('/unload_lora_adapter', {'lora_name': served['lora_path']})
      served['lora_path'] = weights.name
    else:
      answer = post('/update_weights_from_disk', {'model_path': str(weights.folder)})
      if not (isinstance(answer, dict) and answer.get('success', True)):
        found = answer.get('message') if isinstance(answer, dict) else answer
        text = printable(str(found))[:MAX_SENTENCE]
        raise UserError(
          f'the generation server at {settings.url} could not load {weights.folder}: {text}.'
        )

  def complete(prompts, sampling):
    filters = sampling.filters
    answers = post(
      '/generate',
      dict(
        input_ids=[list(prompt) for prompt in prompts],
        sampling_params=dict(
          max_new_tokens=sampling.length,
          temperature=filters.temperature,
          top_k=filters.top_k or -1,
          top_p=filters.top_p,
          stop_token_ids=[sampling.stop],
          **_PLAIN,
        ),
        return_logprob=True,
        **served,
      ),
    )
    return [
      (
        answer['output_ids'],
        [entry[0] for entry in answer['meta_info']['output_token_logprobs']],
        answer['meta_info']['finish_reason']['type'],
      )
      for answer in answers
    ]

  return load, complete


# Otherwise a server takes what `generation_config.json` of the model says.
_PLAIN = dict(min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
_KINDS = {'vllm': _vllm, 'sglang': _sglang}
KINDS = tuple(_KINDS)
_HELP = {
  'vllm': (
    'start it with VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER or, for adapters, with '
    'VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora; and with --served-model-name NAME, '
    'which is config.generation_server.model'
  ),
  'sglang': (
    'start it with python -m sglang.launch_server --model-path FOLDER or, for adapters, with '
    '--enable-lora besides'
  ),
}


def _check(found: Sequence[tuple], count: int, sampling: Sampling) -> list[Completion]:
  """The completions, each up to its first stop token.

  A server may leave out the stop token that ended a response, which then is added.

  Raises:
    ValueError: if there are not as many as prompts, or one is no response.
  """
  if len(found) != count:
    raise ValueError(f'{len(found)} completions of {count} prompts')
  completions = []
  for tokens, log_probs, finish in found:
    if len(tokens) != len(log_probs) or not all(type(token) is int for token in tokens):
      raise ValueError('tokens and log-probabilities do not fit')
    tokens, log_probs = list(tokens), [float(value) for value in log_probs]
    if sampling.stop in tokens:
      end = tokens.index(sampling.stop) + 1
      tokens, log_probs = tokens[:end], log_probs[:end]
    elif finish == 'stop' and len(tokens) < sampling.length:
      tokens.append(sampling.stop)
    elif finish != 'length':
      raise ValueError(f'a response ended by {finish!r}, without the stop token {sampling.stop}')
    if not 0 < len(tokens) <= sampling.length:
      raise ValueError(f'a response of {len(tokens)} tokens')
    completions.append(Completion(tokens, log_probs))
  return completions


def _openai():
  try:
    return importlib.import_module('openai')
  except ImportError:
    raise UserError(
      "a generation server needs the package openai; run pip install '.[remote]' in a checkout."
    ) from None
