"""Players of whatever origin: what they say, and their networks where something is left to ask."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from nlhf_jax.build.evaluate import Experiment, Filed, Player, Pretrained, digest
from nlhf_jax.evaluation import alpaca_eval, files
from nlhf_jax.evaluation.mt_bench import Respond
from nlhf_jax.evaluation.speaking import make_respond
from nlhf_jax.experiments.export import of_player, slot_of
from nlhf_jax.models.transformer import Decoder
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
  params, own = of_player(experiment, player.player), experiment.model
  return Model(own.decoder, params, experiment.corpus.tokenizer, own.sizes.longest)


def key_of(experiment: Experiment, player: Player) -> str:
  """A digest of all that determines what a player that is asked says, but for the questions."""
  if isinstance(player, Pretrained):
    own = player.settings
  else:
    policy, slot = slot_of(player.experiment, player.player)
    own = [player.experiment.stages[policy].folder.name, slot]
  return digest([own, experiment.seed, experiment.length, experiment.batch, experiment.filters])


def once(path: Path, key: str, make: Callable[[], Sequence[Mapping]]) -> list[dict]:
  """The rows of a file; they are made unless they are there, made under the same key.

  The key lies in a file beside it.
  """
  note = path.with_name(f'.{path.name}.key')
  if not (path.is_file() and note.is_file() and note.read_text() == key):
    rows = make()
    note.unlink(missing_ok=True)
    (files.write_list if path.suffix == '.json' else files.write_lines)(path, rows)
    note.write_text(key)
  return files.read(path)


def of_model(experiment: Experiment, model: Model, label: str) -> Respond:
  """A model that is spoken to, batch by batch; conversations of like length come together.

  Raises:
    Interrupted: by the function, between batches, if the user asked to stop.
  """
  respond = make_respond(
    model.decoder,
    model.params,
    model.tokenizer,
    length=experiment.length,
    longest=model.longest,
    batch=experiment.batch,
    filters=experiment.filters,
  )

  def speak(conversations, temperature, seed):
    lengths = [sum(len(turn['content']) for turn in turns) for turns in conversations]
    order, said = np.argsort(lengths, kind='stable'), [''] * len(lengths)
    with tqdm(total=len(order), desc=label, unit='prompt', mininterval=0.5) as bar:
      for number, start in enumerate(range(0, len(order), experiment.batch)):
        interrupts.check(label)
        rows = order[start : start + experiment.batch]
        # No two batches of a run draw alike, nor those of two seeds.
        of_batch = int(np.random.SeedSequence([experiment.seed, seed, number]).generate_state(1)[0])
        texts = respond([conversations[row] for row in rows], temperature, of_batch)
        for row, text in zip(rows, texts, strict=True):
          said[row] = text
        bar.update(len(rows))
    return said

  return speak


def respond(experiment: Experiment, name: str, load: Load | None, folder: Path) -> list[str]:
  """A player's responses to the prompts, which are left in the folder as `model_outputs.json`."""
  player, prompts, path = (
    experiment.players[name],
    experiment.prompts,
    folder / 'model_outputs.json',
  )
  datasets = experiment.alpaca_eval.references if experiment.alpaca_eval else ()
  known = {row['instruction']: row for row in datasets}
  questions = [known.get(prompt, {'instruction': prompt}) for prompt in prompts]

  def make():
    talks = [[{'role': 'user', 'content': prompt}] for prompt in prompts]
    speak = of_model(experiment, load(), f'{name} responds')
    said = speak(talks, experiment.filters.temperature, 0)
    return alpaca_eval.make_outputs(questions, said, name)

  if isinstance(player, Filed):
    said = [player.responses[prompt] for prompt in prompts]
    alpaca_eval.write(path, alpaca_eval.make_outputs(questions, said, name))
    return said
  key = digest([key_of(experiment, player), list(prompts), name])
  return [row['output'] for row in once(path, key, make)]
