"""Iterated learning: policies whose judge is refitted, in rounds of votes, while they train.

The loop of arXiv 2402.07314: responses of the policy and its enhancer, votes on them, a judge that
is fitted to all votes so far, and the policy goes on against that judge. Votes and judges lie in
the folder of the policy's stage, so that a resumed run continues with them. One round is one-shot
learning: all votes are on responses of the SFT policy.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from nlhf_jax.algorithms.algorithm import POLICY
from nlhf_jax.data import tokenizers
from nlhf_jax.data.batches import Examples, map_chunks, take
from nlhf_jax.errors import UserError
from nlhf_jax.experiments.language.judge_stage import fit_judge, make_network
from nlhf_jax.experiments.specs import LanguageExperiment, Policy, Stage, Voting
from nlhf_jax.experiments.stages import (
  make_policy_score,
  make_policy_update,
  make_rollout,
  respond,
)
from nlhf_jax.judges import combined
from nlhf_jax.judges.enhancers import NONE, choose_right
from nlhf_jax.judges.judge import Judge, probability, with_feedback
from nlhf_jax.judges.unfinished import unfinished_loses
from nlhf_jax.progress import progress
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Comparison, Params, Responses
from nlhf_jax.training import dashboards, interrupts
from nlhf_jax.training.loop import Steps
from nlhf_jax.training.rollout_step import make_sample

KIND = 'preference_model'  # of the judges that are fitted
# Folded into the stage's key, into which training folds step numbers: these are far smaller.
VOTES, VERDICTS, JUDGES = (zlib.crc32(name) for name in (b'votes', b'verdicts', b'judges'))


def make_voting_steps(
  experiment: LanguageExperiment, name: str, voter: Judge, reference: Params
) -> Steps:
  """The steps of a policy whose judge is fitted to votes at the start of each round.

  Args:
    experiment: with the policy and its stage; in a single process.
    name: of the policy.
    voter: whose verdicts the votes are, P - 1/2; NaN where it has none.
    reference: the SFT policy, which every judge is fitted from.
  """
  policy, stage = experiment.policies[name], experiment.stages[name]
  voting, training = policy.voting, policy.training
  make = partial(make_rollout, experiment, filters=policy.filters)
  sample = make_sample(training.algorithm, make)
  stop = experiment.corpus.tokenizer.eos_token_id
  update = make_policy_update(training, make_policy_score(experiment, policy), stop=stop)
  fitted: dict[int, list[Judge]] = {}  # of the current round
  means: dict[int, Judge] = {}  # their mean

  def judges_of(number):
    if number not in fitted:
      fitted.clear()
      fitted[number] = fit_judges(experiment, stage, voting, number, reference)
    return fitted[number]

  def begin_round(number, slots):
    if json_lines.read_sealed(votes_path(stage, number)) is None:
      before = judges_of(number - 1) if number else []
      votes = sample_votes(experiment, stage, policy, number, slots, before, voter)
      json_lines.write_sealed(votes_path(stage, number), votes)
    means.clear()
    means[number] = combined.combine_judges(judges_of(number), combined.mean)

  def step(state, batch, key):
    number = int(state.step) * voting.rounds // training.steps
    if number not in means:
      begin_round(number, state.slots)
    comparison = sample(state.slots, batch, key)
    payoff = with_feedback(means[number], probability)(comparison, jax.random.fold_in(key, 1))
    return update(state, comparison._replace(payoff=payoff), jax.random.fold_in(key, 2))

  return Steps(step)


# --- Votes ---


def votes_path(stage: Stage, number: int) -> Path:
  """The file of the votes of a round; the first is number 0."""
  return stage.folder / f'votes_{number}.json'


def sample_votes(
  experiment: LanguageExperiment,
  stage: Stage,
  policy: Policy,
  number: int,
  slots: Mapping[str, Params],
  judges: Sequence[Judge],
  voter: Judge,
) -> dict[str, list]:
  """The votes of a round: rows of training prompts, tokens of both responses, and payoffs.

  A vote between equal responses, and one without a verdict (NaN), is a vote of the budget, too.

  Args:
    experiment: with the training prompts.
    stage: of the policy.
    policy: with the number of votes, the enhancer and the feedback.
    number: of the round.
    slots: of the policy.
    judges: fitted to the votes before; without any, there is no enhancer.
    voter: gives the verdicts.
  """
  voting, key = policy.voting, jax.random.fold_in(jax.random.fold_in(stage.key, VOTES), number)
  label = f'{stage.name}, votes of round {number + 1} of {voting.rounds}'
  rows = voted_prompts(experiment, voting, number)
  examples = experiment.corpus.train.prompts
  prompts = examples.read(rows, examples.max_lengths)
  candidates = voting.candidates if judges and voting.enhancer != NONE else 1
  rollout = make_rollout(experiment, [POLICY], count=1 + candidates, filters=policy.filters)
  batch = max(experiment.tournament_batch // (1 + candidates), 1)
  (drawn,) = respond(rollout, slots, prompts, key, label, batch)
  main, others = (
    Responses(drawn.tokens[:, part], drawn.mask[:, part]) for part in (slice(0, 1), slice(1, None))
  )
  comparison = Comparison(prompts, main, others)
  if candidates > 1:
    judge = combined.combine_judges(judges, combined.mean)
    spread = combined.combine_judges(judges, lambda payoffs: payoffs.std(axis=0))
    choose = lambda chunk, _: choose_right(voting.enhancer, chunk, judge, spread).right
    comparison = comparison._replace(right=map_chunks(choose, comparison, policy.training.batch))
  ask = with_feedback(voter, policy.feedback)
  key = jax.random.fold_in(key, VERDICTS)
  payoff = ask_in_chunks(ask, comparison, policy.training.batch, key, label)
  left, right = (unpad(side) for side in (comparison.left, comparison.right))
  missing = int(np.isnan(payoff).sum())
  equal = sum(one == other for one, other in zip(left, right, strict=True))
  print(f'{label}: {len(rows)}, {equal} between equal responses, {missing} without a verdict')
  return {'prompts': rows.tolist(), 'left': left, 'right': right, 'payoff': payoff.tolist()}


def voted_prompts(experiment: LanguageExperiment, voting: Voting, number: int) -> np.ndarray:
  """Rows of the training prompts of a round.

  All rounds together go through the prompts in one random order, and then again, so that one-shot
  learning has the same prompts.
  """
  prompts = len(experiment.corpus.train.prompts.lengths)
  order = np.random.default_rng(experiment.seed).permutation(prompts)
  return order[(number * voting.per_round + np.arange(voting.per_round)) % prompts]


def ask_in_chunks(
  ask: Callable, comparison: Comparison, size: int, key: jax.Array, label: str
) -> np.ndarray:
  """The payoffs of pairs, [n], asked for `size` pairs at a time, and for each pair once.

  Raises:
    Interrupted: between two chunks, if the user asked to stop.
  """
  count, payoffs = len(comparison.left.tokens), []
  with progress(count, label, 'vote') as bar:
    for start in range(0, count, size):
      interrupts.check(label)
      chunk = take(comparison, slice(start, start + size))
      payoffs.append(np.asarray(ask(chunk, jax.random.fold_in(key, start)))[:, 0, 0])
      bar.update(len(payoffs[-1]))
  return np.concatenate(payoffs)


def unpad(responses: Responses) -> list[list[int]]:
  """The tokens of one response a prompt, without padding."""
  pairs = zip(responses.tokens[:, 0], responses.mask[:, 0], strict=True)
  return [tokens[mask].tolist() for tokens, mask in pairs]


def read_votes(stage: Stage, number: int) -> dict[str, list]:
  """The votes that a round stored.

  Raises:
    UserError: if there are none, because the file was damaged or lost.
  """
  votes = json_lines.read_sealed(votes_path(stage, number))
  if votes is None:
    raise UserError(
      f"the votes of an earlier round in '{votes_path(stage, number)}' are lost; delete the folder "
      f"'{stage.folder}' to train the stage again."
    )
  return votes


def count_votes(stage: Stage, voting: Voting) -> dict[str, int]:
  """How many votes a finished stage asked for, and how many of them no judge was fitted to."""
  rounds = [read_votes(stage, number) for number in range(voting.rounds)]
  pairs = [pair for votes in rounds for pair in zip(votes['left'], votes['right'], strict=True)]
  payoffs = np.concatenate([votes['payoff'] for votes in rounds])
  return {
    'rounds': voting.rounds,
    'votes': len(pairs),
    'equal': sum(left == right for left, right in pairs),
    'without_verdict': int(np.isnan(payoffs).sum()),
  }


# --- Judges ---


def fit_judges(
  experiment: LanguageExperiment, stage: Stage, voting: Voting, number: int, reference: Params
) -> list[Judge]:
  """The judges of a round, fitted to all votes up to it, or loaded.

  Several are each fitted to a resample of the votes, as many with replacement, so that their spread
  is that of an estimate from so many votes.

  Raises:
    UserError: if too few votes have a verdict, or votes are lost.
  """
  rounds = [read_votes(stage, before) for before in range(number + 1)]
  votes = {name: [it for votes in rounds for it in votes[name]] for name in rounds[0]}
  usable = np.array(
    [
      place
      for place, payoff in enumerate(votes['payoff'])
      if not np.isnan(payoff) and votes['left'][place] != votes['right'][place]
    ],
    int,
  )
  training = voting.trainings[number]
  if len(usable) < training.batch:
    raise UserError(
      f'{stage.name}, round {number + 1}: only {len(usable)} of {len(votes["payoff"])} votes have '
      f'a verdict on two different responses, fewer than a batch of {training.batch}; raise '
      f'config.policies.{stage.name}.votes.total, or look at what the judge answers.'
    )
  judges = []
  for member in range(voting.ensemble):
    random = np.random.default_rng([experiment.seed, number, member])
    places = random.choice(usable, len(usable)) if voting.ensemble > 1 else usable
    own = stage._replace(
      name=f'{stage.name}, judge {member + 1} of round {number + 1}',
      key=jax.random.fold_in(
        jax.random.fold_in(stage.key, JUDGES), number * voting.ensemble + member
      ),
      folder=stage.folder / f'judge_{number}_{member}',
    )
    examples = make_examples(experiment, votes, places)
    with dashboards.chosen('none'):  # the policy's own run is open
      params = fit_judge(experiment, own, KIND, training, examples, reference)
    judges.append(make_network(experiment, KIND, own.key).judge(params))
  if experiment.unfinished_loses:
    stop = experiment.corpus.tokenizer.eos_token_id
    judges = [unfinished_loses(judge, stop) for judge in judges]
  return judges


def make_examples(
  experiment: LanguageExperiment, votes: Mapping[str, Sequence], places: np.ndarray
) -> Examples:
  """The votes at some places, as comparisons to train on."""
  tokenizer, prompts = experiment.corpus.tokenizer, experiment.corpus.train.prompts
  asked, payoff = np.array(votes['prompts'])[places], np.array(votes['payoff'], np.float32)[places]
  sides = [[votes[side][place] for place in places] for side in ('left', 'right')]
  longest = np.maximum(*([len(tokens) for tokens in side] for side in sides))

  def read(rows, widths):
    left, right = (
      tokenizers.pad_responses(tokenizer, [side[row] for row in rows], widths[1]) for side in sides
    )
    return Comparison(prompts.read(asked[rows], widths), left, right, payoff[rows][:, None, None])

  lengths = np.stack([prompts.lengths[asked, 0], longest], axis=1)
  return Examples(lengths, (prompts.max_lengths[0], experiment.response_length), read)
