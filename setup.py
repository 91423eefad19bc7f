"""The packages, description and addresses of the wheel; all other metadata is in setup.cfg.

`configs/` stands at the top level of the repository and is installed as `nlhf_jax/configs`.

The description is README.md. On the page of a package index its relative links lead nowhere, so
they become absolute if `NLHF_REPOSITORY` has the address of the repository, and plain text
otherwise.
"""

import os
import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

# Code, which has no links; or [text](target), with `!` before it if it is an image.
LINK = re.compile(r'```.*?```|`[^`]*`|(!?)\[([^\]]*)\]\(([^)\s]+)\)', re.DOTALL)


def read_address():
  """The repository's address without `.git`, from the environment; empty if there is none."""
  address = os.environ.get('NLHF_REPOSITORY', '').strip().rstrip('/').removesuffix('.git')
  if address and not re.match(r'https?://[^/\s]+/\S+$', address):
    raise SystemExit(f"NLHF_REPOSITORY='{address}' must be like https://HOST/OWNER/NAME.")
  return address


def describe(page, address):
  """The page with links to files of a repository at an address; as plain text if it is empty."""

  def replace(link):
    image, text, target = link.groups()
    if target is None or re.match(r'[a-z]+:|#', target):
      return link[0]
    if not address:
      return text
    return f'{image}[{text}]({address}/{"raw" if image else "blob"}/HEAD/{target})'

  return LINK.sub(replace, page)


def project_urls(address):
  """The links beside the description; none without an address."""
  if not address:
    return {}
  return {
    'Source': address,
    'Documentation': f'{address}/blob/HEAD/docs/index.md',
    'Changelog': f'{address}/blob/HEAD/CHANGELOG.md',
    'Issues': f'{address}/issues',
  }


ADDRESS = read_address()
setup(
  packages=[*find_namespace_packages(include=['nlhf_jax*']), 'nlhf_jax.configs'],
  package_dir={'nlhf_jax.configs': 'configs'},
  long_description=describe(Path(__file__).with_name('README.md').read_text('utf-8'), ADDRESS),
  long_description_content_type='text/markdown',
  project_urls=project_urls(ADDRESS),
)
