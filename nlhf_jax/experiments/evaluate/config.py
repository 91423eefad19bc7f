"""The experiment that compares policies of whatever origin."""

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from nlhf_jax.data import examples, tokenizers
from nlhf_jax.errors import UserError, first_line
from nlhf_jax.evaluation import response_files
from nlhf_jax.evaluation.benchmarks import alpaca_eval, length_control, mt_bench, mt_bench_judge
from nlhf_jax.evaluation.benchmarks.length_control import Anchors
from nlhf_jax.evaluation.benchmarks.mt_bench_judge import Bench
from nlhf_jax.evaluation.response_files import Filed
from nlhf_jax.experiments import ranges
from nlhf_jax.experiments.judge_config import GIVEN, Outside, make_speaker, must_name
from nlhf_jax.experiments.language import config as language_config
from nlhf_jax.experiments.model_config import fingerprint, loaded, make_numerics
from nlhf_jax.experiments.specs import LanguageExperiment, ModelSource
from nlhf_jax.judges.remote import Speaker
from nlhf_jax.models import architectures
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling.token import Filters
from nlhf_jax.storage import hub, json_lines
from nlhf_jax.structs import Params

FIELD = 'config.players'


class Pretrained(NamedTuple):
  """A model in the Hugging Face layout; `begin()` reads its weights, `settings` tell it apart."""

  decoder: Decoder
  begin: Callable[[], Params]
  tokenizer: Any
  longest: int
  settings: object


class Trained(NamedTuple):
  """A player of a finished run."""

  experiment: LanguageExperiment
  player: str


Player = Filed | Pretrained | Trained


class AlpacaEval(NamedTuple):
  """Outputs of the reference and, for length control, difficulties and anchors."""

  references: Sequence[Mapping]
  difficulty: np.ndarray | None
  anchors: Anchors | None


class MtBench(NamedTuple):
  """What is asked, who judges it, and whether answers are graded, `single`, or compared, `pair`."""

  bench: Bench
  judge: str
  make_judge: Callable[[], Speaker]
  mode: str


class Harness(NamedTuple):
  """Tasks of the lm-evaluation-harness, and questions of each."""

  tasks: Sequence[str]
  limit: int | None


class EvaluateExperiment(NamedTuple):
  """Everything a run needs to know, free of config.

  `prompts` are those that all files of responses respond to; without any there is no tournament.
  `panel` has, for each judge, a digest of what determines its word; `trained` is the experiment
  whose judges are in it, if there are any.
  """

  name: str
  seed: int
  players: Mapping[str, Player]
  prompts: Sequence[str]
  panel: Mapping[str, str]
  trained: LanguageExperiment | None
  given: Mapping[str, Callable[[], Outside]]
  length: int
  batch: int
  filters: Filters
  settle: float
  alpaca_eval: AlpacaEval | None
  mt_bench: MtBench | None
  harness: Harness | None


def make_experiment(config: ConfigDict, name: str, folder: Path) -> EvaluateExperiment:
  """The experiment that a config describes; stages of its judges are kept in `folder`.

  Raises:
    UserError: if a setting or the data cannot be used.
  """
  ranges.check(config)
  section = config.tournament
  if section.length < 1:
    raise UserError(f'config.tournament.length={section.length} must be at least 1.')
  if not 0 <= section.settle < 1:
    raise UserError(f'config.tournament.settle={section.settle} must be in [0, 1).')
  if config.policies:
    raise UserError('config.policies: nothing is trained here but judges; leave policies out.')
  alpaca = make_alpaca_eval(config.alpaca_eval)
  players = make_players(config, alpaca.references if alpaca else (), folder)
  if section.settle and len(players) < 2:
    raise UserError(
      f'config.tournament.settle={section.settle} needs two players in {FIELD}; leave it at 0.'
    )
  prompts = first_of(make_prompts(config, players, alpaca), section.prompts)
  panel = make_panel(config) if prompts else []
  trained = make_trained(config, panel, name, folder)
  return EvaluateExperiment(
    name=name,
    seed=config.seed,
    players=players,
    prompts=prompts,
    panel={judge: judge_digest(config, judge, trained) for judge in panel},
    trained=trained,
    given={
      judge: functools.partial(GIVEN[judge].make, config, folder)
      for judge in panel
      if judge in GIVEN
    },
    length=section.length,
    batch=section.batch,
    filters=Filters(**section.filters),
    settle=section.settle,
    alpaca_eval=alpaca,
    mt_bench=make_mt_bench(config, players, folder),
    harness=make_harness(config.harness, players),
  )


def make_panel(config: ConfigDict) -> list[str]:
  """The judges; there may be none, where only benchmarks are asked for."""
  if config.judges:
    return language_config.make_panel(config)
  return ['oracle'] if config.data.source == 'synthetic' else []


def make_trained(
  config: ConfigDict, panel: Sequence[str], name: str, folder: Path
) -> LanguageExperiment | None:
  """The experiment that trains judges of the panel, or finds them trained."""
  learned = [judge for judge in panel if judge in language_config.TRAINED]
  if not learned:
    return None
  of_judges = copy.deepcopy(config)
  of_judges.judges = ','.join(learned)
  return language_config.make_experiment(of_judges, name, folder)


def judge_digest(config: ConfigDict, judge: str, trained: LanguageExperiment | None) -> str:
  """Of all that determines the word of a judge."""
  if judge in language_config.TRAINED:
    return trained.stages[language_config.TRAINED[judge]].folder.name.rpartition('-')[2]
  return digest(GIVEN[judge].settings(config) if judge in GIVEN else 'the embedded task')


def digest(settings: object) -> str:
  """A short name of settings."""
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def make_players(
  config: ConfigDict, references: Sequence[Mapping], folder: Path
) -> dict[str, Player]:
  """Name -> player, of `config.players`.

  Raises:
    UserError: if there is none, two have one name, or one cannot be found or read.
  """
  players: dict[str, Player] = {}
  for one in filter(None, map(str.strip, config.players.split(','))):
    name, _, what = ('', '', one) if Path(one).exists() else one.rpartition('=')
    for label, player in make_player(config, name, what, references, folder).items():
      label = label.replace('/', '__')  # it is the name of a folder, too
      if label in players:
        raise UserError(f"{FIELD}: two are called '{label}'; name one of them, as NAME={what}.")
      players[label] = player
  if not players:
    raise UserError(
      f'{FIELD} is empty; name models or files of responses, as mine=DIR,theirs=FILE.json.'
    )
  return players


def make_player(
  config: ConfigDict, name: str, what: str, references: Sequence[Mapping], folder: Path
) -> dict[str, Player]:
  """Those that one entry of the list names; several of one file have `name_` before theirs."""
  path = Path(what)
  if path.is_file():
    found = response_files.read(path, references)
    if len(found) == 1:
      ((own, filed),) = found.items()
      return {name or own or path.name.removesuffix('.gz').rpartition('.')[0]: filed}
    return {f'{name}_{own}' if name else own: filed for own, filed in found.items()}
  if path.name.removesuffix('.gz').endswith(('.json', '.jsonl')):
    raise UserError(f"{FIELD}: there is no file '{what}'.")
  run, _, player = what.rpartition(':')
  if run and (Path(run) / 'config.json').is_file():
    experiment = make_run(Path(run), folder)
    known = language_config.slots_of(experiment)
    if player not in known:
      raise UserError(f"{FIELD}: '{run}' has no player '{player}'; it has {', '.join(known)}.")
    return {name or player: Trained(experiment, player)}
  return {name or path.name: make_pretrained(config, what)}


def make_run(run: Path, folder: Path) -> LanguageExperiment:
  """The experiment of a work directory; its stages are in it or, if not, in `folder`."""
  try:
    settings = json_lines.read_json(run / 'config.json')
  except ValueError as error:
    raise UserError(f"{FIELD}: '{run}/config.json' is damaged ({first_line(error)}).") from None
  if settings.get('experiment') != 'language':
    raise UserError(f"{FIELD}: '{run}' is no run of an experiment that trains language models.")
  own = run / 'stages'
  stages = own if own.is_dir() else folder
  try:
    return language_config.make_experiment(ConfigDict(settings), run.name, stages)
  except (AttributeError, KeyError) as error:
    raise UserError(
      f"{FIELD}: '{run}/config.json' is of another version ({first_line(error)}); train it again."
    ) from None


def make_pretrained(config: ConfigDict, name: str) -> Pretrained:
  """A model by its folder or hub name."""
  folder = hub.locate(name, field=FIELD)
  family, sizes = architectures.read_architecture(folder)
  decoder = make_decoder(sizes, make_numerics(config.model))
  tokenizer = tokenizers.load(name, field=FIELD)
  if len(tokenizer) > sizes.vocabulary:
    raise UserError(
      f"{FIELD}: the tokenizer of '{name}' has {len(tokenizer)} tokens, but its embedding only "
      f'{sizes.vocabulary}; they do not belong together.'
    )
  begin = loaded(decoder, ModelSource(name, folder, family))
  settings = [fingerprint(name, FIELD), config.model.compute, config.model.weights]
  # All weights are read, none is drawn.
  read = functools.partial(begin, jax.random.key(0))
  return Pretrained(decoder, read, tokenizer, sizes.max_positions, settings)


def make_prompts(
  config: ConfigDict, players: Mapping[str, Player], alpaca: AlpacaEval | None
) -> list[str]:
  """The prompts that all files of responses have in common, each once; none for benchmarks alone.

  Raises:
    UserError: if there is no source of prompts, none is left, or one is a conversation.
  """
  filed = {name: player for name, player in players.items() if isinstance(player, Filed)}
  section = config.prompts
  if section.path:
    prompts = read_prompts(section)
  elif alpaca:
    prompts = [row['instruction'] for row in alpaca.references]
  elif filed:
    prompts = list(next(iter(filed.values())).responses)
  elif not config.judges and (config.mt_bench.questions or config.harness.tasks):
    return []
  else:
    raise UserError(
      'config.prompts.path is empty; say what the players are to respond to, or leave '
      'config.judges empty and name a benchmark, by config.mt_bench or config.harness.'
    )
  talk = next((prompt for prompt in prompts if not isinstance(prompt, str)), None)
  if talk:
    raise UserError(
      f'config.prompts.path: a prompt is a conversation ({talk[-1].content!r:.60} ends it); only '
      'MT-Bench has those here, leave them out.'
    )
  prompts = list(dict.fromkeys(prompts))
  lacking = {
    name: [prompt for prompt in prompts if prompt not in one.responses]
    for name, one in filed.items()
  }
  said = [
    f"'{name}' has no response to {len(missing)} of {len(prompts)}, as {missing[0]!r:.80}"
    for name, missing in lacking.items()
    if missing
  ]
  left_out = set().union(*lacking.values())
  common = [prompt for prompt in prompts if prompt not in left_out]
  if not common:
    raise UserError(
      f'{FIELD}: there is no prompt that all files respond to ({"; ".join(said)}); are they of one '
      'set?'
    )
  if said:
    print(f'{len(common)} prompts have a response in every file, and are used; {"; ".join(said)}.')
  return common


def first_of(prompts: list[str], most: int) -> list[str]:
  """No more than so many; it is said if some are left."""
  if len(prompts) > most:
    print(f'The first {most} of {len(prompts)} prompts are used (config.tournament.prompts).')
  return prompts[:most]


def read_prompts(section: ConfigDict) -> list:
  """Those of the section `prompts`."""
  try:
    return [record.prompt for record in examples.records(**section)]
  except UserError as error:
    # Who reads sources does not know for which section.
    raise UserError(str(error).replace('config.data.', 'config.prompts.')) from None


def make_alpaca_eval(section: ConfigDict) -> AlpacaEval | None:
  """The section `alpaca_eval`, if it names a reference."""
  if not section.reference:
    return None
  references = alpaca_eval.read_outputs(section.reference)
  if bool(section.difficulty) != bool(section.anchors):
    raise UserError(
      'config.alpaca_eval: length control needs both difficulty and anchors; give the other, or '
      'neither.'
    )
  if not section.difficulty:
    return AlpacaEval(references, None, None)
  difficulty = length_control.read_difficulty(section.difficulty)
  if len(difficulty) != len(references):
    raise UserError(
      f"config.alpaca_eval.difficulty='{section.difficulty}' has {len(difficulty)} rows, and the "
      f'reference {len(references)} outputs; they belong together row by row.'
    )
  return AlpacaEval(references, difficulty, length_control.read_anchors(section.anchors))


def make_mt_bench(
  config: ConfigDict, players: Mapping[str, Player], folder: Path
) -> MtBench | None:
  """The section `mt_bench`, if it names questions."""
  section = config.mt_bench
  if not section.questions:
    return None
  if section.mode not in ('single', 'pair'):
    raise UserError(f"config.mt_bench.mode='{section.mode}' must be single or pair.")
  must_answer('mt_bench.questions', players, least=2 if section.mode == 'pair' else 1)
  for field in ('references', 'judge_prompts'):
    if not section[field]:
      raise UserError(f"config.mt_bench.{field} is empty; give FastChat's file.")
  bench = Bench(
    mt_bench.read_questions(section.questions),
    mt_bench.read_answers(section.references),
    mt_bench_judge.read_prompts(section.judge_prompts),
  )
  must_name(config)
  make_judge = functools.partial(make_speaker, config, folder)
  return MtBench(bench, config.remote.model, make_judge, section.mode)


def must_answer(field: str, players: Mapping[str, Player], least: int) -> None:
  """Refuses a benchmark that asks questions of its own where too few players can be asked."""
  count = sum(not isinstance(player, Filed) for player in players.values())
  if count < least:
    raise UserError(
      f'config.{field}: {count} of {FIELD} can be asked these questions, as models can and files '
      f'of responses cannot; name at least {least}.'
    )


def make_harness(section: ConfigDict, players: Mapping[str, Player]) -> Harness | None:
  """The section `harness`, if it names tasks."""
  tasks = [task.strip() for task in section.tasks.split(',') if task.strip()]
  if not tasks:
    return None
  must_answer('harness.tasks', players, least=1)
  if section.limit < 0:
    raise UserError(f'config.harness.limit={section.limit} must be at least 0.')
  return Harness(tasks, section.limit or None)
