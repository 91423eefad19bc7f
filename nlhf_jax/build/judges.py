"""Judges that come from outside: named by a config, not learned in the run."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from scipy.special import expit

from nlhf_jax import hub
from nlhf_jax.build.model import DTYPES, fingerprint
from nlhf_jax.errors import UserError
from nlhf_jax.models.transformer import Numerics
from nlhf_jax.preferences import judges, templates
from nlhf_jax.preferences.endpoint import Endpoint, check_address
from nlhf_jax.preferences.judges import Judge, Preference
from nlhf_jax.preferences.remote import make_remote
from nlhf_jax.preferences.templates import Template
from nlhf_jax.training import interrupts

PAIRRM = 'config.pairrm.hf'
ASKING = ('key', 'concurrency', 'per_minute', 'timeout', 'retries')  # that change no answer


class Outside(NamedTuple):
  """A judge of texts: `read(prompts, left, right)` is its P(left > right), the left shown first.

  `of_tokens(tokenizer)` is the same judge of responses that are tokens, asked in both orders, and
  `counts` what has happened to it so far.
  """

  read: Preference
  of_tokens: Callable[[Any], Judge]
  counts: Callable[[], Mapping[str, float]]


class Given(NamedTuple):
  """`make(config, folder)` gives the judge; `settings(config)` what determines its word.

  What is to be kept goes into the folder. Both raise `UserError` for settings that cannot be used.
  """

  make: Callable[[ConfigDict, Path], Outside]
  settings: Callable[[ConfigDict], object]


def make_pairrm(config: ConfigDict, folder: Path) -> Outside:
  """The judge of the section `pairrm`."""
  # With these comes PyTorch, if there is one: seconds.
  from nlhf_jax.models import pairrm as networks
  from nlhf_jax.preferences import pairrm

  del folder
  section = config.pairrm
  if section.compute not in DTYPES:
    raise UserError(f"config.pairrm.compute='{section.compute}' must be one of {list(DTYPES)}.")
  published, dtype = hub.locate(section.hf, field=PAIRRM), DTYPES[section.compute]
  ranker, params, lengths = networks.load(published, Numerics(dtype, dtype))
  size = len(params['encoder']['embed']['embedding'])
  vocabulary = pairrm.read_vocabulary(published, size)
  score = pairrm.make_score(ranker, params, lengths, vocabulary, section.batch)
  read = lambda prompts, left, right: expit(score(prompts, left, right))
  return Outside(read, partial(pairrm.of_ranker, score), dict)


def pairrm_settings(config: ConfigDict) -> object:
  """The weights, and what they are computed in."""
  return [fingerprint(config.pairrm.hf, PAIRRM), config.pairrm.compute]


def make_asked(config: ConfigDict, folder: Path) -> Outside:
  """The judge of the section `remote`."""
  template, tolerated = make_template(config), config.remote.tolerated
  endpoint, stop = make_endpoint(config, folder), interrupts.requested
  remote = make_remote(endpoint, template, tolerated=tolerated, stop=stop)
  return Outside(remote.preference, partial(judges.of_texts, remote.preference), remote.counts)


def make_endpoint(config: ConfigDict, folder: Path) -> Endpoint:
  """Whom the section `remote` asks; its answers are kept in the folder."""
  must_name(config)
  section = config.remote
  asking = {field: section[field] for field in ASKING}
  return Endpoint(section.url, section.model, cache=folder / 'answers.sqlite', **asking)


def must_name(config: ConfigDict) -> None:
  """Refuses a section `remote` that does not say whom to ask."""
  for field in ('url', 'model'):
    if not config.remote[field]:
      raise UserError(f'config.remote.{field} is empty; say whom to ask.')


def make_template(config: ConfigDict) -> Template:
  """How it is asked."""
  section = config.remote
  if section.template == 'summaries':
    return templates.SUMMARIES
  if not section.judge_prompts:
    raise UserError(
      f"config.remote.template='{section.template}' must be summaries, or a prompt of the file "
      'that config.remote.judge_prompts names.'
    )
  return templates.mt_bench(Path(section.judge_prompts), section.template)


def asked_settings(config: ConfigDict) -> object:
  """Whom, and how."""
  template = make_template(config)
  must_name(config)
  check_address(config.remote.url)
  words = template.messages('prompt', 'left', 'right')
  return [config.remote.url, config.remote.model, words, dict(template.sampling)]


GIVEN = {
  'pairrm': Given(make_pairrm, pairrm_settings),
  'remote': Given(make_asked, asked_settings),
}
