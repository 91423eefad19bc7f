"""The records that describe a benchmark, and what an evaluation passes to it.

A new benchmark is one module with a function `make(section)`, a line in `benchmark_registry` and a
section of `configs/evaluate.py`. A benchmark receives policies and judges as functions: it loads no
models and reads no config but its own section.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks.mt_bench_judge import ChatJudge
from nlhf_jax.evaluation.generation import LoadedModel, Respond
from nlhf_jax.evaluation.judgements import CachedJudge
from nlhf_jax.judges.judge import CombineOrders


class EvaluatedPolicy(NamedTuple):
  """A policy to be evaluated.

  `respond` and `load` are None for a policy that is known only by a file of responses. `load()`
  reads the network once; `key` is a digest of everything that determines what it generates, except
  the prompts. `responses` maps the prompts of the tournament to responses, once they are known, and
  `annotations` are rows of a published AlpacaEval judge. `check_interrupt(place)` raises
  `Interrupted` if the user asked to stop.
  """

  name: str
  respond: Respond | None = None
  load: Callable[[], LoadedModel] | None = None
  key: str = ''
  batch: int = 64
  seed: int = 0
  responses: Mapping[str, str] = {}
  annotations: Sequence[Mapping] = ()
  check_interrupt: Callable[[str], None] = lambda place: None


class Judges(NamedTuple):
  """The judges of an evaluation.

  `pairwise` maps names to judges of pairs of texts, `combine` to the function that merges the two
  orders where it is not their mean. `chat` is a language model, named `chat_name`, that answers
  (system prompt, user prompt) in text, or None.
  """

  pairwise: Mapping[str, CachedJudge] = {}
  combine: Mapping[str, CombineOrders] = {}
  chat: ChatJudge | None = None
  chat_name: str = ''


class BenchmarkTable(NamedTuple):
  """A table of results; each row begins with a name, and `columns` names the other cells."""

  title: str
  note: str
  columns: Sequence[str]
  rows: Sequence[Sequence[str | int | float]]


class Benchmark(NamedTuple):
  """A configured benchmark.

  First `prepare()` is called once; it raises `UserError` for what cannot run. Then `answer(policy,
  folder)` is called for each policy that can generate, one policy at a time, and leaves its results
  in the work folder. Last, `run(policies, judges, folder)` returns the tables.

  Attributes:
    name: of the benchmark and of its section of the config.
    run: (policies, judges, work folder) -> tables of results.
    answer: (policy, work folder) -> None; writes the answers of one policy to the folder.
    prepare: raises `UserError` if the benchmark cannot run.
    min_generators: how many policies that can generate it needs.
    needs_policies: whether it evaluates policies at all, and not only judges.
    needs_judges: whether it runs every judge of the evaluation, with or without a tournament.
    has_verdicts: whether its files contain verdicts of their own, so that no judge need be named.
    needs_chat_judge: whether it needs `Judges.chat`.
    references: rows with `instruction` and `output`; their instructions become the prompts of the
      tournament where the config names none.
  """

  name: str
  run: Callable[[Mapping[str, EvaluatedPolicy], Judges, Path], list[BenchmarkTable]]
  answer: Callable[[EvaluatedPolicy, Path], None] = lambda policy, folder: None
  prepare: Callable[[], None] = lambda: None
  min_generators: int = 0
  needs_policies: bool = True
  needs_judges: bool = False
  has_verdicts: bool = False
  needs_chat_judge: bool = False
  references: Sequence[Mapping] = ()


def split_list(text: str) -> list[str]:
  """The items of a comma-separated setting."""
  return [item.strip() for item in text.split(',') if item.strip()]


def require_all(name: str, section: Mapping[str, str], fields: Sequence[str], remedy: str) -> None:
  """Raises `UserError` if one of the fields of section `name` is empty."""
  for field in fields:
    if not section[field]:
      raise UserError(f'config.{name}.{field} is empty; {remedy}')


def find_references(benchmarks: Sequence[Benchmark]) -> Sequence[Mapping]:
  """Outputs of the reference policy of the first benchmark that has one."""
  return next((benchmark.references for benchmark in benchmarks if benchmark.references), ())
