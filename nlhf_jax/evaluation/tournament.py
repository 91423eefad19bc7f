"""A tournament: every policy against every other on common prompts, under every judge.

Each prompt gives one record, with the responses and what each judge said of each pair; every figure
of the results is a mean over records, so that it can be recomputed from `samples.jsonl` alone.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from nlhf_jax.data import tokenizers
from nlhf_jax.data.batches import map_chunks
from nlhf_jax.structs import Comparison, Prompts, Responses


def preferences(
  judge: Callable[[Comparison], np.ndarray], prompts: Prompts, sides: Sequence[Responses]
) -> np.ndarray:
  """P(side i beats side j) on each prompt, [n, M, M], for one response a side and prompt."""
  table = np.full((len(prompts.tokens), len(sides), len(sides)), 0.5)
  for i, left in enumerate(sides):
    for j, right in enumerate(sides[:i]):
      matches = Comparison(prompts, left, right)
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
    for row, prompt in enumerate(tokenizers.texts(tokenizer, *prompts))
  ]


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """95 % t-intervals of the mean over the first axis, cut to [0, 1]; no narrower for one value."""
  count = len(values)
  if count < 2:
    return np.zeros(values.shape[1:]), np.ones(values.shape[1:])
  half = stats.t.ppf(0.975, count - 1) * values.std(axis=0, ddof=1) / np.sqrt(count)
  mean = values.mean(axis=0)
  return np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)


def summarise(records: Sequence[Mapping]) -> dict:
  """The results, from the records of `samples.jsonl` and nothing else.

  Returns:
    `policies` in order; `tables[judge]` with `win_rate`, `low` and `high` (row beats column, 95 %
    intervals over prompts); `kl_to_reference` in nats a response and `length` in tokens, by policy.
  """
  policies = list(records[0]['responses'])
  tables = {}
  for judge in records[0]['preferences']:
    values = np.array([record['preferences'][judge] for record in records])
    low, high = interval(values)
    win_rate = values.mean(axis=0)
    tables[judge] = {'win_rate': win_rate.tolist(), 'low': low.tolist(), 'high': high.tolist()}

  def means(field):
    return {name: float(np.mean([record[field][name] for record in records])) for name in policies}

  return {
    'policies': policies,
    'comparisons': len(records),
    'tables': tables,
    'kl_to_reference': means('log_ratio'),
    'length': means('tokens'),
  }


def with_intervals(table: Mapping) -> list[list[str]]:
  """The cells of a table of `summarise` as `win rate [low, high]`."""
  rows = zip(table['win_rate'], table['low'], table['high'], strict=True)
  return [
    [f'{mean:.3f} [{low:.3f}, {high:.3f}]' for mean, low, high in zip(*row, strict=True)]
    for row in rows
  ]
