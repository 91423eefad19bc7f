"""The judge `learned`: a preference model, which reads both responses at once."""

from functools import partial

import jax

from nlhf_jax.judges.judge import judge_from_network
from nlhf_jax.judges.kinds import JudgeNetwork, TrainedJudge
from nlhf_jax.judges.networks import (
  PLAIN_SUM_TOKENS,
  PreferenceNetwork,
  add_readouts,
  pair_rows,
  read_out,
)
from nlhf_jax.models.decoder import Decoder


def make_preference_network(
  decoder: Decoder, width: int, separator: int, response_length: int = PLAIN_SUM_TOKENS
) -> PreferenceNetwork:
  """A network that reads `prompt left separator right separator`.

  The logit is v.h at the last token, plus the sum of u.h over the tokens of the left response, less
  that over the tokens of the right one (`networks.read_out`).

  Args:
    decoder: the backbone; training continues from the parameters passed to `init`.
    width: of the decoder's hidden states.
    separator: the token after each response.
    response_length: the maximal number of tokens of a response.
  """

  def logit(params, comparison):
    pairs = (*comparison.left.tokens.shape[:2], comparison.right.tokens.shape[1])
    rows = pair_rows(comparison, separator)
    return read_out(decoder, params, *rows, response_length).reshape(pairs)

  return PreferenceNetwork(lambda backbone: add_readouts(backbone, width), jax.jit(logit))


def _make(backbone, section, key) -> JudgeNetwork:
  del section, key  # no settings besides those of its training; the readouts start at zero
  network = make_preference_network(*backbone)
  judge = partial(judge_from_network, network)
  left_first = lambda params: lambda comparison: jax.nn.sigmoid(network.logit(params, comparison))
  return JudgeNetwork(network.init, network.logit, judge, judge, left_first)


KIND = TrainedJudge('learned', 'preference_model', 'preference_model', _make)
