"""A tournament: every policy against every other on common prompts, under every judge.

Each prompt has one record, with the responses and each judge's preferences for all pairs. Every
figure of the results is a mean over records, so it can be recomputed from `samples.jsonl` alone.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations_with_replacement, compress

import jax
import numpy as np
from scipy import special

from nlhf_jax.data import dialogue_texts, tokenizers
from nlhf_jax.data.batches import chunk_size, map_chunks
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import equal_length, intervals, ranking
from nlhf_jax.judges.unfinished import has_ended
from nlhf_jax.progress import progress
from nlhf_jax.structs import Comparison, Prompts, Responses

# Name in the results -> field of the records whose mean it is.
MEANS = {
  'kl_to_reference': 'log_ratio',
  'length': 'tokens',
  'unfinished': 'cut',
  'characters': 'characters',
  'turns': 'turns',
}
TOGETHER = 8  # policies
MAX_WITH_INTERVALS = 6  # policies; larger tables have no room for intervals
# Fields of `tabulate` that assume a number of prompts fixed in advance.
FIXED_SAMPLE_INTERVALS = (
  'bootstrap_low',
  'bootstrap_high',
  'clopper_pearson_low',
  'clopper_pearson_high',
)


def compare_policies(
  judge: Callable[[Comparison], np.ndarray],
  prompts: Prompts,
  sides: Sequence[Responses],
  label: str | None = None,
) -> np.ndarray:
  """P(policy i beats policy j) on each prompt, [n, M, M].

  A judge compares up to `TOGETHER` policies at once with as many, so that one that reads each
  response by itself does not read it again for every opponent.

  Args:
    judge: returns payoffs P - 1/2.
    prompts: n of them.
    sides: of each policy, one response per prompt.
    label: of a progress bar; None shows none.
  """
  count = len(sides)
  payoff = np.zeros((len(prompts.tokens), count, count))
  groups = [slice(start, start + TOGETHER) for start in range(0, count, TOGETHER)]
  blocks = list(combinations_with_replacement(groups, 2))
  # As many pairs at a time as of two policies, which a judge of pairs has to hold at once.
  at_once = chunk_size((prompts, sides[0], sides[0])) // min(count, TOGETHER) ** 2
  size = jax.device_count() * max(1, at_once // jax.device_count())
  with progress(len(blocks) * len(payoff), label or '', 'prompt', hidden=label is None) as bar:
    for rows, columns in blocks:
      left = join_responses(sides[rows])
      right = None if rows == columns else join_responses(sides[columns])
      payoff[:, rows, columns] = map_chunks(
        lambda chunk, _: judge(chunk if chunk.right else chunk._replace(right=chunk.left)),
        Comparison(prompts, left, right),
        size,
        update=bar.update,
      )
  above = np.triu(payoff, 1)
  return 0.5 + above - above.swapaxes(1, 2)


def join_responses(sides: Sequence[Responses]) -> Responses:
  """The responses of all policies to each prompt: [n, 1, T] of each to [n, M, T]."""
  bare = [side._replace(log_probs=None, entropy=None) for side in sides]
  return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *bare)


def make_records(
  tokenizer,
  prompts: Prompts,
  sides: Mapping[str, Responses],
  log_ratios: Mapping[str, np.ndarray],
  preferences: Mapping[str, np.ndarray],
) -> list[dict]:
  """One record per prompt.

  Of conversations it also has the number of the policy's `turns`, and the texts of all turns as
  `dialogues`: the policy's, the user's, the policy's and so on.

  Args:
    tokenizer: decodes the tokens.
    prompts: [n, P].
    sides: policy -> its responses, one per prompt.
    log_ratios: policy -> log-probability of each response minus that under the reference, both at
      the sampling temperature and without top-k and top-p, [n], nats. Its mean estimates the KL.
    preferences: judge -> result of `compare_policies`, with policies in the order of `sides`.
  """
  texts = {name: dialogue_texts.response_texts(tokenizer, side) for name, side in sides.items()}
  lengths = {name: side.own.sum(axis=(1, 2)) for name, side in sides.items()}
  stop = tokenizer.eos_token_id
  cut = {name: ~np.asarray(has_ended(side, stop))[:, 0] for name, side in sides.items()}
  conversations = {
    name: dialogue_texts.turn_texts(tokenizer, side)
    for name, side in sides.items()
    if side.turn is not None
  }
  records = [
    {
      'prompt': prompt,
      'responses': {name: column[row] for name, column in texts.items()},
      'tokens': {name: int(column[row]) for name, column in lengths.items()},
      'cut': {name: bool(column[row]) for name, column in cut.items()},
      'log_ratio': {name: float(column[row]) for name, column in log_ratios.items()},
      'preferences': {judge: table[row].tolist() for judge, table in preferences.items()},
    }
    for row, prompt in enumerate(tokenizers.prompt_texts(tokenizer, *prompts))
  ]
  for row, record in enumerate(records if conversations else []):
    record['dialogues'] = {name: column[row] for name, column in conversations.items()}
    record['turns'] = {name: 1 + len(turns) // 2 for name, turns in record['dialogues'].items()}
  return records


def drop_unjudged_prompts(records: Sequence[dict], tables: Sequence[np.ndarray]) -> list[dict]:
  """The records of prompts on which every judge has a verdict on every pair.

  Args:
    records: one per prompt, n of them.
    tables: preferences of each judge, [n, K, K]; NaN where it has no verdict.

  Raises:
    UserError: if there are none.
  """
  usable = ~np.any([np.isnan(table).any(axis=(1, 2)) for table in tables], axis=0)
  if not usable.any():
    raise UserError(
      'the tournament: there is no prompt on which every judge has a verdict on every pair; check '
      'the answers of the judges.'
    )
  if not usable.all():
    count = int(np.sum(~usable))
    print(f'{count} of {len(records)} prompts are dropped: a judge has no usable verdict on them.')
  return list(compress(records, usable))


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """95 % t-intervals of the mean over the first axis, clipped to [0, 1]; [0, 1] for one value."""
  count = len(values)
  if count < 2:
    return np.zeros(values.shape[1:]), np.ones(values.shape[1:])
  half = special.stdtrit(count - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(count)
  mean = values.mean(axis=0)
  return np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)


def summarise(records: Sequence[Mapping]) -> dict:
  """The results, from the records of `samples.jsonl` and nothing else.

  Returns:
    `policies` in order; `comparisons`, the number of prompts; `tables[judge]`, see `tabulate`;
    `ranking[judge]`, see `ranking.rank`; `lottery_is_unique[judge]`, of the maximal lottery;
    `cycles[judge]`, see `ranking.cycles`; `equal_length[judge]`, by policy, its win rate against
    the first at equal length; `by_judge`, of several judges, see `compare_judges`; and, if the
    records have them, the means by policy of `kl_to_reference` (nats per response), `length`
    (tokens that the policy wrote), `unfinished` (share of responses that were cut), `characters`
    and `turns` (of the policy in a conversation).
  """
  policies = list(records[0]['responses'])
  tables, rankings, unique, cycles = {}, {}, {}, {}
  for judge in records[0]['preferences']:
    values = np.array([record['preferences'][judge] for record in records])
    tables[judge] = tabulate(values)
    rankings[judge] = ranking.rank(policies, values)
    unique[judge] = ranking.is_lottery_unique(values)
    cycles[judge] = ranking.cycles(policies, tables[judge])
  return {
    'policies': policies,
    'comparisons': len(records),
    'tables': tables,
    'ranking': rankings,
    'lottery_is_unique': unique,
    'cycles': cycles,
    'equal_length': against_first(policies, records),
    **({'by_judge': compare_judges(policies, tables)} if len(tables) > 1 else {}),
    **{
      name: {
        policy: float(np.mean([record[field][policy] for record in records])) for policy in policies
      }
      for name, field in MEANS.items()
      if field in records[0]
    },
  }


def compare_judges(policies: Sequence[str], tables: Mapping[str, Mapping]) -> dict[str, dict]:
  """Win rates of each policy against the first under each judge, who may be a group of raters.

  Args:
    policies: their names.
    tables: judge -> its table, of `tabulate`.

  Returns:
    policy -> `judges`, by judge: `win_rate`, and its interval `low` and `high`; and `worst`, the
    judge under which it wins least often.
  """
  found = {}
  for row, policy in enumerate(policies[1:], start=1):
    rates = {
      judge: {field: table[field][row][0] for field in ('win_rate', 'low', 'high')}
      for judge, table in tables.items()
    }
    found[policy] = {'judges': rates, 'worst': min(rates, key=lambda it: rates[it]['win_rate'])}
  return found


def against_first(policies: Sequence[str], records: Sequence[Mapping]) -> dict[str, dict]:
  """Judge -> policy -> its win rate at equal length against the first policy, in characters."""

  def lengths(policy):
    return np.array([len(record['responses'][policy]) for record in records])

  def by_judge(judge):
    values = np.array([record['preferences'][judge] for record in records])
    return {
      policy: equal_length.win_rate(values[:, place, 0], lengths(policy), lengths(policies[0]))
      for place, policy in enumerate(policies)
      if place
    }

  return {judge: by_judge(judge) for judge in records[0]['preferences']}


def tabulate(values: np.ndarray) -> dict:
  """The table of one judge, from P(row beats column) on each prompt, [n, M, M].

  Returns:
    matrices, row against column: `win_rate`; its 95 % t-interval over prompts, `low` and `high`,
    and that of the paired bootstrap, `bootstrap_low` and `bootstrap_high`; `clopper_pearson_low`
    and `clopper_pearson_high`, of the proportion of prompts on which row wins; `holm_p`, p-values
    of a win rate of 1/2 after Holm's correction for all pairs. And `pairs`: their `count`, how many
    are `significant` at 5 % one by one, and how many are after the correction, `significant_holm`.
  """
  low, high = t_interval(values)
  bootstrap_low, bootstrap_high = np.quantile(
    intervals.bootstrap_means(values), (0.025, 0.975), axis=0
  )
  clopper_pearson_low, clopper_pearson_high = intervals.verdict_interval(values)
  above = np.triu_indices(values.shape[1], 1)
  p = intervals.p_values(values[:, *above])
  adjusted = np.ones(values.shape[1:])
  adjusted[above] = adjusted.T[above] = intervals.holm(p)
  matrices = {
    'win_rate': values.mean(axis=0),
    'low': low,
    'high': high,
    'bootstrap_low': bootstrap_low,
    'bootstrap_high': bootstrap_high,
    'clopper_pearson_low': clopper_pearson_low,
    'clopper_pearson_high': clopper_pearson_high,
    'holm_p': adjusted,
  }
  together = int(np.sum(adjusted[above] < 0.05))
  return {
    **{name: matrix.tolist() for name, matrix in matrices.items()},
    'pairs': {'count': len(p), 'significant': int(np.sum(p < 0.05)), 'significant_holm': together},
  }


def exploitability(wins: Sequence[Mapping]) -> dict:
  """Policy -> judge that trained the exploiter -> judge that measured: mean and 95 % interval."""
  found: dict = {}
  for record in wins:
    policy, trained_by = record['player'], record['trained_by']
    measured = {}
    for judge, values in record.items():
      if judge not in ('player', 'trained_by'):
        (low,), (high,) = t_interval(np.array(values)[:, None])
        measured[judge] = dict(win_rate=float(np.mean(values)), low=float(low), high=float(high))
    found.setdefault(policy, {})[trained_by] = measured
  return found


def format_cells(
  policies: Sequence[str], table: Mapping
) -> tuple[list[str], list[str], list[list[str]]]:
  """Rows, columns and cells of a table of `summarise`, for the terminal: `win rate [low, high]`.

  With many policies the columns are numbered, and only `results.json` has the intervals.
  """
  many = len(policies) > MAX_WITH_INTERVALS

  def cell(mean, low, high):
    return f'{mean:.3f}' if many else f'{mean:.3f} [{low:.3f}, {high:.3f}]'

  cells = [
    [cell(*values) for values in zip(*row, strict=True)]
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
