"""Small servers on loopback with the requests of vLLM and SGLang; `transformers` samples."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import peft
import torch
import transformers


class Sampled(NamedTuple):
  """One response, and whether it ended."""

  tokens: list[int]
  log_probs: list[float]
  ended: bool


class Model:
  """What a server has in memory: a model from a folder, and adapters of it by name."""

  def __init__(self, folder: Path):
    self.folder, self.adapters = folder, {}
    self.frozen = False  # answers every request to load, and loads nothing
    self.current, self.loads = None, 0

  def load(self, adapter: str = '', folder: Path | None = None) -> None:
    self.loads += 1
    if self.frozen and self.current is not None:
      if adapter:
        self.adapters[adapter] = self.current
      return
    model = transformers.AutoModelForCausalLM.from_pretrained(
      self.folder if adapter else folder or self.folder
    )
    if adapter:
      model = peft.PeftModel.from_pretrained(model, folder)
      self.adapters[adapter] = model
    self.current = model.eval()

  @torch.no_grad()
  def respond(self, prompts, length, temperature, stops, adapter='') -> list[Sampled]:
    """Responses of one model, with log-probabilities at temperature 1, as vLLM has them."""
    if adapter:
      self.current = self.adapters[adapter]
    elif self.current is None:
      self.load()
    return [self._one(prompt, length, temperature, stops) for prompt in prompts]

  def _one(self, prompt, length, temperature, stops):
    tokens, log_probs = [], []
    while len(tokens) < length:
      logits = self.current(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].float()
      log_p = torch.log_softmax(logits, -1)
      chosen = (
        int(torch.multinomial(torch.softmax(logits / temperature, -1), 1))
        if temperature
        else int(log_p.argmax())
      )
      tokens.append(chosen)
      log_probs.append(float(log_p[chosen]))
      if chosen in stops:
        return Sampled(tokens, log_probs, True)
    return Sampled(tokens, log_probs, False)


def vllm(model: Model, path: str, body: dict) -> object:
  """The answer of vLLM; None: there is no such address."""
  if path == '/collective_rpc' and body == {'method': 'reload_weights'}:
    model.load()
    return {'results': [None]}
  if path == '/reset_prefix_cache':
    return {}
  if path == '/v1/load_lora_adapter':
    if body['lora_name'] in model.adapters:
      return 400, f"The lora adapter '{body['lora_name']}' has already been loaded."
    model.load(body['lora_name'], Path(body['lora_path']))
    return 'Success: it is loaded.'
  if path == '/v1/unload_lora_adapter':
    del model.adapters[body['lora_name']]
    return 'Success: it is gone.'
  if path != '/v1/completions':
    return None
  assert body['return_token_ids']
  adapter = body['model'] if body['model'] != 'policy' else ''
  found = model.respond(
    body['prompt'], body['max_tokens'], body['temperature'], body['stop_token_ids'], adapter
  )
  choices = [
    {
      'index': number,
      'token_ids': it.tokens,
      'logprobs': {'token_logprobs': it.log_probs},
      'finish_reason': 'stop' if it.ended else 'length',
    }
    for number, it in enumerate(found)
  ]
  return {'choices': choices[::-1]}


def sglang(model: Model, path: str, body: dict) -> object:
  """The answer of SGLang, which here leaves stop tokens out; None: there is no such address."""
  if path == '/update_weights_from_disk':
    model.load(folder=Path(body['model_path']))
    return {'success': True, 'message': ''}
  if path == '/load_lora_adapter':
    model.load(body['lora_name'], Path(body['lora_path']))
    return {'success': True}
  if path == '/unload_lora_adapter':
    del model.adapters[body['lora_name']]
    return {'success': True}
  if path != '/generate':
    return None
  asked = body['sampling_params']
  found = model.respond(
    body['input_ids'],
    asked['max_new_tokens'],
    asked['temperature'],
    asked['stop_token_ids'],
    body.get('lora_path', ''),
  )
  cut = [it._replace(tokens=it.tokens[:-1], log_probs=it.log_probs[:-1]) if it.ended else it
         for it in found]  # fmt: skip
  return [
    {
      'output_ids': it.tokens,
      'meta_info': {
        'output_token_logprobs': [
          [value, token, None] for value, token in zip(it.log_probs, it.tokens, strict=True)
        ],
        'finish_reason': {'type': 'stop' if it.ended else 'length'},
      },
    }
    for it in cut
  ]


@contextlib.contextmanager
def serve(answer: Callable[[str, dict], object]) -> Iterator[str]:
  """Serves `answer(path, body)`: a JSON value, a text, a pair (status, text), or None for 404."""

  class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
      found, status = answer(self.path, body), 200
      if found is None:
        found = (404, 'Not Found')
      if isinstance(found, tuple):
        status, found = found
      data = found.encode() if isinstance(found, str) else json.dumps(found).encode()
      self.send_response(status)
      kind = 'text/plain' if isinstance(found, str) else 'application/json'
      self.send_header('Content-Type', kind)
      self.send_header('Content-Length', str(len(data)))
      self.end_headers()
      self.wfile.write(data)

    def log_message(self, *args):
      pass

  server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}'
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
