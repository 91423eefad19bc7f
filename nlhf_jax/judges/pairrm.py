"""The judge `pairrm`: PairRM's published weights (arXiv 2306.02561), which are not trained here.

The modules that it needs import PyTorch, if that is installed, which takes seconds: they are
imported when the judge is made.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from nlhf_jax.errors import UserError
from nlhf_jax.judges.kinds import ExternalJudge, ExternalKind, Section
from nlhf_jax.models.blocks import Numerics
from nlhf_jax.storage import hub
from nlhf_jax.structs import Params

FIELD = 'config.pairrm.hf'
TYPES = ('float32', 'bfloat16')


def _make(section: Section, folder: Path, stop: Callable[[], bool]) -> ExternalJudge:
  from nlhf_jax.judges import pairrm_scoring
  from nlhf_jax.models import pairrm_encoder

  del folder, stop
  published = hub.locate(section['hf'], field=FIELD)
  ranker, params, lengths = pairrm_encoder.load_ranker(published, _numerics(section))
  size = len(params['encoder']['embed']['embedding'])
  vocabulary = pairrm_scoring.read_vocabulary(published, size)
  score = pairrm_scoring.make_score(ranker, params, lengths, vocabulary, section['batch'])
  return ExternalJudge(
    section['hf'],
    pairrm_scoring.make_preference(score),
    pairrm_scoring.combine_orders,
    partial(pairrm_scoring.make_judge, score),
  )


def _numerics(section: Section) -> Numerics:
  """The type of computations and of stored weights."""
  name = section['compute']
  if name not in TYPES:
    raise UserError(f"config.pairrm.compute='{name}' must be one of {list(TYPES)}.")
  return Numerics(getattr(jnp, name), getattr(jnp, name))


def _settings(section: Section) -> object:
  """The weights, and the type of computations."""
  return [hub.fingerprint(section['hf'], FIELD), section['compute']]


def _shapes(section: Section) -> Params:
  """The shapes of the parameters, from the config file of the port to `transformers` alone."""
  from nlhf_jax.models import pairrm_encoder

  folder = hub.locate(section['hf'], ['config.json'], FIELD)
  sizes, tasks, _ = pairrm_encoder.read_published(folder)
  ranker = pairrm_encoder.make_ranker(sizes, tasks, _numerics(section))
  return jax.eval_shape(ranker.init, jax.random.key(0))


KIND = ExternalKind('pairrm', _make, _settings, section='pairrm', shapes=_shapes)
