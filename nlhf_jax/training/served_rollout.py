"""Rollouts by a generation server, which holds a copy of the weights that are trained here.

Before it samples, the server gets the weights of the slot if they have changed: they are written to
a folder and loaded, and the server's log-probabilities are compared with those computed here.
Losses score responses with the weights here; the server's differ from them by its rounding.
"""

import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, UInt32

from nlhf_jax import trees
from nlhf_jax.errors import UserError
from nlhf_jax.models import scoring
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.sampling.rollout import Rollout
from nlhf_jax.sampling.token import UNFILTERED, Filters
from nlhf_jax.storage import disk
from nlhf_jax.structs import Mixture, Params, Prompts, Responses
from nlhf_jax.training.generation_server import Client, Completion, Sampling, Weights

PROBES = 4  # prompts, whose greedy responses are compared
PROBE_LENGTH = 16  # tokens
MOVED = 1e-3  # nats: the change of a log-probability that a server with new weights must follow

# (parameters of one slot, folder) -> None: writes them in the Hugging Face layout.
Write = Callable[[Params, Path], None]


class Server(NamedTuple):
  """A generation server, and how weights reach it.

  Attributes:
    client: its methods.
    folder: where weights are written; the versions of an adapter are folders in it.
    write: writes them.
    adapters: whether these are the adapters alone.
    tolerated_gap: the largest mean difference of log-probabilities, in nats a token.
  """

  client: Client
  folder: Path
  write: Write
  adapters: bool
  tolerated_gap: float


class _Probe(NamedTuple):
  """Greedy responses of the server, and both log-probabilities of their tokens."""

  completions: list[Completion]
  theirs: np.ndarray
  ours: np.ndarray


def make_served_rollout(
  server: Server,
  decoder: Decoder,
  mixtures: Sequence[Mixture],
  *,
  length: int,
  stop: int,
  count: int = 1,
  filters: Filters = UNFILTERED,
) -> Rollout:
  """As `sampling.rollout.make_rollout`, for mixtures of one slot each.

  Responses have no log-probabilities and no entropy, since the server's are not those of the
  weights here to the last bit. The random numbers are the server's own: a key changes nothing.

  Raises:
    UserError: by the rollout, if the server fails, or its weights are not those that it was given.
  """
  members = [next(iter(mixture.items())) for mixture in mixtures]
  sampling = Sampling(length, stop, filters)
  publisher = _Publisher(server, decoder, sampling)

  def rollout(params: Mapping[str, Params], prompts: Prompts, key: Array) -> tuple[Responses, ...]:
    del key
    rows = _token_ids(prompts)
    sampled: dict[int, Responses] = {}
    for slot, weight in dict.fromkeys(members):
      publisher.publish(params, slot, prompts)
      places = [place for place, other in enumerate(members) if other == (slot, weight)]
      asked = [row for row in rows for _ in range(count * len(places))]
      # Logits times a weight are those at a temperature of its inverse.
      tempered = filters._replace(temperature=filters.temperature / weight)
      answers = server.client.complete(asked, sampling._replace(filters=tempered))
      both = _pad(answers, len(rows), length, stop)
      for number, place in enumerate(places):
        own = slice(number * count, (number + 1) * count)
        sampled[place] = Responses(both.tokens[:, own], both.mask[:, own])
    return tuple(sampled[place] for place in range(len(members)))

  return rollout


class _Publisher:
  """Lets a server have the weights of slots, and checks that it uses them."""

  def __init__(self, server: Server, decoder: Decoder, sampling: Sampling):
    self._server = server
    self._score = jax.jit(lambda *arguments: scoring.log_probs(decoder, *arguments))
    self._greedy = sampling._replace(
      length=min(PROBE_LENGTH, sampling.length), filters=UNFILTERED._replace(temperature=0.0)
    )
    self._digest: np.ndarray | None = None  # of the weights that are served
    # A server keeps the names of adapters, and caches by name, beyond the run that loaded them.
    self._run, self._versions = secrets.token_hex(4), 0
    self._prompts: Prompts | None = None  # the same for all probes
    self._last: _Probe | None = None

  def publish(self, params: Mapping[str, Params], slot: str, prompts: Prompts) -> None:
    """Lets the server have the weights of a slot, unless it has them; `prompts` are to probe it."""
    digest = np.asarray(fingerprint(params[slot]))
    if self._digest is not None and np.array_equal(self._digest, digest):
      return
    server, whole = self._server, trees.slot_params(params, slot)
    self._versions += 1
    name = f'{self._run}-{self._versions}'
    folder = server.folder / name if server.adapters else server.folder
    with disk.writing(server.folder):
      folder.mkdir(parents=True, exist_ok=True)
      server.write(whole, folder)
    server.client.load(Weights(folder.resolve(), server.adapters, name))
    if server.adapters:
      shutil.rmtree(server.folder / f'{self._run}-{self._versions - 1}', ignore_errors=True)
    if self._prompts is None:
      self._prompts = Prompts(*(np.asarray(leaf)[:PROBES] for leaf in prompts))
    self._check(self._probe(whole))
    self._digest = digest

  def _probe(self, params: Params) -> _Probe:
    greedy, client = self._greedy, self._server.client
    completions = client.complete(_token_ids(self._prompts), greedy)
    responses = _pad(completions, len(completions), greedy.length, greedy.stop)
    # A server that leaves a stop token out gives no log-probability of it.
    known = [np.arange(greedy.length) < len(answer.log_probs) for answer in completions]
    ours = np.asarray(self._score(params, self._prompts, responses))[:, 0][np.stack(known)]
    theirs = np.concatenate([answer.log_probs for answer in completions])
    return _Probe(completions, theirs, ours)

  def _check(self, now: _Probe) -> None:
    server, gap = self._server, float(np.mean(np.abs(now.theirs - now.ours)))
    if self._last and is_stale(self._last, now):
      raise UserError(
        'the generation server still answers with the weights from before the last update: its '
        f'log-probabilities have hardly changed, those of the new weights in {server.folder} '
        'have; make sure that it serves that folder.'
      )
    if not gap <= server.tolerated_gap:
      raise UserError(
        f'log-probabilities of the generation server differ from those computed here by {gap:.2g} '
        f'nats a token, more than config.generation_server.tolerated_gap={server.tolerated_gap:g}: '
        f'it serves another model than the one in {server.folder}, or rounds its weights further.'
      )
    if self._last is None:
      print(f'generation server: log-probabilities agree within {gap:.2g} nats a token')
    self._last = now


def is_stale(before: _Probe, now: _Probe) -> bool:
  """Whether a server answers as before, up to its rounding, although the weights have moved."""
  tokens = [[answer.tokens for answer in probe.completions] for probe in (before, now)]
  if tokens[0] != tokens[1] or before.ours.shape != now.ours.shape:
    return False
  ours = float(np.max(np.abs(now.ours - before.ours), initial=0.0))
  theirs = float(np.max(np.abs(now.theirs - before.theirs), initial=0.0))
  return ours > MOVED and theirs < ours / 10


@jax.jit
def fingerprint(params: Params) -> UInt32[Array, 'L']:
  """One number for each of the L leaves, which differs if a leaf does, but for one time in 2^32."""

  def one(leaf):
    bits = lax.bitcast_convert_type(leaf, f'uint{8 * leaf.dtype.itemsize}').ravel()
    bits = bits.astype(jnp.uint32)
    place = lax.iota(jnp.uint32, bits.size)
    # The shift lets signs, whose bit is the highest, change lower bits too: they do not cancel.
    return jnp.sum((bits ^ (bits >> 15)) * (2 * place + 1), dtype=jnp.uint32)

  return jnp.stack([one(leaf) for leaf in jax.tree.leaves(params)])


def _token_ids(prompts: Prompts) -> list[list[int]]:
  """Each prompt without its padding."""
  tokens, mask = (np.asarray(leaf) for leaf in prompts)
  return [row[own].tolist() for row, own in zip(tokens, mask, strict=True)]


def _pad(answers: Sequence[Completion], rows: int, length: int, stop: int) -> Responses:
  """Responses [rows, answers / rows, length], padded by the stop token."""
  tokens = np.full((len(answers), length), stop, np.int32)
  mask = np.zeros((len(answers), length), bool)
  for number, answer in enumerate(answers):
    tokens[number, : len(answer.tokens)] = answer.tokens
    mask[number, : len(answer.tokens)] = True
  shape = rows, len(answers) // rows, length
  return Responses(jnp.asarray(tokens.reshape(shape)), jnp.asarray(mask.reshape(shape)))
