"""A tournament: every policy against every other on common prompts, under every judge.

Each prompt gives one record, with the responses and what each judge said of each pair; every figure
of the results is a mean over records, so that it can be recomputed from `samples.jsonl` alone.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np
from scipy import special
from tqdm import tqdm

from nlhf_jax.data import tokenizers
from nlhf_jax.data.batches import map_chunks
from nlhf_jax.evaluation import intervals, ranking
from nlhf_jax.structs import Comparison, Prompts, Responses

# What results call the means of what records tell.
MEANS = {'kl_to_reference': 'log_ratio', 'length': 'tokens', 'characters': 'characters'}
MAX_WITH_INTERVALS = 6  # policies, beyond which a table has no room for intervals


def compare_policies(
  judge: Callable[[Comparison], np.ndarray],
  prompts: Prompts,
  sides: Sequence[Responses],
  label: str | None = None,
) -> np.ndarray:
  """P(side i beats side j) on each prompt, [n, M, M], for one response a side and prompt.

  With a label there is a progress bar.
  """
  table = np.full((len(prompts.tokens), len(sides), len(sides)), 0.5)
  pairs = list(combinations(range(len(sides)), 2))
  for j, i in tqdm(pairs, desc=label, unit='pair', disable=label is None, mininterval=0.5):
    matches = Comparison(prompts, sides[i], sides[j])
    payoff = map_chunks(lambda chunk, _: judge(chunk), matches)[:, 0, 0]
    table[:, i, j] += payoff
    table[:, j, i] -= payoff
  return table


def make_records(
  tokenizer,
  prompts: Prompts,
  sides: Mapping[str, Responses],
  log_ratios: Mapping[str, np.ndarray],
  said: Mapping[str, np.ndarray],
) -> list[dict]:
  """One record a prompt.

  Args:
    tokenizer: turns tokens into text.
    prompts: [n, P].
    sides: policy -> its responses, one a prompt.
    log_ratios: policy -> log-probability of each response as it was sampled, filters included,
      less that under the reference, [n], nats.
    said: judge -> `preferences`, policies in the order of `sides`.
  """
  texts = {name: tokenizers.texts(tokenizer, *side[:2]) for name, side in sides.items()}
  lengths = {name: side.mask.sum(axis=(1, 2)) for name, side in sides.items()}
  return [
    {
      'prompt': prompt,
      'responses': {name: column[row] for name, column in texts.items()},
      'tokens': {name: int(column[row]) for name, column in lengths.items()},
      'log_ratio': {name: float(column[row]) for name, column in log_ratios.items()},
      'preferences': {judge: table[row].tolist() for judge, table in said.items()},
    }
    for row, prompt in enumerate(tokenizers.prompt_texts(tokenizer, *prompts))
  ]


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """95 % t-intervals of the mean over the first axis, cut to [0, 1]; no narrower for one value."""
  count = len(values)
  if count < 2:
    return np.zeros(values.shape[1:]), np.ones(values.shape[1:])
  half = special.stdtrit(count - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(count)
  mean = values.mean(axis=0)
  return np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)


def summarise(records: Sequence[Mapping]) -> dict:
  """The results, from the records of `samples.jsonl` and nothing else.

  Returns:
    `policies` in order; `tables[judge]`, see `tabulate`; `ranking[judge]`, see `ranking.rank`;
    `cycles[judge]`, see there; and by policy those of `kl_to_reference` in nats a response, and of
    its length in tokens or characters, that the records tell.
  """
  policies = list(records[0]['responses'])
  tables, rankings, cycles = {}, {}, {}
  for judge in records[0]['preferences']:
    values = np.array([record['preferences'][judge] for record in records])
    tables[judge] = tabulate(values)
    rankings[judge] = ranking.rank(policies, values)
    cycles[judge] = ranking.cycles(policies, tables[judge])
  return {
    'policies': policies,
    'comparisons': len(records),
    'tables': tables,
    'ranking': rankings,
    'cycles': cycles,
    **{
      name: {
        policy: float(np.mean([record[field][policy] for record in records])) for policy in policies
      }
      for name, field in MEANS.items()
      if field in records[0]
    },
  }


def tabulate(values: np.ndarray) -> dict:
  """The table of one judge, from P(row beats column) on each prompt, [n, M, M].

  Returns:
    matrices, row against column: `win_rate`, and of it 95 % intervals over prompts, Student's as
    `low` and `high`, those of the paired bootstrap as `drawn_low` and `drawn_high`; `exact_low` and
    `exact_high`, Clopper and Pearson's of how often row wins; `corrected`, p-values of even rates
    by Holm's correction for all pairs; and `pairs`: how many there are, how many differ `alone`, at
    95 % each, and how many do so `together`, with all of them in mind.
  """
  low, high = t_interval(values)
  drawn_low, drawn_high = np.quantile(intervals.bootstrap_means(values), (0.025, 0.975), axis=0)
  exact_low, exact_high = intervals.verdict_interval(values)
  above = np.triu_indices(values.shape[1], 1)
  p = intervals.p_values(values[:, *above])
  corrected = np.ones(values.shape[1:])
  corrected[above] = corrected.T[above] = intervals.holm(p)
  matrices = {
    'win_rate': values.mean(axis=0),
    'low': low,
    'high': high,
    'drawn_low': drawn_low,
    'drawn_high': drawn_high,
    'exact_low': exact_low,
    'exact_high': exact_high,
    'corrected': corrected,
  }
  together = int(np.sum(corrected[above] < 0.05))
  return {
    **{name: matrix.tolist() for name, matrix in matrices.items()},
    'pairs': {'count': len(p), 'alone': int(np.sum(p < 0.05)), 'together': together},
  }


def exploitability(wins: Sequence[Mapping]) -> dict:
  """player -> judge the exploiter was trained by -> judge that measured: mean and 95 % interval."""
  found: dict = {}
  for record in wins:
    player, trained_by = record['player'], record['trained_by']
    measured = {}
    for judge, values in record.items():
      if judge not in ('player', 'trained_by'):
        (low,), (high,) = t_interval(np.array(values)[:, None])
        measured[judge] = dict(win_rate=float(np.mean(values)), low=float(low), high=float(high))
    found.setdefault(player, {})[trained_by] = measured
  return found


def format_cells(
  policies: Sequence[str], table: Mapping
) -> tuple[list[str], list[str], list[list[str]]]:
  """Rows, columns and cells of a table of `summarise`: `win rate [low, high]`.

  With many policies the columns are numbered, and the intervals are left to `results.json`.
  """
  many = len(policies) > MAX_WITH_INTERVALS

  def cell(mean, low, high):
    return f'{mean:.3f}' if many else f'{mean:.3f} [{low:.3f}, {high:.3f}]'

  cells = [
    [cell(*of_pair) for of_pair in zip(*row, strict=True)]
    for row in zip(table['win_rate'], table['low'], table['high'], strict=True)
  ]
  if not many:
    return list(policies), list(policies), cells
  numbers = [str(number) for number in range(1, len(policies) + 1)]
  rows = [f'{number:>2} {name}' for number, name in zip(numbers, policies, strict=True)]
  return rows, numbers, cells


def widest_half_width(table: Mapping) -> float:
  """The largest half-width of the intervals of a table."""
  return float(np.max(np.array(table['high']) - np.array(table['low']))) / 2
