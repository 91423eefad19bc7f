"""Win rates on the prompt that a policy serves worst, and what a prompter chose.

Measured on the pool of the prompter, where there is one. The least of many noisy means is below
the true least. So the prompt is looked for in one half of the responses and measured on the other
half, both ways; the mean of both is, on average, not below the true least.
"""

from collections.abc import Mapping

import jax
import numpy as np

from nlhf_jax.data import tokenizers
from nlhf_jax.data.batches import map_chunks, take
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.tournament import t_interval
from nlhf_jax.experiments.language.opponent_steps import load_prompter, read_pool
from nlhf_jax.experiments.language.tournament_stage import make_interruptible
from nlhf_jax.experiments.specs import LanguageExperiment
from nlhf_jax.experiments.stages import make_rollout, respond
from nlhf_jax.judges.judge import Judge
from nlhf_jax.reporting import formatting
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Params, Prompts

PAIRS = 16  # of a response of the entry and one of SFT, on each prompt
SHOWN = 5  # prompts that a prompter chooses most often
KEYS = 1 << 29  # folded into the tournament's key, as numbers of entries are; these are smaller


def find_worst_prompts(
  experiment: LanguageExperiment, entries: Mapping[str, Params], panel: Mapping[str, Judge]
) -> dict[str, dict] | None:
  """Win rates over SFT on the pool of the prompters, and what these chose; None without any.

  They are stored beside the tournament, and measured once.

  Returns:
    `win_rates`: entry -> judge -> its `mean` over the pool with the 95 % interval `low` and `high`,
    that of the `worst` prompt, and which `prompt` it is. `chosen`: policy -> `kl` of its prompter
    from the data in nats, and its most frequent `prompts`, each with its `probability` and the
    `data` one.
  """
  prompters = {
    name: policy.opponent.prompter
    for name, policy in experiment.policies.items()
    if policy.opponent and policy.opponent.prompter
  }
  if not prompters:
    return None
  path = experiment.stages['tournament'].folder / 'worst_prompts.json'
  if json_lines.read_sealed(path) is None:
    pool = read_pool(experiment, max(prompter.pool for prompter in prompters.values()))
    texts = tokenizers.prompt_texts(experiment.corpus.tokenizer, *pool)
    chosen = {
      name: describe_chosen(load_prompter(experiment.stages[name], prompter.pool), texts)
      for name, prompter in prompters.items()
    }
    rates = measure_win_rates(experiment, entries, panel, pool, texts)
    json_lines.write_sealed(path, {'win_rates': rates, 'chosen': chosen})
  return json_lines.read_sealed(path)


def describe_chosen(probabilities: np.ndarray, texts: list[str]) -> dict:
  """What a prompter chooses, beside the data, whose prompts are equally probable."""
  count = len(probabilities)
  present = probabilities[probabilities > 0]
  top = np.argsort(-probabilities)[:SHOWN]
  return {
    'kl': float(present @ np.log(count * present)),
    'prompts': [
      {'prompt': texts[row], 'probability': float(probabilities[row]), 'data': 1 / count}
      for row in top
    ],
  }


def measure_win_rates(
  experiment: LanguageExperiment,
  entries: Mapping[str, Params],
  panel: Mapping[str, Judge],
  pool: Prompts,
  texts: list[str],
) -> dict[str, dict]:
  """Entry -> judge -> win rates over SFT, the first entry, as `find_worst_prompts` returns them."""
  rollout = make_rollout(experiment, [{'policy': 1.0}], filters=experiment.filters)
  prompts = take(pool, np.repeat(np.arange(len(texts)), PAIRS))
  label, sides = 'worst prompts', {}
  for number, (name, params) in enumerate(entries.items(), start=KEYS):
    key = jax.random.fold_in(experiment.stages['tournament'].key, number)
    batch = experiment.tournament_batch
    (sides[name],) = respond(rollout, {'policy': params}, prompts, key, label, batch)
  first, *others = sides
  found = {}
  for name in others:
    found[name] = {}
    for judge, payoff in panel.items():
      ask = make_interruptible(payoff, label)
      pairs = Comparison(prompts, sides[name], sides[first])
      wins = map_chunks(lambda chunk, _, ask=ask: ask(chunk), pairs)[:, 0, 0] + 0.5
      found[name][judge] = summarise_prompts(wins.reshape(-1, PAIRS), texts, judge)
  return found


def summarise_prompts(wins: np.ndarray, texts: list[str], judge: str) -> dict:
  """Mean and worst of the win rates of prompts, from P(entry beats SFT) of their pairs, [m, n].

  Prompts on which the judge has no verdict in one half of the pairs are left out.

  Raises:
    UserError: if none is left.
  """
  known = ~np.isnan(wins)
  both = [(wins[:, part], known[:, part]) for part in (slice(0, None, 2), slice(1, None, 2))]
  halves = np.stack(
    [np.where(k, w, 0).sum(axis=1) / np.maximum(k.sum(axis=1), 1) for w, k in both], axis=1
  )
  kept = np.flatnonzero(np.all([k.any(axis=1) for _, k in both], axis=0))
  if not len(kept):
    raise UserError(
      f"the judge '{judge}' has no verdict on any prompt of the prompter's pool; check its answers."
    )
  halves = halves[kept]
  means = halves.mean(axis=1)
  (low,), (high,) = t_interval(means[:, None])
  worst = halves.argmin(axis=0)
  return {
    'mean': float(means.mean()),
    'low': float(low),
    'high': float(high),
    'worst': float((halves[worst[0], 1] + halves[worst[1], 0]) / 2),
    'prompt': texts[kept[means.argmin()]],
  }


def print_worst_prompts(found: Mapping) -> None:
  """Prints the mean and the worst win rate of each entry, and how far prompters left the data."""
  judges = list(next(iter(found['win_rates'].values())))
  columns = [f'{judge}, {part}' for judge in judges for part in ('mean', 'worst prompt')]
  cells = [
    [
      text
      for judge in judges
      for text in (
        '{mean:.3f} [{low:.3f}, {high:.3f}]'.format(**by_judge[judge]),
        f'{by_judge[judge]["worst"]:.3f}',
      )
    ]
    for by_judge in found['win_rates'].values()
  ]
  title = '\nWin rate over sft on the pool of the prompter, 95 %:'
  print(formatting.format_text(title, list(found['win_rates']), columns, cells))
  for name, chosen in found['chosen'].items():
    top = chosen['prompts'][0]
    print(
      f"  The prompter of '{name}' is {chosen['kl']:.3f} nats from the data: it chooses one "
      f'prompt {top["probability"] / top["data"]:.1f} times as often as the data have it.'
    )
