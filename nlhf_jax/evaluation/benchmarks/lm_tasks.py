"""Tasks of the lm-evaluation-harness, run piece by piece, and the alignment tax on them.

The Open LLM Leaderboard is the group `openllm`. Needs the extra `harness`, as `lm_harness` does.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import lm_eval
import lm_eval.api.metrics
import lm_eval.utils
import yaml
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.registry import metric_registry
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from nlhf_jax.errors import UserError, first_line
from nlhf_jax.evaluation.benchmarks.lm_harness import HarnessModel
from nlhf_jax.storage import json_lines

# Templates come with tasks, and the environment of the harness lets them call any Python.
_SANDBOX = SandboxedEnvironment(
  loader=jinja2.BaseLoader(), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
)
_SANDBOX.filters.update(lm_eval.utils.env.filters)
lm_eval.utils.env = _SANDBOX

# What third-party code raises where a task is malformed.
TASK_ERRORS = (
  KeyError,
  TypeError,
  ValueError,
  OSError,
  AttributeError,
  IndexError,
  RecursionError,
  ImportError,
  jinja2.TemplateError,
  yaml.YAMLError,
)


class Piece(NamedTuple):
  """A unit that the harness runs in one call: a task, or a group that has a score of its own.

  `settings` determine the outcome: they change when a file of the task changes.
  """

  name: str
  settings: object


def find_tasks(tasks: Sequence[str], trust: bool = False) -> tuple[TaskManager, list[Piece]]:
  """The harness's task manager, and the pieces of some tasks; no data are read.

  Args:
    tasks: names of tasks or of groups, such as `openllm`, or paths of YAML files.
    trust: whether YAML files may run code of their own. The harness's tasks always may.

  Raises:
    UserError: if there is no such task, or it runs code and is not trusted.
  """
  # The harness's own tasks are thousands of files; they are read only if one is named.
  manager = TaskManager(include_defaults=not all(map(os.path.isfile, tasks)))
  index, pieces = manager.task_index, []
  for task in tasks:
    try:
      if os.path.isfile(task) and not trust:
        _refuse_code(task, Path(task))
      settings = [lm_eval.__version__, task, _contents(task) if os.path.isfile(task) else {}]
      entry = TaskIndex.entry_from_path(Path(task)) if os.path.isfile(task) else index[task]
      index[task] = entry
      if entry.kind is Kind.GROUP:
        _keep_names(index, task)
    except TASK_ERRORS as error:
      raise _cannot_run(task, error) from None
    of_group = index[task].cfg if entry.kind is Kind.GROUP else {}
    if of_group and not of_group.get('aggregate_metric_list'):
      for member in of_group['task']:
        name = f'{entry.name}/{member.get("group", member.get("task"))}'
        index[name] = dataclasses.replace(index[task], cfg={**of_group, 'task': [member]})
        pieces.append(Piece(name, [*settings, name]))
    else:
      pieces.append(Piece(task, settings))
  return manager, pieces


def _cannot_run(task, error) -> UserError:
  return UserError(
    f"the lm-evaluation-harness cannot run '{task}' ({type(error).__name__}: {first_line(error)}); "
    '`lm-eval ls tasks` lists what it has.'
  )


class _Function(str):
  """The name of a function in a task's file, written `!function module.name`."""


class _Loader(yaml.SafeLoader):
  """Reads a task's file without importing the functions that it names."""


_Loader.add_constructor('!function', lambda loader, node: _Function(loader.construct_scalar(node)))


def _refuse_code(task: str, path: Path, seen: tuple[Path, ...] = ()) -> None:
  """Refuses a task that runs code which is not part of the harness.

  Raises:
    UserError: that names the code and the setting.
  """
  path = path.expanduser().resolve()
  if path.is_relative_to(Path(lm_eval.__file__).parent) or path in seen:
    return
  content = yaml.load(path.read_bytes(), Loader=_Loader)
  code = _find_code(content)
  if code:
    raise UserError(
      f"config.harness.tasks: '{task}' runs {code} in {path}; set config.harness.trust_tasks=True "
      'if you trust that code, or remove the task.'
    )
  included = content.get('include', []) if isinstance(content, Mapping) else []
  for name in included if isinstance(included, list) else [included]:
    _refuse_code(task, path.parent / name, (*seen, path))


def _find_code(value: Any) -> str:
  """What part of a task's settings is code, or an empty text."""
  if isinstance(value, _Function):
    return f"the function '{value}'"
  if isinstance(value, list):
    return next(filter(None, map(_find_code, value)), '')
  if not isinstance(value, Mapping):
    return ''
  if 'class' in value:
    return f"the class '{value['class']}'"
  if 'use_prompt' in value:
    return f"the prompt '{value['use_prompt']}'"
  if value.get('dataset_path') == 'pandas':
    return 'pickled data'
  # Other metrics are programs, which the harness downloads or reads from a folder.
  metric = value.get('metric')
  if isinstance(metric, str) and (value.get('hf_evaluate') or metric not in metric_registry):
    return f"the program of the metric '{metric}'"
  return next(filter(None, map(_find_code, value.values())), '')


def _contents(path) -> dict[str, str]:
  """Digests of a task's file, and of the files of data and code that it names."""
  config = load_yaml(path, resolve_func=False)
  text = json.dumps(config, sort_keys=True, default=str)
  found = {'': hashlib.sha256(text.encode()).hexdigest()}

  def visit(value):
    if isinstance(value, Mapping | list):
      for item in value.values() if isinstance(value, Mapping) else value:
        visit(item)
    elif isinstance(value, str):
      for named in (value, f'{os.path.splitext(value)[0]}.py'):  # a function is FOLDER/module.name
        if os.path.isfile(named):
          with open(named, 'rb') as file:
            found[named] = hashlib.file_digest(file, 'sha256').hexdigest()

  visit(config)
  return found


def _keep_names(index: dict[str, Entry], name: str) -> None:
  """Rewrites a group so that its tasks keep their names.

  If a group includes another group or a tag with settings of its own, as `openllm` does with MMLU,
  lm_eval 0.4.13 gives all of its tasks the name of the group, and recurses without end.
  """
  entry = index[name]
  config = load_yaml(entry.yaml_path) if entry.yaml_path else entry.cfg
  members = []
  for member in config['task']:
    settings = dict(member) if isinstance(member, Mapping) else {'task': member}
    of = settings.get('group', settings['task'])
    kind = index[of].kind if of in index else None
    own = {field: value for field, value in settings.items() if field not in ('group', 'task')}
    if kind is Kind.GROUP:
      _keep_names(index, of)
      members.append({'group': of, **own})
    elif kind is Kind.TAG:
      members += [{'task': one, **own} for one in sorted(index[of].tags)]
    else:
      members.append(settings)
  index[name] = dataclasses.replace(entry, yaml_path=None, cfg={**config, 'task': members})


def evaluate(
  policy: HarnessModel, manager: TaskManager, piece: Piece, limit: int | None = None
) -> dict:
  """The outcome of `lm_eval.simple_evaluate` without its samples, as plain values.

  Args:
    policy: to evaluate.
    manager: of `find_tasks`.
    piece: one of the pieces of `find_tasks`.
    limit: questions per task; None for all.

  Returns:
    the harness's `results`, `n-shot`, `n-samples`, `versions` and `group_subtasks`, and the number
    of prompts that were `cut` to fit the context of the policy.

  Raises:
    UserError: if the piece cannot be run, or its data cannot be read.
  """
  policy.cut = 0
  try:
    found = lm_eval.simple_evaluate(
      policy, tasks=[piece.name], limit=limit, log_samples=False, task_manager=manager
    )
  except TASK_ERRORS as error:
    raise _cannot_run(piece.name, error) from None
  except UserError as error:
    raise UserError(f"'{piece.name}' of the lm-evaluation-harness: {error}") from None
  names = ('results', 'n-shot', 'n-samples', 'versions', 'group_subtasks')
  kept = {name: found.get(name, {}) for name in names}
  return json.loads(json.dumps(json_lines.to_json(kept), default=str)) | {'cut': policy.cut}


def merge(outcomes: Sequence[Mapping]) -> dict:
  """The outcomes of several pieces as one.

  Raises:
    UserError: if a task occurs in two of them.
  """
  whole: dict = {'cut': 0}
  for outcome in outcomes:
    for task in outcome['n-samples']:
      if task in whole.get('n-samples', ()):
        raise UserError(
          f"config.harness.tasks: the task '{task}' occurs twice, perhaps with different settings; "
          'remove one.'
        )
    for name, found in outcome.items():
      whole[name] = whole['cut'] + found if name == 'cut' else whole.get(name, {}) | found
  return whole


def scores(outcome: Mapping) -> list[dict]:
  """`task`, `metric`, `score` and its standard `error`, NaN where the harness has none.

  Tasks that enter the score of their group have no rows of their own.

  Args:
    outcome: of `evaluate`.
  """
  scored = lambda name: any(',' in field for field in outcome['results'].get(name, ()))
  groups = outcome.get('group_subtasks', {})
  parts = {task for group, tasks in groups.items() if scored(group) for task in tasks}
  rows = []
  for task, found in outcome['results'].items():
    for name, value in found.items() if task not in parts else ():
      metric, _, filtered = name.partition(',')
      known = isinstance(value, int | float)  # values that are not finite were stored as null
      if filtered and known and not metric.endswith('_stderr'):
        error = found.get(f'{metric}_stderr,{filtered}')
        error = error if isinstance(error, int | float) else math.nan  # it may be N/A
        label = metric if filtered == 'none' else f'{metric}, {filtered}'
        rows.append({'task': task, 'metric': label, 'score': value, 'error': error})
  return rows


def alignment_tax(before: Mapping, after: Mapping) -> list[dict]:
  """The change of each score that two outcomes of `evaluate` share.

  Args:
    before: the outcome of the policy before training.
    after: the outcome of the trained policy.

  Returns:
    `task`, `metric`, `before`, `after`, `change`, and `error`: the standard error of the change, as
    if the policies had answered different questions; NaN where the harness has none.
  """
  was = {(row['task'], row['metric']): row for row in scores(before)}
  rows = []
  for now in scores(after):
    then = was.get((now['task'], now['metric']))
    if then:
      rows.append(
        {
          'task': now['task'],
          'metric': now['metric'],
          'before': then['score'],
          'after': now['score'],
          'change': now['score'] - then['score'],
          'error': math.hypot(then['error'], now['error']),
        }
      )
  return rows
