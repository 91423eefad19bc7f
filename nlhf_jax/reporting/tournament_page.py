"""The report of a run: results, learning curves and responses on one self-contained page."""

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nlhf_jax.storage import json_lines

MAX_SAMPLE_BYTES = (
  5_000_000  # of samples on a page; browsers search that many between two keystrokes
)
MAX_POINTS = 400


def render(
  results: Mapping[str, Any],
  metrics: Sequence[Mapping[str, Any]],
  samples: Sequence[Mapping[str, Any]],
) -> str:
  """The page as HTML, holding thinned learning curves and the first `BYTES` of samples."""
  content = {
    'results': results,
    'curves': _curves(metrics),
    'samples': _first(samples),
    'samples_total': len(samples),
  }
  text = json.dumps(json_lines.plain(content), allow_nan=False, separators=(',', ':'))
  # A response may hold `</script>` or `<!--`, which would end or bend the element around the data;
  # json.dumps has already escaped everything beyond ASCII, U+2028 and U+2029 among it.
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  template = resources.files('nlhf_jax.reporting').joinpath('tournament_page.html')
  return template.read_text(encoding='utf-8').replace('/*DATA*/', text, 1)


def write(
  path: str | Path,
  results: Mapping[str, Any],
  metrics: Sequence[Mapping[str, Any]],
  samples: Sequence[Mapping[str, Any]],
) -> None:
  """Writes the page to `path`."""
  with json_lines.whole(Path(path)) as draft:
    draft.write_text(render(results, metrics, samples), encoding='utf-8')


def _first(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """As many as there is room for, at least one."""
  kept, size = [], 0
  for sample in map(json_lines.plain, samples):
    size += len(json.dumps(sample, separators=(',', ':')))
    if kept and size > MAX_SAMPLE_BYTES:
      break
    kept.append(sample)
  return kept


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """One learning curve per stage and metric, in order of appearance.

  Each is thinned on its own, because a metric that is logged rarely may fall between the strides
  of one that is logged often.
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
