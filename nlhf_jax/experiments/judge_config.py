"""Reads the sections of a config that belong to judges."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nlhf_jax.judges.kinds import ExternalJudge, ExternalKind
from nlhf_jax.judges.registry import BY_STAGE, EXTERNAL
from nlhf_jax.structs import Params
from nlhf_jax.training import interrupts


def make_external(config: ConfigDict, name: str, folder: Path) -> Callable[[], ExternalJudge]:
  """A function that makes an external judge, which may store files in the folder."""
  kind = EXTERNAL[name]
  return partial(kind.make, read_section(config, kind), folder, interrupts.requested)


def external_settings(config: ConfigDict, name: str) -> object:
  """The settings that determine the verdicts of an external judge, as plain data.

  Raises:
    UserError: if a setting cannot be used.
  """
  kind = EXTERNAL[name]
  return kind.settings(read_section(config, kind))


def external_shapes(config: ConfigDict, name: str) -> Params | None:
  """The shapes of the parameters of an external judge, if it has any."""
  kind = EXTERNAL[name]
  return kind.shapes(read_section(config, kind)) if kind.shapes else None


def read_section(config: ConfigDict, kind: ExternalKind) -> Mapping[str, Any]:
  """The settings of an external judge, empty if it has none."""
  return config[kind.section].to_dict() if kind.section else {}


def network_sections(config: ConfigDict) -> dict[str, Mapping[str, Any]]:
  """Stage -> settings of the judge that it trains."""
  return {stage: config[stage].to_dict() for stage in BY_STAGE}
