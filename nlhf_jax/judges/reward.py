"""The judge `reward`: a reward model, which scores each response by itself."""

from functools import partial

import jax

from nlhf_jax.judges.judge import bradley_terry_judge, judge_from_rewards
from nlhf_jax.judges.kinds import JudgeNetwork, TrainedJudge
from nlhf_jax.judges.networks import (
  PLAIN_SUM_TOKENS,
  RewardNetwork,
  add_readouts,
  read_out,
  response_rows,
)
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.structs import Prompts, Responses, Scores


def make_reward_network(
  decoder: Decoder, width: int, separator: int, response_length: int = PLAIN_SUM_TOKENS
) -> RewardNetwork:
  """A network that reads `prompt response separator`; its reward is `networks.read_out`.

  Args:
    decoder: the backbone; training continues from the parameters passed to `init`.
    width: of the decoder's hidden states.
    separator: the token after each response.
    response_length: the maximal number of tokens of a response.
  """

  def rewards(params, prompts: Prompts, responses: Responses):
    rows = response_rows(prompts, responses, separator)
    values = read_out(decoder, params, *rows, response_length)
    return values.reshape(*responses.tokens.shape[:2], 1)

  def score(params, comparison):
    prompts, left, right, _ = comparison
    return Scores(rewards(params, prompts, left), rewards(params, prompts, right))

  return RewardNetwork(lambda backbone: add_readouts(backbone, width), jax.jit(score))


def _make(backbone, section, key) -> JudgeNetwork:
  del section, key  # no settings besides those of its training; the readouts start at zero
  network = make_reward_network(*backbone)
  judge = partial(judge_from_rewards, network)
  probability_judge = lambda params: bradley_terry_judge(judge(params))
  left_first = lambda params: lambda comparison: probability_judge(params)(comparison) + 0.5
  return JudgeNetwork(network.init, network.score, judge, probability_judge, left_first)


KIND = TrainedJudge('reward', 'reward_model', 'reward_model', _make, payoff='reward')
