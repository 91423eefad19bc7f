"""Judges that come from outside: named by a config, not learned in the run."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from nlhf_jax import hub
from nlhf_jax.build.model import DTYPES, fingerprint
from nlhf_jax.errors import UserError
from nlhf_jax.models.transformer import Numerics
from nlhf_jax.preferences import judges, templates
from nlhf_jax.preferences.endpoint import Endpoint, check_address
from nlhf_jax.preferences.judges import Ask, Judge
from nlhf_jax.preferences.remote import make_remote
from nlhf_jax.preferences.templates import Template
from nlhf_jax.structs import Params
from nlhf_jax.training import interrupts

PAIRRM = 'config.pairrm.hf'
ASKING = ('key', 'concurrency', 'per_minute', 'timeout', 'retries')  # that change no answer


class Outside(NamedTuple):
  """A judge of tokens, who that is in words, and what has happened to it in this process so far.

  `ask` has its word on texts, in both orders.
  """

  judge: Judge
  about: str
  ask: Ask
  counts: Callable[[], Mapping[str, float]] = dict


class Given(NamedTuple):
  """`make(config, tokenizer, folder)` gives the judge; `settings(config)` what determines its word.

  Responses are tokens of the tokenizer; what is to be kept goes into the folder. Both raise
  `UserError` for settings that cannot be used.
  """

  make: Callable[[ConfigDict, Any, Path], Outside]
  settings: Callable[[ConfigDict], object]


def make_pairrm(config: ConfigDict, tokenizer: Any, folder: Path) -> Outside:
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
  return Outside(pairrm.of_ranker(score, tokenizer), section.hf, pairrm.make_ask(score))


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


def make_asked(config: ConfigDict, tokenizer: Any, folder: Path) -> Outside:
  """The judge of the section `remote`."""
  section, template = config.remote, make_template(config)
  asking = {field: section[field] for field in ASKING}
  endpoint = Endpoint(section.url, section.model, cache=folder / 'answers.sqlite', **asking)
  stop = interrupts.requested
  prices = (section.prices.prompt, section.prices.response)
  remote = make_remote(
    endpoint,
    template,
    sampling=json.loads(section.request),
    tolerated=section.tolerated,
    prices=prices if any(prices) else None,
    stop=stop,
  )
  return Outside(
    judges.of_texts(remote.preference, tokenizer),
    f'{section.model} at {section.url}',
    judges.make_ask(remote.preference),
    remote.counts,
  )


def make_template(config: ConfigDict) -> Template:
  """How it is asked."""
  section = config.remote
  for field in ('url', 'model'):
    if not section[field]:
      raise UserError(f'config.remote.{field} is empty; say whom to ask.')
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
  check_address(config.remote.url)
  words = template.messages('prompt', 'left', 'right')
  sampling = {**template.sampling, **json.loads(config.remote.request)}
  return [config.remote.url, config.remote.model, words, sampling]


GIVEN = {
  'pairrm': Given(make_pairrm, pairrm_settings),
  'remote': Given(make_asked, asked_settings),
}
