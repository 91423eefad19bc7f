"""What the names on pages mean; pages show the meaning of a name that is pointed at."""

import re
from collections.abc import Iterable

# Name in lower case, as a page shows it -> its meaning in one or two sentences.
GLOSSARY = {
  # Tournaments
  'share': 'Weight in the maximal lottery, the mixture of policies that no policy beats: its Nash '
  'equilibrium.',
  'borda': 'Mean win rate against the other policies.',
  'bradley\u2013terry': 'Score in log-odds; the differences of scores fit the win rates best.',
  'kl to reference': 'How far the policy moved from the SFT model, nats per response, estimated '
  'from samples.',
  'length': 'Mean length of a response.',
  'turns': 'Mean number of turns that the policy writes in a conversation.',
  'unfinished': 'Share of responses that the length limit cut.',
  'at equal length': 'Win rate against the first policy, corrected for the lengths of responses.',
  'quality': 'Share of the facts of the post that a summary covers, less its errors.',
  'best counter-style': 'The style that wins most often against the policy under the oracle.',
  # Learning curves
  'loss': 'Mean loss of the algorithm. For policy gradients its value means nothing: look at win '
  'rates.',
  'gradient norm': 'Global norm of the gradient, before it is clipped.',
  'gradient norm p50': 'Median norm of the gradient since the last record.',
  'gradient norm p90': '90th percentile of the norm of the gradient since the last record.',
  'gradient norm p100': 'Largest norm of the gradient since the last record.',
  'skipped updates': 'Updates left out because a number was not finite.',
  'tokens per second': 'Response tokens sampled or read in a second.',
  'seconds per step': 'Seconds an update takes, without evaluation and checkpoints.',
  'model bytes read': 'Bytes of the files of a pretrained model that the first process has read.',
  'learning rate': 'Learning rate of the last update.',
  'stage programs': 'Programs compiled in this stage since it was last started.',
  'compile seconds': 'Seconds it took to compile them, or to read those of an earlier run.',
  'compiled programs': 'Programs compiled so far. If it keeps growing, batches differ in shape.',
  'nats per token': 'Negative log-likelihood of the demonstrations.',
  'held out nats per token': 'Negative log-likelihood of demonstrations that were held out.',
  'accuracy': 'Share of comparisons on which the judge agrees with the majority of votes; a tie '
  'counts half.',
  'held out accuracy': 'Accuracy on comparisons that were held out.',
  'log loss': 'Cross-entropy of the votes, nats per comparison; a constant 1/2 has 0.693.',
  'held out log loss': 'Cross-entropy of held-out votes, nats per comparison; a constant 1/2 has '
  '0.693.',
  'squared error': 'Mean squared difference between probability and share of votes.',
  'held out squared error': 'Mean squared difference between probability and share of votes, on '
  'comparisons that were held out.',
  'weakest edge of cycle': 'The least probability along the cycle of styles; above 1/2 the judge '
  'has learned the cycle.',
  'payoff': 'Mean of P(response beats opponent) - 1/2 or, with rewards, of their difference; '
  "against a trained opponent, with that one's KL if its reward is regularised.",
  'payoff of opponent': 'Mean of P(its response beats that of the policy) - 1/2.',
  'payoff of prompter': "Estimate, from below, of the policy's regularised exploitability on the "
  'prompts that are chosen.',
  'payoff of group': 'Mean payoff under the judge of this group, against the fixed opponent.',
  'weight of group': 'Weight of this group of raters in maxmin(...), before the update.',
  'win rate against reference by judge': 'Win rate over the SFT policy on held-out prompts, under '
  'this judge.',
  'entropy': 'Of sampled tokens, nats per token.',
  'response length': 'Mean number of tokens of a response.',
  'missing verdicts': 'Share of pairs on which the judge gave no verdict.',
  # Judges
  '95 % interval': 'Interval of the accuracy by Clopper and Pearson.',
  'log-loss': 'Cross-entropy of the votes, nats per comparison; a constant 1/2 has 0.693.',
  'brier': 'Mean squared difference between probability and share of votes.',
  'calibration error': 'Mean distance between confidence and share of votes, over ten bins.',
  'same in both orders': 'Share of pairs with the same verdict in both orders of the responses.',
  'first place': 'What being shown first adds to the probability of a response.',
  'for the longer': 'Mean probability of the longer response.',
  'people for the longer': 'Share of votes for the longer response.',
  'triples that are cycles': 'Share of triples of responses in which each beats the next.',
  'cyclic energy': 'Share of the squared payoffs that no scores can represent.',
  'condorcet winners': 'How often one response beats all others.',
  # Games
  'τ, kl coefficient': 'Weight of the KL to the reference in the game: the larger, the nearer the '
  'equilibrium is to the reference.',
  'condorcet winner': 'The action that beats every other action.',
  'borda winner': 'The action with the highest mean win rate.',
  'three-cycles': 'Triples of actions in which each beats the next.',
  'transitive share': 'Share of the squared payoffs that scores can represent.',
  'sigma at the equilibrium': 'Largest singular value of the payoff seen from the equilibrium; it '
  'decides which step sizes are stable.',
  'self-play is stable for': 'Step sizes for which self-play converges.',
  'newton steps': 'Steps of the exact solver.',
  'last iterate': 'What best responses of both players gain against the last iterate.',
  'average': 'What best responses of both players gain against the average of all iterates.',
  'distance to nash': 'Total variation between the last iterate and the equilibrium.',
  'kl to nash at τ, nats': 'KL divergence of the last iterate from the equilibrium of the '
  'regularised game.',
  'gap at start': 'Exploitability at τ before training, in win probability.',
  'at end': 'Exploitability at τ after training, in win probability.',
  'worst prompt': 'Exploitability on the prompt where it is the largest.',
  'kl to equilibrium': 'KL(equilibrium, policy), nats.',
  'beats reference': 'Exact win rate over the reference policy.',
  'solved at step': 'First evaluation after which the gap stays below the target.',
  'tabular gap': 'Exploitability that the solver of the same game reaches without a network.',
}


def add_metrics(metrics: Iterable[str]) -> dict[str, str]:
  """The glossary with the metrics of a page, as the page shows them in lower case."""
  found = {metric.replace('_', ' ').lower(): explain(metric) for metric in metrics}
  return GLOSSARY | {name: meaning for name, meaning in found.items() if meaning}


def explain(metric: str) -> str | None:
  """The meaning of a metric, if there is one.

  `X_by_JUDGE` has the meaning of `x by judge`, and `X_of_GROUP` that of `x of group`, unless it has
  one of its own.
  """
  name = metric.replace('_', ' ').lower()
  general = (name, re.sub(' by .*', ' by judge', name), re.sub(' of .*', ' of group', name))
  return next((GLOSSARY[one] for one in general if one in GLOSSARY), None)
