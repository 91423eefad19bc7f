"""A small OpenAI-compatible endpoint on loopback with faults on demand."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple


class Reply(NamedTuple):
  """How the endpoint responds to one request."""

  body: Any = None  # a JSON value, or bytes
  status: int = 200
  headers: Mapping[str, str] = MappingProxyType({})
  delay: float = 0.0
  cut: bool = False  # close the connection without a response


class Seen(NamedTuple):
  """One request that arrived."""

  at: float  # monotonic seconds
  content: str  # of the last message
  body: dict
  headers: dict[str, str]


class Served(NamedTuple):
  """A running endpoint: its address, its requests, and the requests in flight at each arrival."""

  url: str
  seen: list[Seen]
  at_once: list[int]


def completion(text, content=None, tokens=(100, 2)):
  """A well-formed response; `content` holds its log-probabilities."""
  usage = {'prompt_tokens': tokens[0], 'completion_tokens': tokens[1]}
  logprobs = None if content is None else {'content': content}
  message = {'role': 'assistant', 'content': text}
  choice = {'index': 0, 'message': message, 'logprobs': logprobs, 'finish_reason': 'stop'}
  return {'id': 'x', 'object': 'chat.completion', 'choices': [choice], 'usage': usage}


@contextlib.contextmanager
def serve(behave: Callable[[str, int], Reply]) -> Iterator[Served]:
  """Serves `behave(content of the last message, number of earlier requests with it)`."""
  lock, now = threading.Lock(), [0]
  served = Served('', [], [])

  class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
      content = body['messages'][-1]['content']
      headers = {name.lower(): value for name, value in self.headers.items()}
      with lock:
        now[0] += 1
        before = sum(seen.content == content for seen in served.seen)
        served.at_once.append(now[0])
        served.seen.append(Seen(time.monotonic(), content, body, headers))
      reply = behave(content, before)
      time.sleep(reply.delay)
      with lock:
        now[0] -= 1
      if reply.cut:
        self.close_connection = True
        return
      data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
      with contextlib.suppress(OSError):  # the client gave up
        self.send_response(reply.status)
        for name, value in {'Content-Type': 'application/json', **reply.headers}.items():
          self.send_header(name, value)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
      pass

  class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, address):
      pass  # the client gave up

  server = Server(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
  thread.start()
  try:
    yield served._replace(url=f'http://127.0.0.1:{server.server_port}/v1')
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
