"""The benchmark of training at toy size, in bfloat16 as on a GPU."""

import json
import math
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
SMALL = dict(
  vocab_size=64,
  hidden_size=16,
  intermediate_size=16,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  max_position_embeddings=64,
  tie_word_embeddings=True,
)
JUDGE = dict(
  hidden_size=8,
  intermediate_size=8,
  num_hidden_layers=1,
  num_attention_heads=1,
  num_key_value_heads=1,
)


@pytest.fixture(scope='module')
def training():
  """`benchmarks/training.py`, as a module."""
  sys.path.insert(0, str(BENCHMARKS))
  import training

  yield training
  sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope='module')
def settings(training):
  return training.Settings(
    SMALL, 2, JUDGE, prompt_length=8, response_length=8, compute='bfloat16', runs=1
  )


@pytest.mark.slow
def test_every_part_is_timed_with_and_without_adapters(training, settings):
  found = training.ours(settings)
  parts = {'rollout', 'self-play rollout', 'judge', 'update', 'step'}
  trained = {'reward model', 'preference model'}
  assert found['parts'].keys() == parts | {f'{part} with LoRA' for part in parts} | trained
  assert all(0 < seconds < 60 for taken in found['parts'].values() for seconds in taken)
  assert found['programs'] > 0
  assert found['peak'] > 2**20


def test_operations_equal_a_count_by_hand(training):
  """One layer, width 4, one head of 4, hidden 8, 10 tokens; a prompt of 2, a response of 2."""
  tiny = JUDGE | dict(vocab_size=10, hidden_size=4, tie_word_embeddings=True)
  settings = training.Settings(tiny, 3, prompt_length=2, response_length=2)
  works = training.works(settings)
  layer, head = 4 * (4 + 4 + 4 + 4) + 3 * 4 * 8, 4 * 10
  reading = 2 * layer * 4 + 2 * head * 2 + 2 * 4 * 4**2
  assert works['update'].operations == 4 * 3 * reading
  streams, slots, keys = 3, 2, 2 * 2 + 2**2 / 2
  prompts = slots * 3 * (2 * layer * 2 + 2 * head + 2 * 4 * 2**2)
  tokens = streams * 3 * (2 * (layer + head) * 2 + 4 * 4 * keys)
  assert works['rollout'].operations == prompts + tokens
  assert works['rollout'].tokens == 2 * 3 * 2
  assert works['rollout'].bytes > works['self-play rollout'].bytes


def test_the_slower_of_compute_and_memory_limits(training):
  work = training.Work(operations=10.0, bytes=30.0)
  assert work.seconds({'matmul': 2.0, 'read': 10.0}) == 5.0
  assert work.seconds({'matmul': 20.0, 'read': 10.0}) == 3.0


def test_slope_is_the_exponent_of_a_power(training):
  import growth

  assert growth.slope({1: 1.0, 2: 7.0, 4: 28.0}) == pytest.approx(2)
  changed = growth.settings_at('width', 64)
  assert changed.model['hidden_size'] == 64
  assert math.isclose(changed.model['intermediate_size'], 688 / 4, rel_tol=0.05)
  assert growth.settings_at('response_length', 32).response_length == 32


def test_tables_of_memory_are_those_of_the_results(training):
  import memory

  found = json.loads(memory.RESULTS.read_text())
  assert {case.split(' on ')[0] for case in found} == set(memory.SIZES)
  assert memory.table(found) in (BENCHMARKS.parent / 'docs' / 'results.md').read_text()


def test_programs_do_not_grow_with_layers_or_devices(training):
  import program_growth

  axes = json.loads((program_growth.RESULTS / 'program_growth.json').read_text())['axes']
  assert axes['layers']['8']['text'] <= 1.02 * axes['layers']['4']['text']
  assert axes['layers']['32']['text'] <= 1.02 * axes['layers']['8']['text']
  assert axes['devices']['8']['update'] < axes['devices']['1']['update'] / 2


@pytest.mark.slow
def test_drafts_have_the_distribution_of_plain_decoding(training):
  import attention_kernels

  found = attention_kernels.check_drafts('float32')
  assert found['passed']
  assert found['responses'] > 50
