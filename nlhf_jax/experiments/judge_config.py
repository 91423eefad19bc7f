"""Judges that come from outside: named by a config, not learned in the run."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from nlhf_jax.errors import UserError
from nlhf_jax.experiments.model_config import DTYPES, fingerprint
from nlhf_jax.judges import remote, verdicts
from nlhf_jax.judges.endpoint import Endpoint, check_address
from nlhf_jax.judges.judge import Both, Judge, Preference, mean, of_texts
from nlhf_jax.judges.remote import Speaker
from nlhf_jax.judges.verdicts import Template
from nlhf_jax.models.transformer import Numerics
from nlhf_jax.storage import hub
from nlhf_jax.structs import Params
from nlhf_jax.training import interrupts

PAIRRM = 'config.pairrm.hf'
SPEAKING = {'temperature': 0.0, 'max_tokens': 2048}  # how MT-Bench's judge is sampled
ASKING = ('key', 'concurrency', 'per_minute', 'timeout', 'retries')  # that change no answer


class Outside(NamedTuple):
  """A judge of texts from outside: who that is, and its word.

  `read(prompts, left, right)` is its P(left > right), the left shown first, `both` what it makes of
  both orders, `of_tokens(tokenizer)` the same judge of responses that are tokens, and `counts` what
  has happened to it in this process so far.
  """

  about: str
  read: Preference
  both: Both
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
  from nlhf_jax.judges import pairrm
  from nlhf_jax.models import pairrm_encoder as networks

  del folder
  section = config.pairrm
  published = hub.locate(section.hf, field=PAIRRM)
  ranker, params, lengths = networks.load_ranker(published, make_numerics(section))
  size = len(params['encoder']['embed']['embedding'])
  vocabulary = pairrm.read_vocabulary(published, size)
  score = pairrm.make_score(ranker, params, lengths, vocabulary, section.batch)
  of_tokens = partial(pairrm.of_ranker, score)
  return Outside(section.hf, pairrm.make_preference(score), pairrm.both_orders, of_tokens)


def make_numerics(section: ConfigDict) -> Numerics:
  """In what PairRM computes and keeps its weights."""
  if section.compute not in DTYPES:
    raise UserError(f"config.pairrm.compute='{section.compute}' must be one of {list(DTYPES)}.")
  return Numerics(DTYPES[section.compute], DTYPES[section.compute])


def pairrm_shapes(config: ConfigDict) -> Params:
  """The shapes of its parameters, for which the port's config is enough."""
  from nlhf_jax.models import pairrm_encoder as networks

  folder = hub.locate(config.pairrm.hf, ['config.json'], PAIRRM)
  sizes, tasks, _ = networks.read_published(folder)
  ranker = networks.make_ranker(sizes, tasks, make_numerics(config.pairrm))
  return jax.eval_shape(ranker.init, jax.random.key(0))


def pairrm_settings(config: ConfigDict) -> object:
  """The weights, and what they are computed in."""
  return [fingerprint(config.pairrm.hf, PAIRRM), config.pairrm.compute]


def make_remote_judge(config: ConfigDict, folder: Path) -> Outside:
  """The judge of the section `remote`."""
  section = config.remote
  judge = remote.make_remote(
    make_endpoint(config, folder),
    make_template(config),
    sampling=json.loads(section.request),
    tolerated=section.tolerated,
    prices=prices_of(config),
    stop=interrupts.requested,
  )
  return Outside(
    f'{section.model} at {section.url}',
    judge.preference,
    mean,
    partial(of_texts, judge.preference),
    judge.counts,
  )


def prices_of(config: ConfigDict) -> tuple[float, float] | None:
  """What a million tokens cost, of prompts and of responses, if anything."""
  found = (config.remote.prices.prompt, config.remote.prices.response)
  return found if any(found) else None


def make_speaker(config: ConfigDict, folder: Path) -> Speaker:
  """Whom the section `remote` names, as MT-Bench asks."""
  sampling = remote.changed(SPEAKING, json.loads(config.remote.request))
  endpoint = make_endpoint(config, folder)
  return remote.make_speaker(endpoint, sampling, prices_of(config), interrupts.requested)


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
    return verdicts.SUMMARIES
  if not section.judge_prompts:
    raise UserError(
      f"config.remote.template='{section.template}' must be summaries, or a prompt of the file "
      'that config.remote.judge_prompts names.'
    )
  return verdicts.mt_bench(Path(section.judge_prompts), section.template)


def remote_settings(config: ConfigDict) -> object:
  """Whom, and how."""
  template = make_template(config)
  must_name(config)
  check_address(config.remote.url)
  words = template.messages('prompt', 'left', 'right')
  sampling = {**template.sampling, **json.loads(config.remote.request)}
  return [config.remote.url, config.remote.model, words, sampling]


GIVEN = {
  'pairrm': Given(make_pairrm, pairrm_settings),
  'remote': Given(make_remote_judge, remote_settings),
}
