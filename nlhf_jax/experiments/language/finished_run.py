"""Reads what a finished run trained: its SFT policy and its tournament entries."""

from nlhf_jax.errors import UserError
from nlhf_jax.experiments.specs import LanguageExperiment, entry_slots
from nlhf_jax.experiments.stages import load
from nlhf_jax.structs import Params


def find_entry(experiment: LanguageExperiment, entry: str) -> tuple[str, str]:
  """The stage of an entry, and its slot there.

  Raises:
    UserError: if there is no such entry.
  """
  slots = entry_slots(experiment.policies)
  if entry not in slots:
    raise UserError(f"the policy '{entry}' must be one of {', '.join(slots)}.")
  return slots[entry]


def load_reference(experiment: LanguageExperiment) -> Params:
  """The parameters of the SFT policy.

  Raises:
    UserError: if it is not trained.
  """
  model, stage = experiment.model, experiment.stages['sft']
  initial = model.begin(stage.key)
  return load(stage, experiment.sft, initial, model.trains)['policy']


def load_entry(experiment: LanguageExperiment, entry: str) -> Params:
  """The parameters of an entry of the tournament.

  Raises:
    UserError: if there is no such entry, or it is not trained.
  """
  name, slot = find_entry(experiment, entry)
  reference = load_reference(experiment)
  return reference if name == 'sft' else load_policy(experiment, name, reference)[slot]


def load_policy(experiment: LanguageExperiment, name: str, reference: Params) -> dict[str, Params]:
  """Slot -> parameters of a policy of the experiment, given those of the SFT policy.

  Raises:
    UserError: if the policy is not trained.
  """
  training, trains = experiment.policies[name].training, experiment.model.trains
  return load(experiment.stages[name], training, reference, trains)
