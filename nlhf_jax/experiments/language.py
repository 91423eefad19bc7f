"""Training language models, stage by stage: SFT, preference model, policies, tournament."""

import contextlib
import fcntl
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from nlhf_jax import display, policies, records, sampling
from nlhf_jax.build.language import Experiment, Stage, Training, make_experiment
from nlhf_jax.data import synthetic, tokenizers
from nlhf_jax.data.batches import batches, in_random_order, map_chunks, take
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import report, styles, tournament
from nlhf_jax.preferences import judges
from nlhf_jax.preferences.judges import Judge
from nlhf_jax.preferences.networks import PreferenceNetwork, make_preference_network
from nlhf_jax.sampling import UNFILTERED, Filters, Rollout
from nlhf_jax.structs import Comparison, Mixture, Params, Prompts, Responses
from nlhf_jax.training import interrupts, loop, measures
from nlhf_jax.training.steps import initial_state, make_update

WATCHED = 256  # held-out prompts that learning curves are measured on
ROLLOUT_CHUNK = 1024  # prompts that are responded to at once


def start(config: ConfigDict, name: str, workdir: Path, stages: Path) -> None:
  """Builds the experiment and runs it in its work directory; stages are kept in `stages`."""
  with interrupts.deferred():
    experiment = make_experiment(config, name, stages)
    records.write_json(workdir / 'config.json', config.to_dict())
    stages.mkdir(parents=True, exist_ok=True)
    experiment.corpus.tokenizer.save_pretrained(workdir / 'tokenizer')
    run(experiment, workdir)


def run(experiment: Experiment, workdir: Path) -> dict:
  """Runs or resumes the experiment and writes its outcome to `workdir`; returns the results.

  Raises:
    Interrupted: on Ctrl-C or SIGTERM; running again goes on from there.
  """
  corpus = experiment.corpus
  reference = fine_tune(experiment)
  network = make_preference_network(
    experiment.decoder, experiment.width, corpus.tokenizer.sep_token_id
  )
  panel = {'learned': train_judge(experiment, network, reference)}
  if corpus.embedded:
    panel = {'oracle': judges.of_texts(synthetic.preference, corpus.tokenizer), **panel}
  players = {'sft': reference}
  for name in experiment.policies:
    players[name] = train_policy(experiment, name, reference, panel['learned'])
  return publish(experiment, workdir, compete(experiment, players, panel))


def fine_tune(experiment: Experiment) -> Params:
  """Supervised fine-tuning of a new model on the demonstrations."""
  score = policies.make_score(experiment.decoder)
  held_out = experiment.corpus.held_out.demonstrations

  @jax.jit
  def log_prob(params, demonstrations):
    return jnp.sum(score(params, demonstrations).left, axis=(1, 2))

  def evaluate(params):
    total = map_chunks(lambda chunk, _: log_prob(params['policy'], chunk), held_out).sum()
    return {'held_out_nats_per_token': float(-total / held_out.left.mask.sum())}

  training, stage = experiment.sft, experiment.stages['sft']
  update = make_update(training.algorithm, score, training.optimizer, measures.of_demonstrations)
  examples = batches(experiment.corpus.train.demonstrations, training.batch, experiment.seed)
  params = experiment.decoder.init(stage.key)
  return fit(stage, training, params, offline(update), examples, evaluate)


def train_judge(experiment: Experiment, network: PreferenceNetwork, reference: Params) -> Judge:
  """A preference network, going on from the SFT policy's parameters."""
  training, stage = experiment.preference_model, experiment.stages['preference_model']
  train, held_out = experiment.corpus.train.comparisons, experiment.corpus.held_out.comparisons
  payoff = judges.make_payoff(network)

  def evaluate(params):
    judge = partial(payoff, params['policy'])
    said = map_chunks(lambda chunk, _: judge(chunk), held_out)
    values = {
      'held_out_accuracy': np.mean((1 + np.sign(said) * np.sign(held_out.payoff)) / 2),
      'held_out_squared_error': np.mean((said - held_out.payoff) ** 2),
    }
    if experiment.corpus.embedded:
      matrices = perfect_matrices(experiment, judge, take(held_out.prompts, slice(WATCHED)))
      values['weakest_edge_of_cycle'] = styles.weakest_edge(matrices.mean(axis=0).tolist())
    return {name: float(value) for name, value in values.items()}

  update = make_update(
    training.algorithm, network.logit, training.optimizer, measures.of_preferences
  )
  examples = in_random_order(batches(train, training.batch, experiment.seed))
  params = fit(stage, training, network.init(reference), offline(update), examples, evaluate)
  return partial(payoff, params)


def train_policy(experiment: Experiment, name: str, reference: Params, judge: Judge) -> Params:
  """One policy of the catalogue, from the SFT policy's parameters, judged as it plays."""
  training, stage = experiment.policies[name], experiment.stages[name]
  algorithm, held_out = training.algorithm, experiment.corpus.held_out.prompts
  score = policies.make_score(experiment.decoder)
  update = make_update(algorithm, score, training.optimizer, measures.of_play)
  rollout = make_rollout(experiment, [algorithm.left, algorithm.right])
  against_reference = make_rollout(experiment, [{'policy': 1.0}, {'reference': 1.0}])
  watched = take(held_out, slice(WATCHED))

  def step(state, prompts, key):
    comparison = Comparison(prompts, *rollout(state.params, prompts, key))
    return update(state, comparison._replace(payoff=judge(comparison)))

  def evaluate(params):
    payoff = judge(Comparison(watched, *against_reference(params, watched, stage.key)))
    return {'win_rate_against_reference': float(jnp.mean(payoff)) + 0.5}

  prompts = batches(experiment.corpus.train.prompts, training.batch, experiment.seed)
  return fit(stage, training, reference, step, prompts, evaluate)


def compete(
  experiment: Experiment, players: Mapping[str, Params], panel: Mapping[str, Judge]
) -> list[dict]:
  """The tournament between the players; its records, one a held-out prompt."""
  stage = experiment.stages['tournament']
  path = stage.folder / 'samples.jsonl'
  with noted(stage):
    if not path.exists():
      records.write(path, play(experiment, players, panel))
  return records.read(path)


def play(
  experiment: Experiment, players: Mapping[str, Params], panel: Mapping[str, Judge]
) -> list[dict]:
  """Lets every player respond to the held-out prompts, and every judge compare the responses."""
  tokenizer, stage = experiment.corpus.tokenizer, experiment.stages['tournament']
  prompts = take(experiment.corpus.held_out.prompts, slice(experiment.tournament_prompts))
  # Two responses a prompt: the first plays, the second shows what a counter-style would make of it.
  rollout = make_rollout(experiment, [{'policy': 1.0}], count=2, filters=experiment.filters)
  score = jax.jit(policies.make_score(experiment.decoder))
  sides, others, ratios = {}, {}, {}
  for number, (name, params) in enumerate(players.items()):
    key = jax.random.fold_in(stage.key, number)
    (pair,) = respond(rollout, {'policy': params}, prompts, key, f'{stage.name}, {name}')
    side, other = (jax.tree.map(lambda leaf, k=k: leaf[:, k : k + 1], pair) for k in (0, 1))
    of_reference = map_chunks(
      lambda chunk, _: score(players['sft'], chunk).left, Comparison(prompts, side)
    )
    sides[name] = side
    others[name] = tokenizers.texts(tokenizer, other.tokens, other.mask)
    ratios[name] = (side.log_probs - of_reference).sum(axis=(1, 2))
  said = {
    name: tournament.preferences(judge, prompts, list(sides.values()))
    for name, judge in panel.items()
  }
  lines = tournament.make_records(tokenizer, prompts, sides, ratios, said)
  if experiment.corpus.embedded:
    matrices = {name: perfect_matrices(experiment, judge, prompts) for name, judge in panel.items()}
    for row, line in enumerate(lines):
      line |= styles.annotate(line, {name: texts[row] for name, texts in others.items()})
      line['perfect'] = {name: matrix[row].tolist() for name, matrix in matrices.items()}
  return lines


def publish(experiment: Experiment, workdir: Path, lines: Sequence[Mapping]) -> dict:
  """Writes results, samples, metrics and the report, and prints the tables."""
  results = tournament.summarise(lines)
  if experiment.corpus.embedded:
    results['task'] = styles.summarise(lines)
  folders = [stage.folder for stage in experiment.stages.values()]
  curves = [record for folder in folders for record in records.read(folder / 'metrics.jsonl')]
  notes = {
    name: records.read_json(stage.folder / 'stage.json')
    for name, stage in experiment.stages.items()
  }
  stages = {
    name: {fact: note[fact] for fact in ('steps', 'seconds') if fact in note}
    for name, note in notes.items()
  }
  last = [record for record in curves if 'held_out_accuracy' in record][-1]
  judge = {name.removeprefix('held_out_'): last[name] for name in last if 'held_out' in name}
  records.write(workdir / 'samples.jsonl', lines)
  records.write(workdir / 'metrics.jsonl', curves)
  records.write_json(workdir / 'results.json', results)
  page = {'name': experiment.name, 'judge': judge, 'stages': stages, **results}
  report.write(workdir / 'report.html', page, curves, lines)
  announce(results, judge)
  return results


def fit(stage: Stage, training: Training, params: Params, step, examples, evaluate) -> Params:
  """Trains, unless it is done; returns the policy's parameters."""
  state = initial_state(training.algorithm, params, training.optimizer)
  with noted(stage, steps=training.steps):
    state = loop.train(
      state,
      step,
      examples,
      stage.key,
      stage=stage.name,
      steps=training.steps,
      folder=stage.folder,
      evaluate=evaluate,
      evaluate_every=training.evaluate_every,
    )
  return state.params['policy']


def offline(update):
  """An update as a step of the loop: the batch is the comparison, and nothing is random."""
  return lambda state, comparison, key: update(state, comparison)


@contextlib.contextmanager
def noted(stage: Stage, **facts) -> Iterator[None]:
  """Notes what determines the stage and the seconds spent on it; only a kill loses some of them.

  Code determines it too, but a change of code does not throw away what took days to train: it is
  pointed out.

  Raises:
    UserError: if another process is at work on the stage.
  """
  path = stage.folder / 'stage.json'
  facts |= {'done': False, 'seconds': 0.0, 'code': stage.code, 'settings': stage.settings}
  with alone(stage.folder):
    if path.exists():
      facts = records.read_json(path)
      print(f'{stage.name}: {"found" if facts["done"] else "going on"} in {stage.folder}')
      if facts['code'] != stage.code:
        print('  begun with another version of the code; delete the folder to make it anew')
    else:
      records.write_json(path, facts)
    start, done = time.monotonic(), facts['done']
    try:
      yield
      facts['done'] = True
    finally:
      if not done:
        facts['seconds'] += time.monotonic() - start
        records.write_json(path, facts)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
  """Keeps other processes out of a folder, as long as they ask here.

  Raises:
    UserError: if one is inside.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / '.lock').open('w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(f'another run is at work in {folder}; wait for it to end.') from None
    yield


def make_rollout(
  experiment: Experiment,
  mixtures: Sequence[Mixture],
  count: int = 1,
  filters: Filters = UNFILTERED,
) -> Rollout:
  """A rollout of the experiment's decoder, to its length and stop token."""
  return sampling.make_rollout(
    experiment.decoder,
    mixtures,
    length=experiment.response_length,
    stop=experiment.corpus.tokenizer.eos_token_id,
    count=count,
    filters=filters,
  )


def respond(
  rollout: Rollout, params: Mapping[str, Params], prompts: Prompts, key: jax.Array, label: str
) -> tuple[Responses, ...]:
  """Responses to any number of prompts, a chunk at a time.

  Raises:
    Interrupted: between chunks, if the user asked to stop.
  """
  with tqdm(total=len(prompts.tokens), desc=label, unit='prompt', mininterval=0.5) as bar:

    def one_chunk(chunk, number):
      interrupts.check(label)
      responses = rollout(params, chunk, jax.random.fold_in(key, number))
      bar.update(min(len(chunk.tokens), bar.total - bar.n))
      return responses

    return map_chunks(one_chunk, prompts, ROLLOUT_CHUNK)


def perfect_matrices(experiment: Experiment, judge: Judge, prompts: Prompts) -> np.ndarray:
  """What a judge says of perfect summaries of each style against each other, [n, 3, 3]."""
  tokenizer = experiment.corpus.tokenizer
  posts = tokenizers.texts(tokenizer, *prompts)
  by_style = zip(*map(styles.perfect_summaries, posts), strict=True)
  ids = [tokenizers.response_ids(tokenizer, texts) for texts in by_style]
  sides = [tokenizers.pad_responses(tokenizer, rows, experiment.response_length) for rows in ids]
  return tournament.preferences(judge, prompts, sides)


def announce(results: Mapping, judge: Mapping) -> None:
  """Prints the tables of the results."""
  as_text, policies, task = display.as_text, results['policies'], results.get('task')
  if task:
    for name, matrix in task['judge_matrix'].items():
      cyclic = 'a cycle' if styles.weakest_edge(matrix) > 0.5 else 'NO cycle'
      cells = [[f'{value:.3f}' for value in row] for row in matrix]
      title = f'\nPerfect summaries, {name} judge ({cyclic}), row over column:'
      print(as_text(title, task['styles'], task['styles'], cells))
  for name, table in results['tables'].items():
    title = f'\nWin rate of row over column, {name} judge, {results["comparisons"]} prompts, 95 %:'
    print(as_text(title, policies, policies, tournament.with_intervals(table)))
  if not task:
    print('No oracle is known for this data: the only judge is the one the policies trained on.')

  columns = {'KL to sft, nats': results['kl_to_reference'], 'tokens': results['length']}
  if task:
    columns['quality'] = task['quality']
    for style in (*task['styles'], 'none'):
      columns[style] = {name: task['shares'][name][style] for name in policies}
    columns['best counter wins'] = {name: task['counter'][name]['win_rate'] for name in policies}
  # Rounded before the zero is added, so that no KL is shown as -0.00.
  cells = [
    [f'{round(column[name], 2) + 0.0:.2f}' for column in columns.values()] for name in policies
  ]
  print(as_text('\nPolicies:', policies, list(columns), cells))
  print(f'\nThe learned judge agrees with {judge["accuracy"]:.1%} of held-out judgements.')
