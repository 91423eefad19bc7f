"""Refuses settings that need more memory than there is, before any of it is asked for.

The counts are lower bounds, from the settings alone: what passes here may still not fit, which
`nlhf plan` says.
"""

import math
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from nlhf_jax.errors import UserError
from nlhf_jax.experiments.dialogue_config import conversation_length

FLOAT = 4  # bytes
EXAMPLE = 200  # bytes of an example that are in memory while it is tokenised
TOKEN = 100  # bytes of a token of a tokenizer that is trained
CONTROL_GROUP = Path('/sys/fs/cgroup/memory.max')


def available_memory() -> int:
  """Bytes of memory of the devices, or of this machine where the devices are its CPUs."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit'] * jax.device_count()
  return host_memory()


def host_memory() -> int:
  """Bytes of memory that this process may use."""
  most = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  try:
    return min(most, int(CONTROL_GROUP.read_text()))
  except (OSError, ValueError):  # no control group, or one without a limit
    return most


def require(needed: int, available: int, what: str, fields: str) -> None:
  """Refuses to need more bytes than are available.

  Args:
    needed: bytes.
    available: bytes.
    what: needs them, for the message.
    fields: of the config, which determine how many.

  Raises:
    UserError: names the fields and both amounts.
  """
  if needed > available:
    raise UserError(
      f'{fields}: {what} would need at least {needed / 1e9:,.1f} GB of memory, but there are '
      f'{available / 1e9:,.1f} GB; lower them.'
    )


def check_language(config: ConfigDict) -> None:
  """Refuses data, models and batches that cannot fit.

  Raises:
    UserError: names the fields to lower.
  """
  data, host, most = config.data, host_memory(), available_memory()
  if 'posts' in data:
    needed = EXAMPLE * (data.posts + data.held_out)
    require(needed, host, 'the embedded task', 'config.data.posts and held_out')
  lengths = data.prompt_length + conversation_length(config)
  trained = [('config.sft', config.sft.batch), ('config.tournament', config.tournament.batch)]
  trained += [(f'config.policies.{name}', row.batch) for name, row in config.policies.items()]
  for field, batch in trained:
    # Tournaments, and batches, are of no more prompts than there are.
    batch = min(batch, config.tournament.prompts) if field == 'config.tournament' else batch
    fields = f'{field}.batch, config.data.prompt_length and response_length'
    require(FLOAT * batch * lengths, most, 'a batch of tokens', fields)
  for name, row in config.policies.items():
    if 'votes' in row:
      field = f'config.policies.{name}.votes'
      require(FLOAT * row.votes.total * lengths, host, 'the votes', f'{field}.total')
      check_candidates(row.votes.candidates, row.batch * lengths, f'{field}.candidates')
  best = config.tournament.best_of
  if best:
    prompts = min(max(config.tournament.batch // best, 1), config.tournament.prompts)
    check_candidates(best, prompts * lengths, 'config.tournament.best_of')
  if config.model.hf:
    return
  if 'vocabulary' in data:
    require(TOKEN * data.vocabulary, host, 'the tokenizer', 'config.data.vocabulary')
  check_model(config.model, data.vocabulary)
  for name, sizes in config.get('sizes', {}).items():
    check_model({**config.model, **sizes}, data.vocabulary, f'config.sizes.{name}')


def check_model(sizes: ConfigDict | dict, vocabulary: int, field: str = 'config.model') -> None:
  """Refuses a new model whose weights and their gradient cannot fit.

  Raises:
    UserError: names the fields to lower.
  """
  attention = 2 * sizes['width'] * sizes['head_size'] * (sizes['heads'] + sizes['key_heads'])
  layer = attention + 3 * sizes['width'] * sizes['hidden']
  weights = sizes['width'] * vocabulary + sizes['layers'] * layer
  fields = f'{field}.width, layers, heads, head_size and hidden, and the vocabulary'
  require(2 * FLOAT * weights, available_memory(), 'the weights and their gradient', fields)


def check_candidates(candidates: int, numbers: int, field: str) -> None:
  """Refuses candidates of an enhancer whose pairs, of so many numbers each, cannot fit."""
  require(FLOAT * candidates**2 * numbers, available_memory(), 'all pairs of candidates', field)


def check_table(actions: int, copies: int, fields: str) -> None:
  """Refuses a game whose payoffs, `copies` tables of all pairs of actions, cannot fit.

  Raises:
    UserError: names the fields to lower.
  """
  require(8 * copies * actions**2, host_memory(), 'the payoffs of all pairs of actions', fields)


def count_sequences(symbols: int, length: int, most: int) -> int:
  """The number of sequences of at most `length` symbols; stops counting above `most`."""
  if symbols == 1:
    return length + 1
  total = 0
  for size in range(min(length, math.ceil(math.log2(most + 1))) + 1):
    total += symbols**size
  return total
