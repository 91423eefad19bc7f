"""Trackers: what they get, that they fail without harm, and each of them offline."""

import contextlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import optax
import pytest
from tensorboardX.proto.event_pb2 import Event

from nlhf_jax.errors import UserError
from nlhf_jax.training import dashboards, optimizers
from nlhf_jax.training.trackers import Metrics, read_curve

VALUES = {
  'loss': 0.5,
  'samples': 'prompt: <b>2 + 2?</b>\nresponse: four',
  'lengths': np.array([3, 4, 4, 9]),
}
RECORD = {'stage': 'sft', 'step': 2, 'loss': 0.5}


def write_curve(folder, tracker, steps=(2,)):
  with dashboards.chosen(tracker), contextlib.closing(Metrics(folder, 'sft', 0)) as metrics:
    for step in steps:
      metrics.write(step, VALUES)


def read_events(folder):
  """The events of TensorBoard in a folder: each is framed by its length and two checksums."""
  (path,) = folder.glob('events.out.tfevents.*')
  data = path.read_bytes()
  while data:
    (size,) = struct.unpack('<Q', data[:8])
    yield Event.FromString(data[12 : 12 + size])
    data = data[16 + size :]


def test_tensorboard_has_numbers_samples_and_histograms_without_the_stage(tmp_path):
  write_curve(tmp_path, 'tensorboard')
  found = {
    it.tag: (event.step, it) for event in read_events(tmp_path) for it in event.summary.value
  }
  assert found.keys() == {'loss', 'samples/text_summary', 'lengths'}
  assert {step for step, _ in found.values()} == {2}
  assert found['loss'][1].simple_value == 0.5
  text = found['samples/text_summary'][1].tensor.string_val[0].decode()
  assert text == '    prompt: <b>2 + 2?</b>\n    response: four'  # code, in which nothing is markup
  assert found['lengths'][1].histo.num == 4


def test_without_a_tracker_only_the_curve_is_written(tmp_path):
  write_curve(tmp_path, 'none')
  assert read_curve(tmp_path) == [RECORD]
  assert not list(tmp_path.glob('events*'))


@pytest.mark.parametrize('place', ['open', 'log', 'close'])
def test_a_tracker_that_fails_loses_nothing(place, tmp_path, monkeypatch, capsys):
  def fail(at):
    if place == at:
      raise RuntimeError('no route to host')

  class Failing:
    def log(self, step, values):
      fail('log')

  @contextlib.contextmanager
  def open_failing(folder, first):
    fail('open')
    yield Failing()
    fail('close')

  monkeypatch.setitem(dashboards.TRACKERS, 'none', open_failing)
  write_curve(tmp_path, 'none', steps=(2, 4))
  assert read_curve(tmp_path) == [RECORD, RECORD | {'step': 4}]
  message = '--tracker=none failed (no route to host); training goes on without it.'
  assert capsys.readouterr().out.splitlines() == [message]


def test_a_missing_package_is_one_sentence(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  sentence = r"^--tracker=wandb: its package .*; install it with pip install '\.\[wandb\]' in a "
  with pytest.raises(UserError, match=sentence), dashboards.chosen('wandb'):
    pass


def test_an_unknown_tracker_is_refused():
  choices = "--tracker='mlflow' must be one of none, tensorboard, wandb, trackio."
  with pytest.raises(UserError, match=choices), dashboards.chosen('mlflow'):
    pass


SCRIPT = """
import sys
from pathlib import Path
from tests.training.test_dashboards import write_curve
write_curve(Path(sys.argv[2]), sys.argv[1], steps=(2, 4))
"""


@pytest.mark.slow
@pytest.mark.parametrize('name', ['wandb', 'trackio'])
def test_services_work_offline(name, tmp_path):
  if importlib.util.find_spec(name) is None:
    pytest.skip(f'the package {name} is not installed')
  folder, store = tmp_path / 'sft-1234', tmp_path / 'store'
  folder.mkdir()
  here = {'WANDB_MODE': 'offline', 'TRACKIO_DIR': str(store), 'HOME': str(tmp_path)}
  ended = subprocess.run(
    [sys.executable, '-c', SCRIPT, name, str(folder)],
    cwd=Path(__file__).parents[2],
    env=os.environ | here,
    capture_output=True,
    text=True,
    check=True,
  )
  assert 'failed' not in ended.stdout, ended.stdout
  assert [record['step'] for record in read_curve(folder)] == [2, 4]
  kept = folder if name == 'wandb' else store
  written = b''.join(path.read_bytes() for path in kept.rglob('*') if path.is_file())
  for expected in (b'sft-1234', b'loss', b'lengths', b'samples'):
    assert expected in written


@pytest.mark.parametrize(('steps', 'warmup'), [(40, 10), (40, 0), (5, 10), (1, 0)])
def test_the_learning_rate_is_that_of_the_optimiser(steps, warmup):
  options = {'b1': 0.0, 'b2': 0.9, 'decay': 0.0, 'clip': 1.0, 'rounding': 'nearest'}
  optimizer = optimizers.make_optimizer('rmsprop', 0.5, steps, warmup=warmup, **options)
  state = optimizer.init({'w': np.zeros(1, np.float32)})
  assert optimizers.updates_taken(state) == 0
  rise = optax.linear_schedule(0.0, 0.5, min(warmup, steps))
  fall = optax.linear_schedule(0.5, 0.05, steps - min(warmup, steps))
  schedule = optax.join_schedules([rise, fall], [min(warmup, steps)])
  for update in range(steps + 1):
    rate = optimizers.learning_rate_at(update, 0.5, steps, warmup)
    assert rate == pytest.approx(float(schedule(update)), rel=1e-5), update


def test_a_run_records_rates_and_compilation(toy_run):
  for path in sorted(toy_run.folder.glob('stages/*/metrics.jsonl')):
    *_, last = map(json.loads, path.read_text().splitlines())
    assert last['learning_rate'] > 0
    assert 0 < last['stage_programs'] <= last['compiled_programs']
    assert last['compile_seconds'] > 0
    note = json.loads((path.parent / 'stage.json').read_text())
    assert note['compiled_programs'] >= last['stage_programs']
    assert 'samples' not in last
