"""The report of a run: results, learning curves and responses on one self-contained page."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlhf_jax.reporting import glossary, layout, provenance
from nlhf_jax.storage import json_lines

MAX_SAMPLE_BYTES = 5_000_000  # of samples on a page; browsers search that many at each keystroke
MAX_POINTS = 400  # of a learning curve


def render(
  results: Mapping[str, Any],
  metrics: Sequence[Mapping[str, Any]],
  samples: Sequence[Mapping[str, Any]],
  workdir: Path = Path(),
  example: tuple[str, Mapping[str, str]] | None = None,
) -> str:
  """The page as HTML, with thinned learning curves and the first `MAX_SAMPLE_BYTES` of samples.

  Args:
    results: contents of `results.json`; the page shows the parts that exist.
    metrics: rows with `stage`, `step` and numbers.
    samples: records of the tournament.
    workdir: the folder with the config of the run.
    example: a prompt, and style -> a response to it, which describe the task.
  """
  content = {
    'results': results,
    'curves': _make_curves(metrics),
    'samples': _limit(samples),
    'samples_total': len(samples),
  }
  if example:
    content['example'] = {'prompt': example[0], 'responses': example[1]}
  stages = results.get('stages', {})
  seconds = {name: row['seconds'] for name, row in stages.items() if 'seconds' in row}
  made = provenance.describe(workdir, seconds)
  meanings = glossary.add_metrics(curve['metric'] for curve in content['curves'])
  content = json_lines.to_json(content)
  return layout.render('tournament.html', content=content, made=made, glossary=meanings)


def write(
  path: str | Path,
  results: Mapping[str, Any],
  metrics: Sequence[Mapping[str, Any]],
  samples: Sequence[Mapping[str, Any]],
  example: tuple[str, Mapping[str, str]] | None = None,
) -> None:
  """Writes the page to `path`; see `render`."""
  page = render(results, metrics, samples, Path(path).parent, example)
  with json_lines.atomic_write(Path(path)) as draft:
    draft.write_text(page, encoding='utf-8')


def _limit(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """The first samples, up to `MAX_SAMPLE_BYTES`, and at least one."""
  kept, size = [], 0
  for sample in map(json_lines.to_json, samples):
    size += len(json.dumps(sample, separators=(',', ':')))
    if kept and size > MAX_SAMPLE_BYTES:
      break
    kept.append(sample)
  return kept


def _make_curves(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """One learning curve per stage and metric, in order of appearance.

  Each is thinned separately: a common stride could skip all values of a rarely logged metric.
  """
  curves: dict[tuple[str, str], list[tuple[Any, float]]] = {}
  for row in metrics:
    for metric, value in row.items():
      number = value.tolist() if hasattr(value, 'tolist') else value
      if metric != 'step' and isinstance(number, int | float) and not isinstance(number, bool):
        curves.setdefault((row['stage'], metric), []).append((row['step'], number))
  thinned = []
  for (stage, metric), points in curves.items():
    kept = points[:: math.ceil(len(points) / MAX_POINTS)]
    if kept[-1] is not points[-1]:
      kept.append(points[-1])
    steps, values = zip(*kept, strict=True)
    thinned.append(
      {'stage': stage, 'metric': metric, 'points': len(points), 'steps': steps, 'values': values}
    )
  return thinned
