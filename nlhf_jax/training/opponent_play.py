"""Plays of a policy against an opponent that is trained beside it, on prompts that may be chosen.

The opponent y' ~ omega maximises P(y' > y|x) - tau_o KL(omega, reference). It reads the response y
(commit and answer, arXiv 2512.16626), or the prompt alone, and then a prompter may choose prompts.
Each player learns by `losses.policy_gradient` at its own price, from these payoffs:

    opponent   P(y' > y|x) - 1/2
    policy     P(y > y'|x) - 1/2 [+ tau_o log(omega / reference)(y')]
    prompter   P(y' > y|x) - 1/2 - tau log(omega / reference)(y') + tau log(pi / reference)(y)

The mean of the last one is the regularised exploitability of the policy, once omega is its best
response, and less before. It is not the policy's win rate, whose prompter would choose prompts on
which nothing can be learned.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nlhf_jax import trees
from nlhf_jax.algorithms.algorithm import POLICY, mixture
from nlhf_jax.data.batches import take
from nlhf_jax.models import sharding
from nlhf_jax.structs import Comparison, Params, Prompts, Responses, Scores
from nlhf_jax.training.players import Play
from nlhf_jax.training.rollout_step import Feedback, MakeRollout
from nlhf_jax.training.update import Score

OPPONENT = mixture(opponent=1.0)
CHOOSING, ANSWERING = 3, 4  # folded into the key of a step; rollout, judge and updates fold 0 to 2

# (slots, prompts, key) -> (what the opponent reads, responses of the policy, those of the opponent)
SamplePair = Callable[[Mapping[str, Params], Prompts, Array], tuple[Prompts, Responses, Responses]]
# (slots, prompts, responses) -> log-ratio to the reference of the slot that sampled each response.
LogRatio = Callable[[Mapping[str, Params], Prompts, Responses], Float[Array, 'B 1 1']]
# (prompter, batch, key) -> (the number of each chosen prompt as a response, the prompts)
Choose = Callable[[Params, Prompts, Array], tuple[Responses, Prompts]]


class Prices(NamedTuple):
  """What the payoffs contain of the opponent's KL: win probability per nat.

  `opponent` is the opponent's coefficient, and the prompter's for both KL terms; `in_reward` the
  one in the policy's payoff, which is the same, or 0 to leave it out.
  """

  opponent: float
  in_reward: float


def sample_together(make_rollout: MakeRollout) -> SamplePair:
  """Both respond to the prompt alone."""
  rollout = make_rollout([POLICY, OPPONENT])

  def sample(slots, prompts, key):
    return (prompts, *rollout(slots, prompts, jax.random.fold_in(key, 0)))

  return sample


def sample_answer(
  make_rollout: MakeRollout, ask: Callable[[Prompts, Responses], Prompts]
) -> SamplePair:
  """The opponent answers the policy's response; `ask` makes one prompt of prompt and response."""
  commit, answer = make_rollout([POLICY]), make_rollout([OPPONENT])

  def sample(slots, prompts, key):
    (first,) = commit(slots, prompts, jax.random.fold_in(key, 0))
    asked = sharding.put_rows(ask(prompts, first))
    (second,) = answer(slots, asked, jax.random.fold_in(key, ANSWERING))
    return asked, first, second

  return sample


def make_log_ratio(score: Score) -> LogRatio:
  """The log-ratio of responses to the reference, from their probabilities when sampled."""

  @jax.jit
  def of_reference(params, prompts, responses):
    ratio = responses.log_probs - score(params, Comparison(prompts, responses)).left
    ratio = jnp.sum(ratio, axis=-1)[..., None]
    return jnp.where(jnp.isnan(ratio), jnp.inf, ratio)  # NaN would be a verdict that is missing

  def log_ratio(slots, prompts, responses):
    return of_reference(trees.slot_params(slots, 'reference'), prompts, responses)

  return log_ratio


def make_opponent_play(
  sample: SamplePair,
  feedback: Feedback,
  log_ratio: LogRatio,
  prices: Prices,
  choose: Choose | None = None,
) -> Play:
  """A play of `policy` and `opponent`, and of `prompter` if prompts are chosen.

  Args:
    sample: one response of the policy and one of the opponent to each prompt.
    feedback: the payoff of a comparison, NaN for no verdict.
    log_ratio: to the reference.
    prices: of the opponent's KL.
    choose: the prompts by the slot `prompter`; without it, batches are prompts.
  """

  def play(slots, batch, key):
    prompts, chosen = batch, None
    if choose:
      slots = dict(slots)
      prompter = slots.pop('prompter')  # no language model, as the slots of a rollout are
      chosen, prompts = choose(prompter, batch, jax.random.fold_in(key, CHOOSING))
    asked, first, second = sample(slots, prompts, key)
    payoff = feedback(Comparison(prompts, second, first), jax.random.fold_in(key, 1))
    ratio = log_ratio(slots, asked, second) if prices.in_reward or choose else 0.0
    paid = prices.in_reward * ratio if prices.in_reward else 0.0
    played = {
      'policy': Comparison(prompts, first, second, paid - payoff),
      'opponent': Comparison(asked, second, None, payoff),
    }
    if chosen is not None:
      regret = payoff - prices.opponent * (ratio - log_ratio(slots, prompts, first))
      played['prompter'] = Comparison(prompts, chosen, None, regret)
    return played

  return play


def choose_from(pool: Prompts) -> Choose:
  """As many prompts as the batch has, sampled from a pool [N, P] by the logits of a prompter."""

  def choose(params, batch, key):
    rows = jax.random.categorical(key, params['logits'], shape=(len(batch.tokens), 1, 1))
    prompts = sharding.put_rows(take(pool, np.asarray(rows)[:, 0, 0]))
    return Responses(rows, jnp.ones_like(rows, bool)), prompts

  return choose


def score_chosen(params: Params, comparison: Comparison) -> Scores:
  """Log-probabilities of chosen prompts under a prompter."""
  return Scores(jax.nn.log_softmax(params['logits'])[comparison.left.tokens])
