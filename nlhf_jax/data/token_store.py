"""Tokenised records on disk: written once, whole or not at all, and read from there row by row.

Rows of tokens lie one after the other in files that are mapped into memory, so that a corpus takes
as much of it as is looked at. Texts are kept whole; who reads them cuts and pads. A prompt that
several records ask is there once.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from nlhf_jax import distributed
from nlhf_jax.data import tokenizers
from nlhf_jax.data.examples import Entry
from nlhf_jax.data.readers import Problem
from nlhf_jax.data.schemas import Example, messages
from nlhf_jax.errors import UserError, first_line
from nlhf_jax.storage import json_lines, locks

# One record: where it was found, and its texts as rows of `prompts` and `responses`, -1 for none.
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
AT_ONCE = 1024  # records whose texts are in memory
NOTE = 'account.json'

Refuse = Callable[[int, int, Problem, str], None]  # file, row, problem, remedy


class Ragged(NamedTuple):
  """Rows of tokens of any length: row i is `tokens[ends[i - 1]:ends[i]]`, and `ends[-1]` is 0."""

  tokens: np.ndarray
  ends: np.ndarray

  def lengths(self, rows: np.ndarray) -> np.ndarray:
    """Tokens in each of the rows; 0 in row -1."""
    return np.subtract(*self._bounds(rows)[::-1])

  def take(self, rows: np.ndarray, longest: int) -> list[np.ndarray]:
    """The tokens of each of the rows, up to so many; none of row -1."""
    starts, ends = self._bounds(rows)
    ends = np.minimum(ends, starts + longest)
    return [
      self.tokens[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]

  def _bounds(self, rows):
    return self.ends[np.maximum(rows - 1, -1)], self.ends[rows]


class Tokenised(NamedTuple):
  """Records as tokens. `ranks` puts the prompts into an order that is not that of the records.

  `account` says how many `rows` there were, and how many were `dropped` for what reason.
  """

  prompts: Ragged
  responses: Ragged
  ranks: np.ndarray
  records: np.ndarray
  account: dict[str, Any]


def write_once(folder: Path, write: Callable[[Path], None]) -> None:
  """Has `write` fill a folder, unless that was done; one killed meanwhile leaves nothing there.

  Of several processes the first one writes; of several runs one does, and the others wait for it.

  Raises:
    UserError: if `write` does, or the disk is full.
  """
  problem = None
  if distributed.is_first():
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
      with locks.wait_for_lock(folder.with_name(f'.{folder.name}.lock')):
        if not is_complete(folder):
          _fill(folder, write)
    except UserError as error:
      problem = error
  if distributed.any_process(problem is not None):
    raise problem or UserError('the first process could not read the data.')


def _fill(folder, write) -> None:
  draft = folder.with_name(f'.{folder.name}.draft')
  shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
  draft.mkdir()
  try:
    write(draft)
    for file in draft.iterdir():
      with file.open('rb') as written:
        os.fsync(written.fileno())
    shutil.rmtree(folder, ignore_errors=True)  # there only if it was not whole
    os.replace(draft, folder)
  except OSError as error:
    reason = error.strerror or first_line(error)
    raise UserError(f"cannot write to '{draft}': {reason}; make room for it.") from None
  finally:
    shutil.rmtree(draft, ignore_errors=True)


def is_complete(folder: Path) -> bool:
  """Whether all files are there, and as long as they were written."""
  try:
    sizes = json_lines.read_json(folder / NOTE)['sizes']
    return all((folder / name).stat().st_size == size for name, size in sizes.items())
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return False


def write(folder: Path, entries: Iterable[Entry], tokenizer: Any, refuse: Refuse) -> None:
  """Tokenises records into the files of a folder.

  Args:
    folder: there is nothing in it that is called alike.
    entries: the records, and what could not be one.
    tokenizer: of `tokenizers`.
    refuse: raises for a record that cannot be used, or lets it be dropped and counted.
  """
  dropped, total, known = Counter(), 0, {}
  with contextlib.ExitStack() as stack:
    opened = lambda name: stack.enter_context((folder / name).open('wb'))
    prompts, responses = (_Rows(opened(f'{name}.tokens')) for name in ('prompts', 'responses'))
    table = opened('records')
    for chunk in _chunks(
      iter(tqdm(entries, desc='tokenising', unit='row', mininterval=0.5, delay=2))
    ):
      total += len(chunk)
      good = []
      for file, number, said in chunk:
        if isinstance(said, Problem):
          refuse(file, number, said, 'correct it')
          dropped[said.reason] += 1
        else:
          good.append((file, number, said, _digest(said)))
      new = {key: said.prompt for *_, said, key in good if key not in known}
      for key, ids in zip(new, _prompt_ids(tokenizer, list(new.values())), strict=True):
        known[key] = ids if isinstance(ids, Problem) else prompts.add(ids)
      kept = []
      for file, number, said, key in good:
        if isinstance(known[key], Problem):
          refuse(
            file,
            number,
            known[key],
            'change it, give a model whose chat template takes it by config.model.hf',
          )
          dropped[known[key].reason] += 1
        else:
          kept.append((file, number, said, known[key]))
      said = [getattr(record, field) for *_, record, _ in kept for field in TEXTS]
      ids = iter(tokenizers.response_ids(tokenizer, [text for text in said if text is not None]))
      places = iter([-1 if text is None else responses.add(next(ids)) for text in said])
      rows = [
        (file, number, prompt, next(places), next(places), next(places), record.preference)
        for file, number, record, prompt in kept
      ]
      np.array(rows, COLUMNS).tofile(table)
  keys = [key for key, row in known.items() if not isinstance(row, Problem)]  # in order of row
  ranks = np.empty(len(keys), np.int64)
  ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
  arrays = {'prompts.ends': prompts.ends, 'responses.ends': responses.ends, 'prompts.ranks': ranks}
  for name, values in arrays.items():
    np.asarray(values, np.int64).tofile(folder / name)
  sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
  account = {'rows': total, 'dropped': dropped, 'sizes': sizes}
  (folder / NOTE).write_text(json.dumps(account))  # last: without it nothing is whole


class _Rows:
  """Writes rows of tokens, one after the other; a class, for it counts them."""

  def __init__(self, file: BinaryIO):
    self._file = file
    self.ends = array('q')

  def add(self, ids: list[int]) -> int:
    """Writes a row, and says which one it is."""
    self._file.write(array('i', ids).tobytes())
    self.ends.append((self.ends[-1] if self.ends else 0) + len(ids))
    return len(self.ends) - 1


def _chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
  while chunk := list(itertools.islice(entries, AT_ONCE)):
    yield chunk


def _digest(record: Example) -> bytes:
  """What tells a prompt from others, in less memory than the prompt."""
  return hashlib.blake2b(json.dumps(messages(record.prompt)).encode(), digest_size=16).digest()


def _prompt_ids(tokenizer, prompts) -> list[list[int] | Problem]:
  """Token ids of each prompt, or why the tokenizer cannot write it."""
  written = [
    prompt if isinstance(prompt, str) else [message._asdict() for message in prompt]
    for prompt in prompts
  ]
  try:
    return tokenizers.prompt_ids(tokenizer, written)
  except Problem as problem:
    if len(prompts) == 1:
      return [problem]
    return [ids for prompt in prompts for ids in _prompt_ids(tokenizer, [prompt])]


def read(folder: Path) -> Tokenised:
  """What `write` wrote, mapped into memory."""

  def ragged(name):
    ends = np.append(mapped(f'{name}.ends', np.int64), 0)
    return Ragged(mapped(f'{name}.tokens', np.int32), ends)

  def mapped(name, kind):
    path = folder / name
    return np.asarray(np.memmap(path, kind, 'r')) if path.stat().st_size else np.empty(0, kind)

  account = json_lines.read_json(folder / NOTE)
  del account['sizes']
  return Tokenised(
    ragged('prompts'),
    ragged('responses'),
    np.array(mapped('prompts.ranks', np.int64)),
    np.array(mapped('records', COLUMNS)),
    account,
  )
