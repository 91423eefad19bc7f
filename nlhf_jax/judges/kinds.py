"""Kinds of judges as records: how each is made, trained, and identified in stages.

A new judge is a module of this folder with a record `KIND`, and a line in `registry`. Its settings,
if it has any, are the section of the config that the record names, passed as a plain mapping. A
record sees its own section alone: judges that are combined from other judges are in `combined`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxtyping import Array

from nlhf_jax.judges.judge import (
  CombineOrders,
  Judge,
  TextPreference,
  judge_from_texts,
  mean_of_orders,
)
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.structs import Comparison, Params

Section = Mapping[str, Any]


# --- Judges that are trained in the run ---


class JudgeNetwork(NamedTuple):
  """A network that judges, as functions of its parameters.

  Attributes:
    init: from the decoder's parameters to the network's.
    score: (parameters, comparison) -> what the loss is a function of.
    judge: the judge that policies learn from: P - 1/2, or a difference of rewards.
    probability_judge: the judge of tournaments and metrics, whose payoff is P - 1/2 in any case.
    left_first: (parameters) -> comparison -> P(left > right), the left response shown first.
  """

  init: Callable[[Params], Params]
  score: Callable[[Params, Comparison], Any]
  judge: Callable[[Params], Judge]
  probability_judge: Callable[[Params], Judge]
  left_first: Callable[[Params], Judge]


class Backbone(NamedTuple):
  """The decoder that a judge is built on, and what it reads.

  `width` is that of its hidden states, `separator` the token after each response, and
  `response_length` the maximal number of tokens of a response.
  """

  decoder: Decoder
  width: int
  separator: int
  response_length: int


class TrainedJudge(NamedTuple):
  """A judge that is trained on comparisons, starting from the SFT policy.

  Attributes:
    name: in settings such as `config.judges`.
    stage: its training stage, and the section of the config that describes its training.
    algorithm: the algorithm of the catalogue that trains it.
    make: (backbone, section, key) -> network; the key initialises what `init` adds to the decoder.
    payoff: whether policies learn from probabilities or from rewards.
  """

  name: str
  stage: str
  algorithm: str
  make: Callable[[Backbone, Section, Array], JudgeNetwork]
  payoff: Literal['probability', 'reward'] = 'probability'


# --- External judges: not trained in the run ---


class ExternalJudge(NamedTuple):
  """A judge of texts that is not trained in the run.

  Attributes:
    about: a description, for reports.
    preference: P(left > right), the left response shown first; NaN where it has no verdict.
    combine: P(left > right) from both orders.
    make_judge: from a tokenizer to the same judge of tokenised responses.
    counts: the counters of this process so far, such as requests.
    last_failure: why it last had no verdict; empty if it always had one.
    make_rewards: from a tokenizer to the judge r(y) - r(y'), of a judge that gives rewards.
  """

  about: str
  preference: TextPreference
  combine: CombineOrders
  make_judge: Callable[[Any], Judge]
  counts: Callable[[], Mapping[str, float]] = dict
  last_failure: Callable[[], str] = str
  make_rewards: Callable[[Any], Judge] | None = None


def judge_by_texts(
  about: str,
  preference: TextPreference,
  counts: Callable[[], Mapping[str, float]] = dict,
  last_failure: Callable[[], str] = str,
) -> ExternalJudge:
  """An external judge that takes the mean of both orders."""
  make_judge = lambda tokenizer: judge_from_texts(preference, tokenizer)
  return ExternalJudge(about, preference, mean_of_orders, make_judge, counts, last_failure)


class ExternalKind(NamedTuple):
  """A factory of an external judge, from its section of the config.

  Attributes:
    name: in settings such as `config.judges`.
    make: (section, folder, stop) -> judge. Files that must outlive the run go to the folder;
      `stop()` tells whether the user asked to stop.
    settings: from the section to the settings that determine the verdicts, as plain data; they
      identify stages that use the judge.
    section: the name of the section; None if the judge has no settings.
    shapes: from the section to the shapes of the parameters, if the judge has any.
    rewards: whether it gives rewards, which algorithms may learn from, besides probabilities.

  Both `make` and `settings` raise `UserError` for settings that cannot be used.
  """

  name: str
  make: Callable[[Section, Path, Callable[[], bool]], ExternalJudge]
  settings: Callable[[Section], object]
  section: str | None = None
  shapes: Callable[[Section], Params] | None = None
  rewards: bool = False
