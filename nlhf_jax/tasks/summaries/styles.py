"""The embedded task's annotations of a tournament: styles, quality and exploitability."""

from collections.abc import Mapping, Sequence

import numpy as np

from nlhf_jax.tasks.summaries import generator


def perfect_summaries(post: str) -> list[str]:
  """A summary with every key fact and no other, in each style."""
  facts = generator.key_facts(post)
  return [generator.write_summary(facts, style) for style in generator.STYLES]


def perfect_by_style(posts: Sequence[str]) -> list[list[str]]:
  """For each style, a perfect summary of each post."""
  return list(map(list, zip(*map(perfect_summaries, posts), strict=True)))


def annotate(record: Mapping, others: Mapping[str, str]) -> dict:
  """Style and quality of each response, and how often each counter-style beats it.

  A counter-style policy responds with another sample of the same policy, restyled: the same quality
  in one fixed style.

  Args:
    record: a record of the tournament, with `prompt` and `responses`.
    others: another response of each policy to the same prompt.
  """
  post, responses = record['prompt'], record['responses']
  counter = {}
  for policy, response in responses.items():
    restyled = [generator.restyle(others[policy], style) for style in generator.STYLES]
    chance = generator.preference([post] * len(restyled), restyled, [response] * len(restyled))
    counter[policy] = dict(zip(generator.STYLES, chance.tolist(), strict=True))
  return {
    'style': {policy: generator.find_style(text) for policy, text in responses.items()},
    'quality': {policy: generator.quality(post, text) for policy, text in responses.items()},
    'counter': counter,
  }


def summarise(records: Sequence[Mapping]) -> dict:
  """Means of the annotations: shares of styles, quality, judges' matrices, best counter-styles."""
  policies = list(records[0]['responses'])
  shares, quality, counters = {}, {}, {}
  for policy in policies:
    styles = [record['style'][policy] for record in records]
    shares[policy] = {
      style: styles.count(style) / len(styles) for style in (*generator.STYLES, 'none')
    }
    quality[policy] = float(np.mean([record['quality'][policy] for record in records]))
    win_rates = {
      style: float(np.mean([record['counter'][policy][style] for record in records]))
      for style in generator.STYLES
    }
    best = max(win_rates, key=win_rates.get)
    counters[policy] = {'style': best, 'win_rate': win_rates[best]}
  matrices = {
    judge: np.mean([record['perfect'][judge] for record in records], axis=0).tolist()
    for judge in records[0]['perfect']
  }
  return {
    'styles': list(generator.STYLES),
    'judge_matrix': matrices,
    'shares': shares,
    'quality': quality,
    'counter': counters,
  }


def weakest_edge(matrix: Sequence[Sequence[float]]) -> float:
  """min(P(report > list), P(list > question), P(question > report)): a cycle if it exceeds 1/2."""
  return float(min(matrix[0][1], matrix[1][2], matrix[2][0]))
