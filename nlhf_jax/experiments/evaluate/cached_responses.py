"""Responses of the entries of an evaluation, cached in the work directory."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import alpaca_eval
from nlhf_jax.evaluation.benchmarks.benchmark import EvaluatedPolicy
from nlhf_jax.evaluation.best_of_responses import Compare, Selection
from nlhf_jax.evaluation.generation import LoadedModel, Respond, make_respond
from nlhf_jax.evaluation.response_files import FiledResponses
from nlhf_jax.experiments.evaluate.best_of_entries import respond_with_best
from nlhf_jax.experiments.language.finished_run import find_entry, load_entry
from nlhf_jax.experiments.specs import BestOf, Entry, EvaluateExperiment, PretrainedModel
from nlhf_jax.progress import progress
from nlhf_jax.storage import json_lines
from nlhf_jax.training import interrupts


def make_model(entry: Entry) -> LoadedModel:
  """Reads the network of an entry."""
  if isinstance(entry, PretrainedModel):
    return LoadedModel(entry.decoder, entry.load(), entry.tokenizer, entry.max_positions)
  experiment = entry.experiment
  params, own = load_entry(experiment, entry.policy), experiment.model
  return LoadedModel(own.decoder, params, experiment.corpus.tokenizer, own.sizes.max_positions)


def policy_key(experiment: EvaluateExperiment, entry: Entry) -> str:
  """A digest of everything that determines what an entry generates, except the prompts."""
  if isinstance(entry, PretrainedModel):
    own = entry.settings
  else:
    policy, slot = find_entry(entry.experiment, entry.policy)
    own = [entry.experiment.stages[policy].folder.name, slot]
  return json_lines.json_digest(
    [own, experiment.seed, experiment.length, experiment.batch, experiment.filters]
  )


def make_policy(experiment: EvaluateExperiment, name: str, folder: Path) -> EvaluatedPolicy:
  """An entry as benchmarks see it; its network is read only if a response is not cached yet."""
  entry = experiment.entries[name]
  common = {'batch': experiment.batch, 'seed': experiment.seed}
  if isinstance(entry, FiledResponses):
    return EvaluatedPolicy(name, annotations=entry.annotations, **common)
  if isinstance(entry, BestOf):
    entry = entry.base
  read = functools.cache(lambda: make_model(entry))
  key = policy_key(experiment, entry)
  respond = cached_respond(experiment, name, key, read, folder)
  return EvaluatedPolicy(name, respond, read, key, check_interrupt=interrupts.check, **common)


def cached_respond(
  experiment: EvaluateExperiment, name: str, key: str, load: Callable[[], LoadedModel], folder: Path
) -> Respond:
  """A function that samples responses batch by batch and caches them in `responses.jsonl`.

  Conversations are sorted by length, longest first: batches have little padding, and if memory does
  not suffice, the first batch fails. The cache has one line per batch.

  Raises:
    Interrupted: from the function, between batches, if the user asked to stop.
    UserError: from the function, for a conversation that the policy cannot respond to.
  """
  path = folder / 'responses.jsonl'
  cached = read_responses(path)

  @functools.cache
  def sampler():
    return make_respond(
      load(), length=experiment.length, batch=experiment.batch, filters=experiment.filters
    )

  def respond(conversations, temperature, seed):
    lengths = [sum(len(turn['content']) for turn in turns) for turns in conversations]
    order, texts = np.argsort(np.negative(lengths), kind='stable'), [''] * len(lengths)
    with progress(len(order), name, 'response') as bar:
      for number, start in enumerate(range(0, len(order), experiment.batch)):
        interrupts.check(f'the responses of {name}')
        rows = order[start : start + experiment.batch]
        batch = [conversations[row] for row in rows]
        batch_key = json_lines.json_digest([key, batch, temperature, seed, number])
        if len(cached.get(batch_key, ())) != len(rows):
          # Each batch of each seed has a random key of its own.
          entropy = np.random.SeedSequence([experiment.seed, seed, number])
          try:
            cached[batch_key] = sampler()(batch, temperature, int(entropy.generate_state(1)[0]))
          except UserError as error:
            raise UserError(f"the policy '{name}': {error}") from None
          json_lines.append(path, [{'batch': batch_key, 'texts': cached[batch_key]}])
        for row, text in zip(rows, cached[batch_key], strict=True):
          texts[row] = text
        bar.update(len(rows))
    return texts

  return respond


def read_responses(path: Path) -> dict[str, list[str]]:
  """Batch -> its cached responses; none without a file.

  If some are no responses, the file is set aside, and only the others are used.
  """
  rows = json_lines.read_valid(path, _is_batch, 'lines are no batches of responses')
  return {row['batch']: row['texts'] for row in rows}


def _is_batch(row) -> bool:
  texts = row.get('texts')
  listed = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
  return listed and isinstance(row.get('batch'), str)


def respond_to_prompts(
  experiment: EvaluateExperiment, policy: EvaluatedPolicy, compare: Compare | None, folder: Path
) -> tuple[EvaluatedPolicy, Selection | None]:
  """The policy with its responses to the prompts, which are written to `model_outputs.json`.

  Args:
    experiment: its entry of the policy's name, its prompts and filters.
    policy: without responses yet.
    compare: the judge that selects, of a `BestOf` entry; such an entry has no answers to anything
      but these prompts, and loses its functions.
    folder: of the policy.

  Returns:
    The policy, and how its responses were selected, if they were.
  """
  entry, prompts, selection = experiment.entries[policy.name], experiment.prompts, None
  temperature = experiment.filters.temperature
  if isinstance(entry, FiledResponses):
    texts = [entry.responses[prompt] for prompt in prompts]
  elif isinstance(entry, BestOf):
    selection = respond_with_best(entry, policy, compare, list(prompts), temperature)
    texts, policy = selection.responses, policy._replace(respond=None, load=None)
  else:
    conversations = [[{'role': 'user', 'content': prompt}] for prompt in prompts]
    texts = list(policy.respond(conversations, temperature, 0))
  known = {row['instruction']: row for row in experiment.references}
  questions = [known.get(prompt, {'instruction': prompt}) for prompt in prompts]
  outputs = alpaca_eval.make_outputs(questions, texts, policy.name)
  alpaca_eval.write(folder / 'model_outputs.json', outputs)
  return policy._replace(responses=dict(zip(prompts, texts, strict=True))), selection
