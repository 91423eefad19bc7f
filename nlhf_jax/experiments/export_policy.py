"""Trained policies as folders in the Hugging Face layout, for `transformers` and `peft`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nlhf_jax import distributed
from nlhf_jax.experiments.export_push import check_name, push
from nlhf_jax.experiments.language.config import check, make_experiment
from nlhf_jax.experiments.language.finished_run import load_entry
from nlhf_jax.experiments.model_card import FOLDER, make_card
from nlhf_jax.experiments.model_config import make_mesh
from nlhf_jax.experiments.policy_folder import write_policy
from nlhf_jax.storage import json_lines
from nlhf_jax.storage.draft_folders import draft_folder
from nlhf_jax.training import interrupts


class Export(NamedTuple):
  """What to write of a run, and where: `results` is None if the run has no tournament.

  With `merged`, an adapter is merged into the weights, instead of being written on its own. With
  `push`, the folder is also uploaded to the hub if that is `confirmed`, and its files are printed.
  """

  policy: str  # its name in the tournament
  to: Path
  merged: bool
  results: Mapping[str, Any] | None
  push: str = ''
  confirmed: bool = False


def start(config: ConfigDict, name: str, stages: Path, export: Export) -> None:
  """Writes a policy of a finished run to a folder, which is new or empty.

  Args:
    config: of the experiment.
    name: of the experiment.
    stages: the folder of its stages.
    export: the policy and the folder.

  Raises:
    UserError: if the policy is unknown or not trained, or the folder cannot be written.
  """
  if export.push:
    check_name(export.push)
  check(config)
  with draft_folder(export.to) as draft, interrupts.deferred(), make_mesh(config):
    experiment = make_experiment(config, name, stages)
    write_policy(experiment, load_entry(experiment, export.policy), draft, export.merged)
    adapter = bool(experiment.model.lora) and not export.merged
    if distributed.is_first():
      card = make_card(config, experiment, export.policy, adapter, export.results)
      if export.push:
        card = card.replace(FOLDER, f"folder = '{export.push}'")
      (draft / 'README.md').write_text(card)
  what = f'Adapter of {experiment.model.source.name}' if adapter else 'Model'
  print(f'\n{what}: {export.to}')
  if export.push and distributed.is_first():
    push(export.to, export.push, export.confirmed)


def read_results(config: ConfigDict, workdir: Path, policy: str) -> dict | None:
  """The results of the tournament of this config in a work directory, if it has the policy."""
  try:
    if json_lines.read_json(workdir / 'config.json') != json.loads(config.to_json()):
      return None
    results = json_lines.read_json(workdir / 'results.json')
  except (OSError, ValueError):
    return None
  return results if policy in results.get('policies', ()) else None
