"""The judge `gpm`: a general preference model (GPM, arXiv 2410.02197).

It reads each response once, as a reward model does, and can represent cycles of preference.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nlhf_jax.judges.judge import judge_from_embeddings
from nlhf_jax.judges.kinds import JudgeNetwork, TrainedJudge
from nlhf_jax.judges.networks import (
  PLAIN_SUM_TOKENS,
  PreferenceNetwork,
  add_readouts,
  read_out,
  response_rows,
)
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.ranges import AtLeastOne, Positive


def make_general_preference_network(
  decoder: Decoder,
  width: int,
  separator: int,
  response_length: int = PLAIN_SUM_TOKENS,
  *,
  planes: AtLeastOne,
  key: Array,
  scale: Positive = 1.0,
) -> PreferenceNetwork:
  """A network that embeds each response as a point v in `planes` planes.

  The logit is the sum over planes of the area that two points span, v_1 v'_2 - v_2 v'_1
  (arXiv 2410.02197, section 4). It is antisymmetric. One plane can represent a cycle, and d planes
  every preference over 2 d responses.

  Args:
    decoder: the backbone; training continues from the parameters passed to `init`.
    width: of the decoder's hidden states.
    separator: the token after each response.
    response_length: the maximal number of tokens of a response.
    planes: 1 or more.
    key: samples the initial points.
    scale: factor of the points, which a pretrained model needs to be small: its hidden states are
      larger than those of a new one, and logits grow with the square of the points, so that the
      judge would begin sure of itself, and each update would change its logits by several units.
  """

  def init(backbone):
    # At zero an area has no gradient.
    points = jax.random.normal(key, (width, 2 * planes)) / width**0.5
    return add_readouts(backbone, width, 2 * planes) | {'verdict': points}

  @jax.jit
  def points(params, prompts, responses):
    rows = response_rows(prompts, responses, separator)
    values = scale * read_out(decoder, params, *rows, response_length)
    return values.reshape(*responses.tokens.shape[:2], 2, planes)

  def area(one, other):
    return jnp.einsum('bkp,bjp->bkj', one[:, :, 0], other[:, :, 1])

  def logit(params, comparison):
    prompts, left, right = comparison.prompts, comparison.left, comparison.right
    one = points(params, prompts, left)
    other = one if right is left else points(params, prompts, right)
    return area(one, other) - area(other, one).swapaxes(1, 2)

  return PreferenceNetwork(init, logit)


def _make(backbone, section, key) -> JudgeNetwork:
  settings = {name: section[name] for name in ('planes', 'scale')}
  network = make_general_preference_network(*backbone, **settings, key=key)
  judge = partial(judge_from_embeddings, network)
  left_first = lambda params: lambda comparison: jax.nn.sigmoid(network.logit(params, comparison))
  return JudgeNetwork(network.init, network.logit, judge, judge, left_first)


KIND = TrainedJudge('gpm', 'general_preference_model', 'preference_model', _make)
