"""Players of whatever origin: what they say, and their networks where something is left to ask."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.benchmarks import alpaca_eval
from nlhf_jax.evaluation.benchmarks.mt_bench import Respond
from nlhf_jax.evaluation.generation import make_respond
from nlhf_jax.experiments import export_policy
from nlhf_jax.experiments.evaluate.config import (
  EvaluateExperiment,
  Filed,
  Player,
  Pretrained,
  digest,
)
from nlhf_jax.models.decoder import Decoder
from nlhf_jax.storage import json_lines
from nlhf_jax.structs import Params
from nlhf_jax.training import interrupts


class Model(NamedTuple):
  """A player that can be asked; `longest` is how many tokens it has positions for."""

  decoder: Decoder
  params: Params
  tokenizer: Any
  longest: int


Load = Callable[[], Model]


def make_model(player: Player) -> Model:
  """A player's network."""
  if isinstance(player, Pretrained):
    return Model(player.decoder, player.begin(), player.tokenizer, player.longest)
  experiment = player.experiment
  params, own = export_policy.of_player(experiment, player.player), experiment.model
  return Model(own.decoder, params, experiment.corpus.tokenizer, own.sizes.max_positions)


def key_of(experiment: EvaluateExperiment, player: Player) -> str:
  """A digest of all that determines what a player that is asked says, but for the questions."""
  if isinstance(player, Pretrained):
    own = player.settings
  else:
    policy, slot = export_policy.slot_of(player.experiment, player.player)
    own = [player.experiment.stages[policy].folder.name, slot]
  return digest([own, experiment.seed, experiment.length, experiment.batch, experiment.filters])


def of_player(experiment: EvaluateExperiment, name: str, load: Load, folder: Path) -> Respond:
  """A player that is spoken to, batch by batch; conversations of like length come together.

  The longest come first: if memory is short, it shows at once.

  What it says is kept in `said.jsonl` of the folder, a line a batch, and it is loaded only if some
  of it is missing.

  Raises:
    Interrupted: by the function, between batches, if the user asked to stop.
    UserError: by the function, of whatever the player cannot respond to.
  """
  path, key = folder / 'said.jsonl', key_of(experiment, experiment.players[name])
  known = {row['asked']: row['texts'] for row in json_lines.read(path)}

  @functools.cache
  def made():
    model = load()
    return make_respond(
      model.decoder,
      model.params,
      model.tokenizer,
      length=experiment.length,
      longest=model.longest,
      batch=experiment.batch,
      filters=experiment.filters,
    )

  def respond(conversations, temperature, seed):
    lengths = [sum(len(turn['content']) for turn in turns) for turns in conversations]
    order, said = np.argsort(np.negative(lengths), kind='stable'), [''] * len(lengths)
    with tqdm(total=len(order), desc=name, unit='response', mininterval=0.5) as bar:
      for number, start in enumerate(range(0, len(order), experiment.batch)):
        interrupts.check(f'the responses of {name}')
        rows = order[start : start + experiment.batch]
        batch = [conversations[row] for row in rows]
        asked = digest([key, batch, temperature, seed, number])
        if asked not in known:
          # No two batches of a run draw alike, nor those of two seeds.
          entropy = np.random.SeedSequence([experiment.seed, seed, number])
          try:
            known[asked] = made()(batch, temperature, int(entropy.generate_state(1)[0]))
          except UserError as error:
            raise UserError(f"the player '{name}': {error}") from None
          json_lines.append(path, [{'asked': asked, 'texts': known[asked]}])
        for row, text in zip(rows, known[asked], strict=True):
          said[row] = text
        bar.update(len(rows))
    return said

  return respond


def respond(
  experiment: EvaluateExperiment, name: str, load: Load | None, folder: Path
) -> list[str]:
  """A player's responses to the prompts, which are left in the folder as `model_outputs.json`."""
  player, prompts = experiment.players[name], experiment.prompts
  if isinstance(player, Filed):
    said = [player.responses[prompt] for prompt in prompts]
  else:
    talks = [[{'role': 'user', 'content': prompt}] for prompt in prompts]
    speak = of_player(experiment, name, load, folder)
    said = list(speak(talks, experiment.filters.temperature, 0))
  references = experiment.alpaca_eval.references if experiment.alpaca_eval else ()
  known = {row['instruction']: row for row in references}
  questions = [known.get(prompt, {'instruction': prompt}) for prompt in prompts]
  outputs = alpaca_eval.make_outputs(questions, said, name)
  alpaca_eval.write(folder / 'model_outputs.json', outputs)
  return said
