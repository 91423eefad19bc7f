"""Reads the text of compiled programs: what they move between devices, and whether in a loop.

Counts are exact in the text right after partitioning, which has true types and is as it is before a
backend moves or widens anything.
"""

import math
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

COLLECTIVES = {
  'all-gather',
  'all-reduce',
  'all-to-all',
  'collective-permute',
  'reduce-scatter',
}
BYTES = {'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8, 'pred': 1}
NAME = r'%?([\w.\-]+)'


class Instruction(NamedTuple):
  """An instruction of a compiled program, and the bytes of its result on one device."""

  in_loop: bool
  opcode: str
  bytes: int
  line: str


def partitioned(lowered) -> tuple[jax.stages.Compiled, str]:
  """The compiled program, and its text right after it is divided among the devices."""
  dump = {'xla_dump_hlo_as_text': True, 'xla_dump_hlo_pass_re': 'spmd-partitioning'}
  # A program from the cache would dump nothing. JAX looks at the setting once, until it is reset.
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    with tempfile.TemporaryDirectory() as folder:
      compiled = lowered.compile({'xla_dump_to': folder, **dump})
      # Texts are numbered; the one before the pass has a smaller number.
      text = max(Path(folder).glob('*after*spmd-partitioning*.txt')).read_text()
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()
  return compiled, text


def instructions(text: str) -> list[Instruction]:
  """All instructions of a program; one is in a loop if the body or condition of one calls it."""
  here, found, calls, roots = None, [], defaultdict(set), set()
  for line in text.splitlines():
    if line[:1].strip() and line.rstrip().endswith('{') and not line.startswith('HloModule'):
      here = re.match(rf'(?:ENTRY )?{NAME}', line)[1]
      continue
    looped = set(re.findall(rf'(?:body|condition)={NAME}', line))
    roots |= looped
    calls[here] |= looped | set(re.findall(rf'(?:to_apply|calls)={NAME}', line))
    for group in re.findall(r'(?:called_computations|branch_computations)=\{([^}]*)\}', line):
      calls[here] |= {name.strip().lstrip('%') for name in group.split(',')}
    if match := re.match(rf'\s*(?:ROOT )?{NAME} = (.*?) ([a-z][\w\-]*)\(', line):
      found.append((here, match[3].removesuffix('-start'), size(match[2]), line))
  loops, todo = set(), list(roots)
  while todo:
    if (name := todo.pop()) not in loops:
      loops.add(name)
      todo += calls[name]
  return [Instruction(name in loops, *rest) for name, *rest in found]


def collectives(text: str, in_loop: bool | None = None) -> list[Instruction]:
  """The instructions that move data between devices: in loops, outside them, or all."""
  return [
    found
    for found in instructions(text)
    if found.opcode in COLLECTIVES and in_loop in (None, found.in_loop)
  ]


def size(kind: str) -> int:
  """Bytes of a type such as `f32[8,16]{1,0}`, or of a tuple of types."""
  return sum(
    _item_bytes(dtype) * math.prod(int(axis) for axis in axes.split(',') if axis)
    for dtype, axes in re.findall(r'([a-z]+\d*)\[([\d,]*)\]', kind)
  )


def shapes(found: Instruction) -> list[tuple[str, tuple[int, ...]]]:
  """Types of the results of an instruction, such as ('f32', (8, 16))."""
  kind = found.line.split(' = ', 1)[1].split(f' {found.opcode}', 1)[0]
  return [
    (dtype, tuple(int(axis) for axis in axes.split(',') if axis))
    for dtype, axes in re.findall(r'([a-z]+\d*)\[([\d,]*)\]', kind)
  ]


def _item_bytes(dtype: str) -> int:
  return BYTES[dtype] if dtype in BYTES else max(int(re.search(r'\d+', dtype)[0]) // 8, 1)
