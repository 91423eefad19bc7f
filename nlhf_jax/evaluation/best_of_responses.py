"""Best of n responses in text: which of a policy's n responses to a prompt a judge selects.

The rules are those of `games.best_of_n`. The judge that selects should not be the one that scores:
a policy that was selected by a judge exploits its errors.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import special

from nlhf_jax.games import best_of_n

DRAWS = 4_096  # samples of n candidates, with replacement, that a KL is estimated on

# (prompts, left, right) -> P(left > right) in both orders, [m]; NaN where there is no verdict.
Compare = Callable[[Sequence[str], Sequence[str], Sequence[str]], np.ndarray]
# number -> one more response of the policy to each of the prompts
Sample = Callable[[int], Sequence[str]]


class Selection(NamedTuple):
  """The selected responses, one per prompt, and how they were selected.

  `kl` estimates KL(best of n, policy) in nats, and is None for knockouts, which do not compare all
  candidates. Pairs without a verdict count as ties; `missing` is their number, of `judged`.
  """

  responses: list[str]
  kl: float | None
  judged: int
  missing: int


def select_responses(
  rule: str, compare: Compare, prompts: Sequence[str], sample: Sample, n: int, seed: int
) -> Selection:
  """Samples n responses to each prompt, and selects one of each.

  By `win_rate`, the one that wins most against the other n - 1. By `score`, the one that wins most
  against n further responses, which estimates P(y > policy). By `knockout`, the last one in matches
  that are each decided by a vote drawn from the judge's probability. The first of a tie is taken,
  which is no bias, as their order is random.

  Args:
    rule: one of `best_of_n.RULES`.
    compare: the judge.
    prompts: m of them.
    sample: of the policy; called for 0 to n - 1, or to 2 n - 1 by score.
    n: number of candidates.
    seed: of the votes, and of the estimate of the KL.
  """
  candidates = np.array([sample(number) for number in range(n)], object).T  # [m, n]
  counts, random = [0, 0], np.random.default_rng(seed)

  def judge(rows, left, right):
    """P(left > right), [m, ...], of texts of the same shape."""
    shape = left.shape
    asked = np.broadcast_to(np.reshape(rows, (-1, *[1] * (left.ndim - 1))), shape).ravel()
    found = compare([prompts[row] for row in asked], left.ravel().tolist(), right.ravel().tolist())
    counts[0] += found.size
    counts[1] += int(np.isnan(found).sum())
    return np.where(np.isnan(found), 0.5, found).reshape(shape)

  rows, kl = np.arange(len(prompts)), None
  if rule == 'knockout':
    chosen = _play_knockout(judge, rows, candidates, random)
  elif rule == 'score':
    others = np.array([sample(number) for number in range(n, 2 * n)], object).T
    left, right = np.broadcast_arrays(candidates[:, :, None], others[:, None, :])
    scores = judge(rows, left, right).mean(axis=2)
    chosen = scores.argmax(axis=1)
    kl = np.mean([kl_of_scores(row) for row in scores])
  else:
    first, second = map(np.array, zip(*combinations(range(n), 2), strict=True))
    payoff = np.zeros((len(rows), n, n))
    payoff[:, first, second] = judge(rows, candidates[:, first], candidates[:, second]) - 0.5
    payoff -= payoff.swapaxes(1, 2)
    chosen = payoff.mean(axis=2).argmax(axis=1)
    kl = np.mean(
      [kl_of_win_rate(*pair, random) for pair in zip(payoff, candidates.tolist(), strict=True)]
    )
  responses = candidates[rows, chosen].tolist()
  return Selection(responses, None if kl is None else float(kl), *counts)


def _play_knockout(judge, rows, candidates, random) -> np.ndarray:
  """The number of the candidate that wins, for each prompt."""
  left = np.tile(np.arange(candidates.shape[1]), (len(rows), 1))
  while left.shape[1] > 1:
    one, other = left[:, ::2], left[:, 1::2]
    texts = (np.take_along_axis(candidates, side, axis=1) for side in (one, other))
    wins = random.random(one.shape) < judge(rows, *texts)
    left = np.where(wins, one, other)
  return left[:, 0]


def kl_of_win_rate(payoff: np.ndarray, texts: Sequence[str], random: np.random.Generator) -> float:
  """KL(best of n, policy) on one prompt, nats, for the rule `win_rate`.

  The policy is taken to be uniform on its n responses, equal ones together; the best of n of these,
  drawn `DRAWS` times, has this KL. It is too low, because n responses are no continuum: for a
  strict order by a third at n = 2, by 7 % at n = 4, 3 % at n = 8 and 2 % at n = 16.

  Args:
    payoff: P - 1/2 of the n responses, [n, n].
    texts: the responses.
    random: source of the draws.
  """
  n = len(texts)
  counts = random.multinomial(n, np.full(n, 1 / n), size=DRAWS)
  gains = np.where(counts > 0, counts @ payoff.T, -np.inf)
  shares = counts * (gains >= gains.max(axis=1, keepdims=True) - 1e-9)
  played = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
  _, text = np.unique(np.array(texts, object), return_inverse=True)
  groups = [np.bincount(text, weights) for weights in (played, np.full(n, 1 / n))]
  return float(special.rel_entr(*groups).sum())


def kl_of_scores(scores: np.ndarray) -> float:
  """KL(best of n, policy) on one prompt, nats, for the rule `score`, as in `kl_of_win_rate`."""
  uniform = np.full(len(scores), 1 / len(scores))
  return float(special.rel_entr(best_of_n.by_score(scores, uniform, len(scores)), uniform).sum())


def describe_selection(n: int, judge: str, rule: str, kl: float | None) -> dict:
  """The part of the results that says how an entry was selected, with the bounds."""
  return {
    'n': n,
    'judge': judge,
    'rule': rule,
    'kl': kl,
    'kl_bound': best_of_n.kl_bound(n),
    'win_rate_bound': best_of_n.win_rate_bound(n),
  }
