"""The experiments that train language models."""

import functools
import hashlib
import inspect
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from nlhf_jax.algorithms import catalogue
from nlhf_jax.algorithms.algorithm import Algorithm, asks_judge
from nlhf_jax.data import sources
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import ranges
from nlhf_jax.experiments.data_config import check_enough, make_corpus
from nlhf_jax.experiments.judge_config import GIVEN
from nlhf_jax.experiments.model_config import fingerprint, make_model
from nlhf_jax.experiments.names import functions
from nlhf_jax.experiments.specs import LanguageExperiment, Policy, Stage, Training
from nlhf_jax.judges.judge import probability, verdict
from nlhf_jax.models import sharding
from nlhf_jax.sampling.token import Filters
from nlhf_jax.training import optimizers

# Judges that are trained, and the stages that they are the outcome of.
TRAINED = {
  'learned': 'preference_model',
  'reward': 'reward_model',
  'embedding': 'embedding_model',
}
JUDGES = (*TRAINED, *GIVEN, 'oracle')
LEARNED = ('sft', *TRAINED.values())
# The rows that stages other than those of their own name train by.
ROWS = {'embedding_model': 'preference_model'}
BATCHWISE = ('kto',)  # rows whose loss of an example depends on the others of the batch
LOG_ODDS = ('gpo', 'rso', 'rso_hinge')  # rows that are not linear in the preference
FEEDBACK = {'probability': probability, 'verdict': verdict}


def check(config: ConfigDict) -> None:
  """Refuses what cannot work before any work is done.

  Raises:
    UserError: that names the field, its value and what the value must be.
  """
  ranges.check(config)
  model = config.model
  if model.heads % model.key_heads:
    raise UserError(
      f'config.model.heads={model.heads} must be a multiple of config.model.key_heads='
      f'{model.key_heads}.'
    )
  if model.head_size % 2:
    raise UserError(
      f'config.model.head_size={model.head_size} must be even; rotary positions pair dimensions.'
    )


def make_experiment(config: ConfigDict, name: str, folder: Path) -> LanguageExperiment:
  """The experiment that a config describes; its stages are kept in `folder`.

  Raises:
    UserError: if a setting or the data cannot be used.
  """
  check(config)
  for field in LEARNED:
    row = ROWS.get(field, field)
    if config[field].algorithm != row:
      raise UserError(f'config.{field}.algorithm={config[field].algorithm} must be {row}.')
  trainings = {field: make_training(config[field], f'config.{field}') for field in LEARNED}
  policies = {name: make_policy(row, name, config) for name, row in config.policies.items()}
  players = [player for policy in policies.values() for player in policy.players]
  for player in players:
    if players.count(player) > 1 or player == 'sft':
      raise UserError(f"config.policies: two players would be called '{player}'; rename a policy.")
  exploiter = make_exploiter(config)
  of_policies = {f'policies.{name}': policy.training for name, policy in policies.items()}
  panel, sft = make_panel(config), trainings.pop('sft')
  asked = {*panel, *(policy.judge for policy in policies.values())}
  judges = {stage: trainings[stage] for stage in stages_of_judges(asked)}
  learners = {'sft': sft} | judges | of_policies | ({'exploiter': exploiter} if exploiter else {})
  learners = {field: training for field, training in learners.items() if training.steps}
  check_mesh(learners)
  corpus = make_corpus(config, folder)
  check_enough(config, corpus, {field: it.algorithm for field, it in learners.items()})
  settings = stage_settings(config, policies, panel)
  return LanguageExperiment(
    name=name,
    corpus=corpus,
    model=make_model(config, len(corpus.tokenizer)),
    response_length=config.data.response_length,
    seed=config.seed,
    stages={name: make_stage(name, of_it, config.seed, folder) for name, of_it in settings.items()},
    exploiters={
      pair: make_stage('exploiter', of_it, config.seed, folder)
      for pair, of_it in exploiter_settings(config, policies, panel, settings).items()
    },
    sft=sft,
    judges=judges,
    planes=config.embedding_model.planes,
    panel=panel,
    policies=policies,
    exploiter=exploiter,
    tournament_prompts=config.tournament.prompts,
    tournament_batch=config.tournament.batch,
    filters=Filters(**config.tournament.filters),
    given={
      name: functools.partial(it.make, config, folder)
      for name, it in GIVEN.items()
      if name in asked
    },
  )


def make_panel(config: ConfigDict) -> list[str]:
  """The judges of the tournament: the oracle, if it is known, and those of `config.judges`."""
  panel = [name.strip() for name in config.judges.split(',')]
  for name in panel:
    if name == 'oracle' or name not in JUDGES or panel.count(name) > 1:
      known = ', '.join((*TRAINED, *GIVEN))
      raise UserError(f"config.judges='{config.judges}' must be some of {known}.")
  return ['oracle', *panel] if config.data.source == 'synthetic' else panel


def stages_of_judges(asked: Collection[str | None]) -> list[str]:
  """The stages of those judges that are trained."""
  return [stage for judge, stage in TRAINED.items() if judge in asked]


def slots_of(experiment: LanguageExperiment) -> dict[str, tuple[str, str]]:
  """Player -> its stage, and its slot there."""
  slots = {'sft': ('sft', 'policy')}
  for policy, row in experiment.policies.items():
    slots |= {name: (policy, slot) for name, slot in row.players.items()}
  return slots


def check_mesh(trainings: Mapping[str, Training]) -> None:
  """Refuses batches that the mesh in force cannot split."""
  parts = sharding.example_shards()
  for field, training in trainings.items():
    if training.batch // training.accumulate % parts:
      raise UserError(
        f'config.{field}.batch={training.batch}, in {training.accumulate} parts, cannot be split '
        f'over the {parts} devices that have examples of their own (data x fsdp of config.mesh).'
      )


def make_policy(row: ConfigDict, name: str, config: ConfigDict) -> Policy:
  """A policy of the section `policies`."""
  field = f'config.policies.{name}'
  if name in (*LEARNED, *JUDGES, 'tournament', 'exploitability'):
    raise UserError(f'{field}: this name is taken by a stage or a judge; choose another.')
  if row.algorithm in LEARNED[1:]:
    raise UserError(f"{field}.algorithm: '{row.algorithm}' trains a judge, not a policy.")
  training = make_training(row, field)
  if row.judge not in JUDGES:
    raise UserError(f"{field}.judge='{row.judge}' must be one of {', '.join(JUDGES)}.")
  if row.judge == 'oracle' and config.data.source != 'synthetic':
    raise UserError(f"{field}.judge='oracle': only the embedded task has one; use 'learned'.")
  if row.feedback not in FEEDBACK:
    raise UserError(f"{field}.feedback='{row.feedback}' must be one of {', '.join(FEEDBACK)}.")
  if (row.judge == 'reward') != (row.algorithm == 'rlhf_pg') and row.algorithm != 'rebel':
    raise UserError(
      f"{field}.judge='{row.judge}' does not go with '{row.algorithm}': rlhf_pg needs 'reward', "
      'rebel can do with it, all others learn from probabilities.'
    )
  if row.feedback == 'verdict' and row.judge == 'reward':
    raise UserError(f"{field}.feedback='verdict' needs a judge that gives probabilities.")
  if row.feedback == 'verdict' and row.algorithm in LOG_ODDS:
    raise UserError(f"{field}.feedback='verdict': '{row.algorithm}' takes log-odds, infinite here.")
  averages = [
    slot for slot, rule in training.algorithm.references.items() if rule.__name__.startswith('ema(')
  ]
  if averages and config.model.weights == 'bfloat16' and not config.model.lora.rank:
    raise UserError(
      f"{field}: its slot '{averages[0]}' is an average, which moves too little for "
      "config.model.weights='bfloat16'; use float32, or adapters."
    )
  slots = [slot.strip() for slot in row.players.split(',')]
  known = ['policy', *training.algorithm.references]
  for slot in slots:
    if slot not in known:
      raise UserError(f"{field}.players: '{slot}' is not a slot of it; choose from {known}.")
  players = {name if slot == 'policy' else f'{name}_{slot}': slot for slot in slots}
  judge = row.judge if asks_judge(training.algorithm) else None
  if row.ahead and not judge:
    raise UserError(
      f"{field}.ahead=True: '{row.algorithm}' asks no judge; there is none to wait for."
    )
  if row.ahead and jax.process_count() > 1:
    raise UserError(f'{field}.ahead=True works in one process only; leave it out.')
  return Policy(training, judge, FEEDBACK[row.feedback], players, row.ahead)


def make_training(row: ConfigDict, field: str) -> Training:
  """How a stage trains, from the section of the config called `field`."""
  rows = functions(catalogue, Algorithm)
  if row.algorithm not in rows:
    raise UserError(
      f"{field}.algorithm: there is no '{row.algorithm}' in the catalogue; use one of {list(rows)}."
    )
  least = 0 if row.algorithm == 'sft' else 1  # the model may be one to start from as it is
  if row.steps < least:
    raise UserError(f'{field}.steps={row.steps} must be at least {least}.')
  takes = list(inspect.signature(rows[row.algorithm]).parameters)
  if sorted(takes) != sorted(row.arguments):
    raise UserError(
      f"{field}.algorithm: '{row.algorithm}' takes {takes}, but {field}.arguments has "
      f'{list(row.arguments)}; write a config for it, as those in configs/.'
    )
  try:
    algorithm = rows[row.algorithm](**row.arguments)
  except UserError as error:
    raise UserError(f'{field}.arguments: {error}') from None
  except ZeroDivisionError:
    raise UserError(
      f"{field}.arguments: '{row.algorithm}' divides by one of them that is 0."
    ) from None
  check_accumulation(row, field)
  taken = sum(bool(algorithm.step(number)) for number in range(1, row.steps + 1))
  try:
    optimizer = optimizers.make_optimizer(steps=max(taken, 1), **row.optimizer)
  except UserError as error:
    raise UserError(f'{field}.optimizer.{error}') from None
  return Training(
    algorithm=algorithm,
    optimizer=optimizer,
    steps=row.steps,
    batch=row.batch,
    accumulate=row.accumulate,
    evaluate_every=row.evaluate_every,
  )


def check_accumulation(row: ConfigDict, field: str) -> None:
  """Refuses batches that cannot be learned from part by part."""
  if row.batch % row.accumulate:
    raise UserError(
      f'{field}.batch={row.batch} must be a multiple of {field}.accumulate={row.accumulate}: '
      'a batch is learned from in that many equal parts.'
    )
  if row.accumulate > 1 and row.algorithm in BATCHWISE:
    raise UserError(
      f"{field}.accumulate={row.accumulate}: '{row.algorithm}' measures every response against "
      'the mean of its batch, which a part does not have; set accumulate=1.'
    )


def make_exploiter(config: ConfigDict) -> Training | None:
  """How exploiters train, if the config has them."""
  if not config.exploiter:
    return None
  training = make_training(config.exploiter, 'config.exploiter')
  if not asks_judge(training.algorithm) or 'reference' not in training.algorithm.references:
    raise UserError(
      f"config.exploiter.algorithm: '{config.exploiter.algorithm}' does not play against its "
      'reference, which is whom to exploit; use best_response.'
    )
  return training


def stage_settings(
  config: ConfigDict, policies: Mapping[str, Policy], panel: Sequence[str]
) -> dict[str, dict]:
  """What determines every stage. A policy builds on the judge it asks, if any, and that on SFT."""
  plain = json.loads(config.to_json_best_effort())
  shared = {name: plain[name] for name in ('seed', 'data', 'model')}
  path = shared['data'].pop('path', None)
  if path:  # the data is what it says, wherever it lies
    shared['file'] = sources.digest(sources.locate_all(path, config.data.split))
  if config.model.hf:  # and so is a model
    shared['model']['hf'] = fingerprint(config.model.hf)
  settings = {'sft': shared | {'sft': plain['sft']}}
  for model in stages_of_judges({*panel, *(policy.judge for policy in policies.values())}):
    settings[model] = settings['sft'] | {model: plain[model]}
  for name, policy in policies.items():
    row = {field: value for field, value in plain['policies'][name].items() if field != 'players'}
    settings[name] = settings[TRAINED.get(policy.judge, 'sft')] | {'policy': row}
    if policy.judge in GIVEN:
      settings[name] |= {policy.judge: GIVEN[policy.judge].settings(config)}
  players = settings_of_panel(config, panel, settings)
  players |= {name: settings[name] for name in policies}
  entered = {name: row['players'] for name, row in plain['policies'].items()}
  settings['tournament'] = players | {'tournament': plain['tournament'], 'entered': entered}
  return settings


def settings_of_panel(
  config: ConfigDict, panel: Sequence[str], settings: Mapping[str, dict]
) -> dict[str, object]:
  """What determines the word of each judge of the tournament."""
  trained = {judge: settings[TRAINED[judge]] for judge in panel if judge in TRAINED}
  return trained | {judge: GIVEN[judge].settings(config) for judge in panel if judge in GIVEN}


def exploiter_settings(
  config: ConfigDict,
  policies: Mapping[str, Policy],
  panel: Sequence[str],
  settings: Mapping[str, dict],
) -> dict[tuple[str, str], dict]:
  """(judge, player) -> what determines the exploiter of that player under that judge."""
  if not config.exploiter:
    return {}
  plain = json.loads(config.to_json_best_effort())
  whole = {'exploiter': plain['exploiter']}
  whole |= {field: plain['tournament'][field] for field in ('prompts', 'batch')}
  slots = {'sft': ('sft', 'policy')}
  for name, policy in policies.items():
    slots |= {player: (name, slot) for player, slot in policy.players.items()}
  measured_by = settings_of_panel(config, panel, settings)
  return {
    (judge, player): whole
    | {'judge': judge, 'measured_by': measured_by}
    | {'player': settings[name], 'slot': slot}
    for judge in panel
    for player, (name, slot) in slots.items()
  }


def make_stage(name: str, settings: Mapping[str, Any], seed: int, folder: Path) -> Stage:
  """A stage of these settings."""
  text = json.dumps(settings, sort_keys=True)
  digest = hashlib.sha256(text.encode()).hexdigest()[:10]
  return Stage(name, named_key(seed, name), folder / f'{name}-{digest}', settings, code_digest())


def named_key(seed: int, name: str) -> jax.Array:
  """The key of what has this name."""
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


@functools.cache
def code_digest() -> str:
  """A digest of this package's source."""
  code = hashlib.sha256()
  for source in sorted(Path(__file__).parents[1].rglob('*.py')):
    code.update(source.read_bytes())
  return code.hexdigest()[:10]
