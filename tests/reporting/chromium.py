"""Chromium without a window, driven through pipes by the DevTools protocol."""

import base64
import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PROGRAM = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None
)
MISSING = 'no Chromium; apt-get install chromium'


class _Quiet(SimpleHTTPRequestHandler):
  def log_message(self, *details):
    """Nothing is logged."""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
  """The address at which this machine serves the folder."""
  handler = functools.partial(_Quiet, directory=folder)
  with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield f'http://127.0.0.1:{server.server_port}/'
    finally:
      server.shutdown()
      thread.join()


class Browser:
  """A browser with one page; `messages` are those on its console, and uncaught errors."""

  def __init__(self, folder: Path):
    read, write = os.pipe(), os.pipe()  # commands, answers
    options = ['--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars']
    options += ['--remote-debugging-pipe', f'--user-data-dir={folder}', 'about:blank']
    shell = f'exec "$0" "$@" 3<&{read[0]} 4>&{write[1]}'
    self._process = subprocess.Popen(
      ['bash', '-c', shell, PROGRAM, *options],
      pass_fds=(read[0], write[1]),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(read[0])
    os.close(write[1])
    self._commands, self._answers = os.fdopen(read[1], 'wb'), os.fdopen(write[0], 'rb')
    self._numbers, self._session, self._rest = itertools.count(1), None, b''
    self.messages: list[str] = []
    self._loaded = 0
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    attached = self.call('Target.attachToTarget', targetId=target, flatten=True)
    self._session = attached['sessionId']
    for domain in ('Page', 'Runtime', 'Log'):
      self.call(f'{domain}.enable')

  def call(self, method: str, **arguments: Any) -> Mapping[str, Any]:
    """The answer to a command of the protocol."""
    number = next(self._numbers)
    message = {'id': number, 'method': method, 'params': arguments}
    if self._session:
      message['sessionId'] = self._session
    self._commands.write(json.dumps(message).encode() + b'\0')
    self._commands.flush()
    while (answer := self._receive()).get('id') != number:
      pass
    if 'error' in answer:
      raise RuntimeError(f'{method}: {answer["error"]["message"]}')
    return answer['result']

  def _receive(self) -> Mapping[str, Any]:
    while b'\0' not in self._rest:
      part = self._answers.read1(2**20)
      if not part:
        raise RuntimeError('the browser has ended')
      self._rest += part
    text, _, self._rest = self._rest.partition(b'\0')
    message = json.loads(text)
    method = message.get('method')
    if method == 'Page.loadEventFired':
      self._loaded += 1
    elif method == 'Runtime.consoleAPICalled':
      self.messages.append(str(message['params']['args']))
    elif method == 'Runtime.exceptionThrown':
      details = message['params']['exceptionDetails']
      self.messages.append(details.get('exception', details).get('description', str(details)))
    elif method == 'Log.entryAdded':
      self.messages.append(message['params']['entry']['text'])
    return message

  def open(self, page: Path | str, width: int = 1400, dark: bool = False) -> None:
    """Shows a file, or the page at a URL, at a width in CSS pixels, in the light or dark scheme."""
    self.call(
      'Emulation.setDeviceMetricsOverride',
      width=width,
      height=900,
      deviceScaleFactor=1,
      mobile=False,
    )
    scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
    self.call('Emulation.setEmulatedMedia', features=[scheme])
    before = self._loaded
    self.call('Page.navigate', url=page if isinstance(page, str) else page.absolute().as_uri())
    while self._loaded == before:
      self._receive()

  def evaluate(self, script: str) -> Any:
    """The value of a JavaScript expression, as JSON."""
    answer = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
    if 'exceptionDetails' in answer:
      raise RuntimeError(answer['exceptionDetails']['exception']['description'])
    return answer['result'].get('value')

  def screenshot(self, path: Path, height: int | None = None) -> None:
    """Writes a PNG of the page from its top, as far as `height`, or of all of it."""
    size = self.call('Page.getLayoutMetrics')['cssContentSize']
    clip = {'x': 0, 'y': 0, 'scale': 1, 'width': size['width']}
    clip['height'] = min(height or size['height'], size['height'])
    shot = self.call('Page.captureScreenshot', clip=clip, captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(shot['data']))

  def close(self) -> None:
    """Ends the browser."""
    self._commands.close()
    self._process.terminate()
    self._process.wait(20)
    self._answers.close()
