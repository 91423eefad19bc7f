"""Judges that come from outside: named by a config, not learned in the run."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from scipy.special import expit

from nlhf_jax import hub
from nlhf_jax.build.model import DTYPES, fingerprint
from nlhf_jax.errors import UserError
from nlhf_jax.models.transformer import Numerics
from nlhf_jax.preferences import judges, templates
from nlhf_jax.preferences.endpoint import Endpoint, check_address
from nlhf_jax.preferences.judges import Ask, Judge, Preference
from nlhf_jax.preferences.remote import make_remote
from nlhf_jax.preferences.templates import Template
from nlhf_jax.structs import Params
from nlhf_jax.training import interrupts

PAIRRM = 'config.pairrm.hf'
ASKING = ('key', 'concurrency', 'per_minute', 'timeout', 'retries')  # that change no answer


class Outside(NamedTuple):
  """A judge of texts from outside: who that is, and its word.

  `read(prompts, left, right)` is its P(left > right), the left shown first, `ask` its word in both
  orders, `of_tokens(tokenizer)` the same judge of responses that are tokens, and `counts` what has
  happened to it in this process so far.
  """

  about: str
  read: Preference
  ask: Ask
  of_tokens: Callable[[Any], Judge]
  counts: Callable[[], Mapping[str, float]] = dict


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
  published = hub.locate(section.hf, field=PAIRRM)
  ranker, params, lengths = networks.load(published, make_numerics(section))
  size = len(params['encoder']['embed']['embedding'])
  vocabulary = pairrm.read_vocabulary(published, size)
  score = pairrm.make_score(ranker, params, lengths, vocabulary, section.batch)
  read = lambda prompts, left, right: expit(score(prompts, left, right))
  return Outside(section.hf, read, pairrm.make_ask(score), partial(pairrm.of_ranker, score))


def make_numerics(section: ConfigDict) -> Numerics:
  """In what PairRM computes and keeps its weights."""
  if section.compute not in DTYPES:
    raise UserError(f"config.pairrm.compute='{section.compute}' must be one of {list(DTYPES)}.")
  return Numerics(DTYPES[section.compute], DTYPES[section.compute])


def pairrm_shapes(config: ConfigDict) -> Params:
  """The shapes of its parameters, for which the port's config is enough."""
  from nlhf_jax.models import pairrm as networks

  folder = hub.locate(config.pairrm.hf, ['config.json'], PAIRRM)
  sizes, tasks, _ = networks.read(folder)
  ranker = networks.make_ranker(sizes, tasks, make_numerics(config.pairrm))
  return jax.eval_shape(ranker.init, jax.random.key(0))


def pairrm_settings(config: ConfigDict) -> object:
  """The weights, and what they are computed in."""
  return [fingerprint(config.pairrm.hf, PAIRRM), config.pairrm.compute]


def make_asked(config: ConfigDict, folder: Path) -> Outside:
  """The judge of the section `remote`."""
  section = config.remote
  prices = (section.prices.prompt, section.prices.response)
  remote = make_remote(
    make_endpoint(config, folder),
    make_template(config),
    sampling=json.loads(section.request),
    tolerated=section.tolerated,
    prices=prices if any(prices) else None,
    stop=interrupts.requested,
  )
  return Outside(
    f'{section.model} at {section.url}',
    remote.preference,
    judges.make_ask(remote.preference),
    partial(judges.of_texts, remote.preference),
    remote.counts,
  )


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
  sampling = {**template.sampling, **json.loads(config.remote.request)}
  return [config.remote.url, config.remote.model, words, sampling]


GIVEN = {
  'pairrm': Given(make_pairrm, pairrm_settings),
  'remote': Given(make_asked, asked_settings),
}
