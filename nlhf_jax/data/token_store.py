"""Tokenised examples on disk: written once, completely or not at all, and read row by row.

Rows of tokens are stored one after the other in memory-mapped files, so that a corpus uses memory
only for the rows that are read. Texts are stored in full; readers cut and pad them. A prompt that
several examples share is stored once.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nlhf_jax import distributed
from nlhf_jax.data import dialogue_texts, tokenizers
from nlhf_jax.data.chat_templates import make_codec
from nlhf_jax.data.conversations import Prompt, messages
from nlhf_jax.data.examples import Entry
from nlhf_jax.data.readers import Problem
from nlhf_jax.data.schemas import Example
from nlhf_jax.errors import UserError, first_line
from nlhf_jax.progress import progress
from nlhf_jax.storage import disk, json_lines, locks

# One example: its file and row, and its texts as rows of `prompts` and `responses`, -1 for none.
COLUMNS = np.dtype(
  [
    ('file', '<i4'),
    ('number', '<i8'),
    ('prompt', '<i8'),
    ('demonstration', '<i8'),
    ('left', '<i8'),
    ('right', '<i8'),
    ('preference', '<f8'),
  ]
)
TEXTS = ('demonstration', 'left', 'right')
CHUNK = 1024  # examples whose texts are in memory
ACCOUNT = 'account.json'
DIGESTS = 'digests.json'  # of all other files; written last

OTHER_TEMPLATE = 'change it, name a model whose chat template accepts it in config.model.hf'

Refuse = Callable[[int, int, Problem, str], None]  # file, row, problem, remedy


class Ragged(NamedTuple):
  """Rows of tokens of any length: row i is `tokens[ends[i - 1]:ends[i]]`, and `ends[-1]` is 0."""

  tokens: np.ndarray
  ends: np.ndarray

  def lengths(self, rows: np.ndarray) -> np.ndarray:
    """Number of tokens in each of the rows; 0 in row -1."""
    return np.subtract(*self._bounds(rows)[::-1])

  def take(self, rows: np.ndarray, most: int) -> list[np.ndarray]:
    """The first tokens of each of the rows, at most `most`; none of row -1."""
    starts, ends = self._bounds(rows)
    ends = np.minimum(ends, starts + most)
    return [
      self.tokens[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]

  def _bounds(self, rows):
    return self.ends[np.maximum(rows - 1, -1)], self.ends[rows]


class Tokenised(NamedTuple):
  """Examples as tokens.

  Attributes:
    prompts: each different prompt once.
    responses: demonstrations and both sides of comparisons.
    ranks: the rank of each prompt in an order that does not depend on that of the examples.
    records: one of `COLUMNS` for each example.
    account: how many `rows` were read; how many were `dropped`, by reason; and how many have a text
      that spells a part of the chat template, such as a special token, by part (`spelled`).
  """

  prompts: Ragged
  responses: Ragged
  ranks: np.ndarray
  records: np.ndarray
  account: dict[str, Any]


def write_once(folder: Path, write: Callable[[Path], None]) -> None:
  """Lets `write` fill a folder, unless it is complete; if it is killed, there is no folder.

  Of several processes the first one of each machine writes; of several runs one writes and the
  others wait.

  Raises:
    UserError: if `write` raises one, files cannot be read or written, or machines with folders of
      their own do not write the same.
  """
  problem = None
  if distributed.is_first_here():
    try:
      with locks.wait_for_lock(folder.with_name(f'.{folder.name}.lock')):
        if folder.exists() and not is_complete(folder):
          json_lines.set_aside(folder, 'is made again')
        if not folder.exists():
          _fill(folder, write)
    except UserError as error:
      problem = error
  if distributed.any_process(problem is not None):
    raise problem or UserError('another process could not read the data; its message says why.')
  if distributed.has_own_folders():
    digest = hashlib.sha256((folder / DIGESTS).read_bytes()).hexdigest()[:16]
    distributed.require_same(digest, 'other data than', 'the same files on every machine')


def _fill(folder, write) -> None:
  draft = folder.with_name(f'.{folder.name}.draft')
  shutil.rmtree(draft, ignore_errors=True)  # left by a run that was killed
  try:
    with disk.writing(draft):
      draft.mkdir()
      write(draft)
      digests = {file.name: _sync(file) for file in sorted(draft.iterdir())}
      # The first process alone is here, and must not wait for the others.
      (draft / DIGESTS).write_text(json_lines.to_sealed_text(digests))
      _sync(draft / DIGESTS)
      os.replace(draft, folder)
  except OSError as error:  # of a file that `write` reads
    raise _unreadable(error) from None
  finally:
    shutil.rmtree(draft, ignore_errors=True)


def _sync(file) -> str:
  """The digest of a file, which is then on the disk."""
  with file.open('rb') as written:
    os.fsync(written.fileno())
    return hashlib.file_digest(written, 'sha256').hexdigest()


def _unreadable(error) -> UserError:
  place = f"'{error.filename}'" if error.filename else 'the data'
  return UserError(
    f'cannot read {place}: {error.strerror or first_line(error)}; make it readable, or give '
    'another path.'
  )


def is_complete(folder: Path) -> bool:
  """Whether all files are as they were written."""
  try:
    digests = json_lines.from_sealed_text((folder / DIGESTS).read_bytes())
    return digests is not None and digests == {
      file.name: _sync(file) for file in folder.iterdir() if file.name != DIGESTS
    }
  except OSError:
    return False


def write(folder: Path, entries: Iterable[Entry], tokenizer: Any, refuse: Refuse) -> None:
  """Tokenises examples into the files of an empty folder.

  Args:
    folder: where to write.
    entries: the examples, and the problems of rows that are none.
    tokenizer: one of `tokenizers`.
    refuse: is called for each row that cannot be used; unless it raises, the row is dropped.
  """
  dropped, spelled, total = Counter(), Counter(), 0
  with contextlib.ExitStack() as stack:
    opened = lambda name: stack.enter_context((folder / name).open('wb'))
    prompts, responses = (_RowWriter(opened(f'{name}.tokens')) for name in ('prompts', 'responses'))
    table, known = opened('records'), _KnownPrompts(tokenizer, prompts)

    def drop(file, number, problem, remedy):
      refuse(file, number, problem, remedy)
      dropped[problem.reason] += 1

    bar = stack.enter_context(progress(None, 'tokenising', 'row', delay=2.0))
    for chunk in _chunks(_readable(entries)):
      total += len(chunk)
      bar.update(len(chunk))
      kept = []
      for file, number, example in chunk:
        if isinstance(example, Problem):
          drop(file, number, example, 'correct it')
        else:
          kept.append((file, number, example))
      rows = known.add([example.prompt for *_, example in kept])
      tokenised = []
      for (file, number, example), row in zip(kept, rows, strict=True):
        if isinstance(row, Problem):
          drop(file, number, row, OTHER_TEMPLATE)
        else:
          tokenised.append((file, number, example, row))
          spelled.update(_spelled_parts(tokenizer, example))
      _write_records(table, responses, tokenizer, tokenised)
  arrays = {
    'prompts.ends': prompts.ends,
    'responses.ends': responses.ends,
    'prompts.ranks': known.ranks(),
  }
  for name, values in arrays.items():
    (folder / name).write_bytes(np.asarray(values, np.int64))
  account = {'rows': total, 'dropped': dropped, 'spelled': spelled}
  (folder / ACCOUNT).write_text(json.dumps(account))


def _spelled_parts(tokenizer: Any, example: Example) -> set[str]:
  """Special tokens that an example spells or, without any, the template's text after a prompt."""
  codec = make_codec(tokenizer)
  prompt = '\n'.join(message.content for message in messages(example.prompt))
  fields = filter(None, (getattr(example, field) for field in TEXTS))
  texts = [prompt, *('\n'.join([field] if isinstance(field, str) else field) for field in fields)]
  lead = codec.turn.lead.strip()
  found = {token for text in texts for token in codec.special.findall(text)}
  return found or ({lead} if len(lead) > 3 and lead in prompt else set())


def _write_records(table, responses, tokenizer, tokenised) -> None:
  """Writes the responses of a chunk, and its rows of the table."""
  texts = [getattr(example, field) for *_, example, _ in tokenised for field in TEXTS]
  turns = [(text,) if isinstance(text, str) else text for text in texts if text is not None]
  ids = iter(dialogue_texts.conversation_ids(tokenizer, turns))
  rows = iter([-1 if text is None else responses.add(next(ids)) for text in texts])
  records = [
    (file, number, prompt, next(rows), next(rows), next(rows), example.preference)
    for file, number, example, prompt in tokenised
  ]
  table.write(np.array(records, COLUMNS).tobytes())  # `tofile` would not say why it failed


class _RowWriter:
  """Writes rows of tokens, one after the other; a class, because it counts them."""

  def __init__(self, file: BinaryIO):
    self._file = file
    self.ends = array('q')

  def add(self, ids: list[int]) -> int:
    """Writes a row, and returns its number."""
    self._file.write(array('i', ids).tobytes())
    self.ends.append((self.ends[-1] if self.ends else 0) + len(ids))
    return len(self.ends) - 1


class _KnownPrompts:
  """Writes each different prompt once; a class, because it remembers them."""

  def __init__(self, tokenizer: Any, rows: _RowWriter):
    self._tokenizer, self._rows = tokenizer, rows
    self._known: dict[bytes, int | Problem] = {}

  def add(self, prompts: Sequence[Prompt]) -> list[int | Problem]:
    """The row of each prompt, or why the tokenizer cannot encode it."""
    keys = [_digest(prompt) for prompt in prompts]
    new = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
    for key, ids in zip(new, encode_prompts(self._tokenizer, list(new.values())), strict=True):
      self._known[key] = ids if isinstance(ids, Problem) else self._rows.add(ids)
    return [self._known[key] for key in keys]

  def ranks(self) -> np.ndarray:
    """The rank of each row's prompt by its digest."""
    keys = [key for key, row in self._known.items() if not isinstance(row, Problem)]
    ranks = np.empty(len(keys), np.int64)
    ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return ranks


def _readable(entries) -> Iterator[Entry]:
  """The entries; an error of the disk that they are read from is none of the one written to."""
  try:
    yield from entries
  except OSError as error:
    raise _unreadable(error) from None


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
  while chunk := list(itertools.islice(entries, CHUNK)):
    yield chunk


def _digest(prompt: Prompt) -> bytes:
  """A digest of a prompt, which takes less memory than the prompt."""
  return hashlib.blake2b(json.dumps(messages(prompt)).encode(), digest_size=16).digest()


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int] | Problem]:
  """Token ids of each prompt, or why the tokenizer cannot encode it."""
  written = [
    prompt if isinstance(prompt, str) else [message._asdict() for message in prompt]
    for prompt in prompts
  ]
  try:
    return tokenizers.prompt_ids(tokenizer, written)
  except Problem as problem:
    if len(prompts) == 1:
      return [problem]
    return [ids for prompt in prompts for ids in encode_prompts(tokenizer, [prompt])]


def read(folder: Path) -> Tokenised:
  """Maps what `write` wrote into memory."""

  def ragged(name):
    ends = np.append(mapped(f'{name}.ends', np.int64), 0)
    return Ragged(mapped(f'{name}.tokens', np.int32), ends)

  def mapped(name, kind):
    path = folder / name
    return np.asarray(np.memmap(path, kind, 'r')) if path.stat().st_size else np.empty(0, kind)

  return Tokenised(
    ragged('prompts'),
    ragged('responses'),
    np.array(mapped('prompts.ranks', np.int64)),
    np.array(mapped('records', COLUMNS)),
    json_lines.read_json(folder / ACCOUNT),
  )
