"""Keys of remote judges and servers: read from environment variables, and written nowhere."""

import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from nlhf_jax.errors import UserError
from nlhf_jax.storage.texts import printable

# Names that messages repeat and that a config may contain where no such variable is set: words in
# capitals, unlike the keys of all known providers.
NAME = re.compile(r'[A-Z]{1,20}\d{0,3}(?:_(?:[A-Z]{1,20}\d{0,3}|\d{1,3})){0,8}')
FIELDS = re.compile(
  r'"(?:x[-_])?(?:api[-_]?key|key|auth|authorization|access[-_]token|token|secret|password)"\s*:',
  re.IGNORECASE,
)
# Sections of a config with an address and a key, and whose they are.
SECTIONS = {'remote': 'the remote judge', 'generation_server': 'the generation server'}
SHORTEST = 6  # characters of a key that is worth hiding; a server may be given "none" or "1"


def check_secrets(config: Mapping[str, Any]) -> None:
  """Refuses a config whose sections of remote programs contain a secret; no message repeats it.

  Call it before the config is printed or written.

  Raises:
    UserError: if a `key` is not the name of a variable, a URL has a user, a password or a query, or
      the request has a field for a key.
  """
  for name, owner in SECTIONS.items():
    if name in config:
      _check_section(config[name], f'config.{name}', owner)


def _check_section(section: Mapping[str, Any], field: str, owner: str) -> None:
  key = section['key']
  if key and key not in os.environ and not NAME.fullmatch(key):
    raise UserError(
      f'{field}.key must be the name of an environment variable that holds the key, such as '
      'OPENAI_API_KEY, and not the key itself; export the key under such a name (the value given '
      'is not repeated here, and was not written to any file).'
    )
  if section['url']:
    check_url(section['url'], owner)
  if FIELDS.search(section.get('request', '')):
    raise UserError(
      f'{field}.request has a field for a key, and configs are written to disk; name the '
      f'environment variable that holds the key in {field}.key instead.'
    )


def check_url(url: str, owner: str = 'the remote judge') -> None:
  """Refuses a URL that is malformed or contains a secret; the message does not repeat the secret.

  Raises:
    UserError: the message describes a valid URL.
  """
  try:
    parts = urlsplit(url)
    valid = parts.scheme in ('http', 'https') and parts.hostname and parts.port != 0
    valid = valid and re.fullmatch('[!-~]+', url)  # no spaces, controls or other alphabets
    if '[' in url:
      ipaddress.IPv6Address(parts.hostname)
  except ValueError:
    valid = False
  if any(mark in url for mark in '@?#'):
    raise UserError(
      f"{owner}'s url must have no user, no password and no query; the key is read from "
      'the environment variable that key names.'
    )
  if not valid:
    shown = f"='{printable(url)}'" if ':' in url else ''  # without a colon it may be the key
    raise UserError(f"{owner}'s url{shown} must be like https://api.openai.com/v1.")


def read_key(variable: str, owner: str = 'the remote judge') -> str:
  """The key in an environment variable; empty without a name. No message contains it.

  Raises:
    UserError: if the variable is not set, or a header cannot contain its value.
  """
  key = os.environ.get(variable, '').strip() if variable else ''
  if variable and not (key and key.isascii() and key.isprintable()):
    shown = variable if NAME.fullmatch(variable) else ''
    raise UserError(
      f"{owner}'s key{shown and f'={shown!r}'} is not an environment variable that holds "
      f'a key; export {shown or "NAME"}=... before the run, or leave key empty if the endpoint '
      'needs none.'
    )
  return key


def redact(secret: str, text: str) -> str:
  """The text without the key, which an endpoint may repeat, also as URLs spell it."""
  if len(secret) < SHORTEST:
    return text
  return text.replace(secret, '...').replace(quote(secret, safe=''), '...')
