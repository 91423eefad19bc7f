"""Judges that come from outside: found by name, not learned in the run."""

from typing import Any

from ml_collections import ConfigDict

from nlhf_jax import hub
from nlhf_jax.build.model import DTYPES
from nlhf_jax.errors import UserError
from nlhf_jax.models import pairrm as networks
from nlhf_jax.models.transformer import Numerics
from nlhf_jax.preferences import pairrm
from nlhf_jax.preferences.judges import Judge

FIELD = 'config.pairrm.hf'


def make_pairrm(config: ConfigDict, tokenizer: Any) -> Judge:
  """The judge of the section `pairrm`, for responses of this tokenizer.

  Raises:
    UserError: if a setting or the published folder cannot be used.
  """
  section = config.pairrm
  if section.compute not in DTYPES:
    raise UserError(f"config.pairrm.compute='{section.compute}' must be one of {list(DTYPES)}.")
  folder, dtype = hub.locate(section.hf, field=FIELD), DTYPES[section.compute]
  ranker, params, lengths = networks.load(folder, Numerics(dtype, dtype))
  size = len(params['encoder']['embed']['embedding'])
  vocabulary = pairrm.read_vocabulary(folder, size)
  score = pairrm.make_score(ranker, params, lengths, vocabulary, section.batch)
  return pairrm.of_ranker(score, tokenizer)
