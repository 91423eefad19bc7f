"""The registry of judges agrees with the shipped configs."""

import importlib
from pathlib import Path

import pytest

from nlhf_jax.judges import registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT))
  return importlib.import_module('nlhf_jax.configs.base').get_config()


def test_names_are_unique():
  assert len({*registry.NAMES, 'oracle'}) == len(registry.TRAINED) + len(registry.EXTERNAL) + 1
  assert len(registry.BY_STAGE) == len(registry.TRAINED)


@pytest.mark.parametrize('kind', registry.TRAINED.values(), ids=lambda kind: kind.name)
def test_trained_judges_have_a_section(kind, config):
  assert config[kind.stage].algorithm == kind.algorithm


@pytest.mark.parametrize('kind', registry.EXTERNAL.values(), ids=lambda kind: kind.name)
def test_external_judges_have_their_section(kind, config):
  assert kind.section is None or kind.section in config


def test_only_the_reward_model_gives_rewards():
  assert [name for name in (*registry.NAMES, None) if registry.gives_rewards(name)] == ['reward']
