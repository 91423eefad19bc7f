"""Toy evaluations, for the tests of policies and of benchmarks."""

import importlib
import json

from nlhf_jax.experiments.start import start


def make_config(toy, *source, **changed):
  """The config of an evaluation, small; `toy` is the fixture that shrinks models and data."""
  config = toy(importlib.import_module('nlhf_jax.configs.evaluate').get_config(*source))
  config.tournament.update(prompts=1_024, length=6, batch=8)
  config.update(changed)
  return config


def run(config, workdir, stages=None):
  """The contents of `results.json` after a run in `workdir`."""
  start(config, 'evaluate', workdir, stages or workdir / 'stages')
  return json.loads((workdir / 'results.json').read_text())
