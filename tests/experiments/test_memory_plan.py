"""Memory plans need no devices: persistent memory is exact, and excess is reported."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from nlhf_jax import command, plan
from nlhf_jax.errors import UserError
from nlhf_jax.experiments import memory_plan, program_memory
from nlhf_jax.experiments.memory_advice import print_advice
from nlhf_jax.experiments.memory_limits import check_language
from tests import conftest

ROOT = Path(__file__).parents[2]
SMALL = ['--config.data.response_length=8', '--config.policies.online_ipo.batch=8']

V3 = dict(
  relative_attention=True,
  position_buckets=256,
  share_att_key=True,
  pos_att_type='p2c|c2p',
  norm_rel_ebd='layer_norm',
  position_biased_input=False,
  type_vocab_size=0,
)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """The folder of a model that has a config only, no weights."""
  folder = tmp_path_factory.mktemp('planned')
  transformers.LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=8,
    max_position_embeddings=256,
    tie_word_embeddings=True,
  ).save_pretrained(folder)
  return folder


def needs(config, *more):
  """The memory use of online IPO in megabytes, and the printed output."""
  command = [sys.executable, '-m', 'nlhf_jax.plan', '--config=configs/online_ipo.py', *SMALL, *more]
  command += [f'--config.model.hf={config}']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  row = re.search(r'^ +online_ipo +(.*)$', done.stdout, re.MULTILINE)[1].split()
  return [1e3 * float(number) for number in row[:6]], done.stdout


@pytest.mark.slow
def test_persistent_memory_is_exact_and_excess_gets_advice(config):
  mesh = ['--devices=4', '--config.mesh.fsdp=4', '--config.mesh.data=1']
  (slots, optimizer, kept, update, rollout, peak), _ = needs(config, *mesh)
  layer = 4 * 64 * 64 + 3 * 64 * 128
  a_slot = 4 * (512 * 64 + 6 * layer) / 4 / 1e6  # megabytes in float32, a quarter on each device
  assert slots == pytest.approx(2 * a_slot, abs=0.02)  # policy and reference
  assert optimizer == pytest.approx(a_slot, abs=0.02)  # b1=0 stores no first moment
  assert kept == pytest.approx(a_slot, abs=0.02)  # the judge
  assert peak == pytest.approx(slots + optimizer + kept + max(update, rollout), abs=0.05)
  memory = f'--memory={0.95e-3 * peak}'
  _, message = needs(config, *mesh, memory)
  assert 'fsdp=4' in message
  assert 'does NOT fit' in message
  (advice,) = re.findall(r'with:\n  (.*)$', message, re.MULTILINE)
  assert '--config.model.compute=bfloat16' in advice
  _, message = needs(config, *mesh, memory, *advice.split())
  assert 'does NOT fit' not in message


@pytest.mark.slow
def test_advised_settings_reduce_memory(config):
  before, _ = needs(config, '--devices=1')
  after, _ = needs(
    config,
    '--devices=1',
    '--config.model.remat=layers',
    '--config.model.lora.rank=2',
    '--config.policies.online_ipo.accumulate=2',
    '--config.policies.online_ipo.batch=4',
  )
  shares = [low / high for low, high in zip(after, before, strict=True)]
  # A rollout holds the layers' weights once more, one by one, whatever the batch is.
  for share, most in zip(shares, (0.6, 0.1, 0.1, 0.5, 0.85, 0.6), strict=True):
    assert share < most


@pytest.mark.slow
def test_published_judge_is_counted_from_its_config(config, tmp_path):
  sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
  message = transformers.DebertaV2Config(vocab_size=1024, **sizes, **V3).to_dict()
  (tmp_path / 'config.json').write_text(json.dumps(message | {'n_tasks': 1}))
  of_pairrm = [f'--config.pairrm.hf={tmp_path}', '--config.policies.online_ipo.judge=pairrm']
  (_, _, kept, *_), _ = needs(config, '--devices=1', '--config.judges=pairrm', *of_pairrm)
  layer = 4 * (64 * 64 + 64) + 2 * 64 * 128 + 128 + 64 + 4 * 64  # attention, hidden units, norms
  encoder = 1024 * 64 + 2 * 64 + 512 * 64 + 2 * 64 + 2 * layer
  head = 2 * 64 * 64 + 64 + 64 + 1
  assert kept == pytest.approx(4 * (encoder + head) / 1e6, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('depth', 'meshes'),
  [
    (16, ['8,1,1,replicated', '2,2,2,tensor']),
    pytest.param(32, ['1,8,1,gathered', '1,1,8,gathered'], marks=pytest.mark.full),
  ],
)
def test_plans_are_what_steps_need(depth, meshes):
  flags = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
  program = subprocess.run(
    [sys.executable, '-m', 'tests.experiments.planned_steps', *[f'{m},{depth}' for m in meshes]],
    env=os.environ | {'XLA_FLAGS': f'{conftest.FLAGS} {flags}'},
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert program.returncode == 0, program.stderr[-3000:]
  found = [case for line in program.stdout.splitlines() for case in json.loads(line).items()]
  assert len(found) == len(meshes)
  for name, case in found:
    for part, planned in case['planned'].items():
      assert planned == pytest.approx(case['measured'][part], rel=0.05), (name, part)
    assert case['planned']['rollout'] >= case['hand'], name


@pytest.mark.slow
def test_programs_are_compiled_for_tpus(config):
  pytest.importorskip('libtpu')
  small = [f'--topology=v5e:{chips}' for chips in ('2x2', '1x1')]
  for topology in small:
    (slots, _, _, update, rollout, peak), message = needs(
      config, topology, '--config.model.compute=bfloat16'
    )
    assert slots < peak
    assert update > 0
    assert rollout > 0
    assert 'of 16.91 GB' in message
  # 16 GB do not hold the logits of a batch.
  *_, message = needs(
    config, small[1], '--config.policies.online_ipo.batch=16384', '--config.data.prompt_length=128'
  )
  assert 'the compiler refuses a program of the update' in message
  assert 'does NOT fit' in message


# --- Without a compiler ---


def test_the_error_of_the_tpu_compiler_is_read():
  message = (
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory '
    'required for HLO temporaries (256.00G) exceeds available HBM (15.75G). HLO module: jit_f.'
  )
  assert program_memory.read_excess(message) == (256 * 2**30, int(15.75 * 2**30))
  assert program_memory.read_excess('RESOURCE_EXHAUSTED: out of quota') is None


def test_served_policies_have_no_rollout(monkeypatch):
  served = command.load_config('nash_md')
  served.judges = served.policies.self_play.judge = 'lengths'
  monkeypatch.setattr(program_memory, 'measure_update', lambda *_: 3)
  monkeypatch.setattr(program_memory, 'measure_rollout', lambda *_: 5)
  machine = memory_plan.Machine((), 1, 80e9)
  assert memory_plan.make_plan(served, 'self_play', machine).use[-2:] == (3, 5)
  served.policies.self_play.sampler = 'server'
  assert memory_plan.make_plan(served, 'self_play', machine).use[-2:] == (3, 0)


def test_pairs_of_the_best_of_n_are_counted(monkeypatch):
  planned = command.load_config('nash_md')
  planned.tournament.update(best_of=4, batch=64)
  judged = []
  monkeypatch.setattr(program_memory, 'measure_rollout', lambda *_: 5)
  monkeypatch.setattr(
    program_memory, 'measure_judging', lambda _, *sizes: judged.append(sizes) or 7
  )
  use = memory_plan.make_plan(planned, 'best_of_4', memory_plan.Machine((), 1, 80e9)).use
  data = planned.data
  # 16 prompts at once, all ordered pairs of the four; each row has both responses.
  assert judged == [(16 * 4 * 4, data.prompt_length + 2 * (data.response_length + 1))]
  assert use.rollout == 7
  assert use.kept == 3 * use.slots  # the judge and two policies
  planned.tournament.update(best_of=2**20, batch=2**20)
  with pytest.raises(UserError, match='all pairs of candidates'):
    check_language(planned)


def fake_plan(needs):
  """A `make_plan` whose peak is `needs(config)`, and that remembers what it was asked for."""

  def make_plan(config, name, machine, lasting=False):
    made.append(config)
    use = memory_plan.MemoryUse(1, 0, 0, 0 if lasting else needs(config) - 1, 0)
    return memory_plan.Plan(use, ())

  made = []
  return make_plan, made


def test_advice_was_tried_and_fits(capsys):
  config, machine = command.load_config('nash_md'), memory_plan.Machine((), 8, 10)

  def needs(config):
    shared = config.mesh.fsdp * config.policies.nash_md.accumulate
    return 100 // shared // (2 if config.model.compute == 'bfloat16' else 1)

  make_plan, made = fake_plan(needs)
  print_advice(config, 'nash_md', machine, make_plan)
  printed = capsys.readouterr().out
  expected = '--config.mesh.data=0 --config.mesh.fsdp=8 --config.model.compute=bfloat16'
  assert printed.splitlines()[-1].strip() == expected
  assert 'fits, at' in printed
  assert needs(made[-1]) <= machine.memory
  assert config.mesh.fsdp == 1  # the config itself is not changed


def test_no_advice_without_settings_that_fit(capsys):
  config, machine = command.load_config('nash_md'), memory_plan.Machine((), 8, 10)
  make_plan, _ = fake_plan(lambda config: 1000)
  print_advice(config, 'nash_md', machine, make_plan)
  printed = capsys.readouterr().out
  assert 'needs more devices, more memory or a smaller model' in printed
  assert '--config' not in printed


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config=configs/tabular.py'], 'trains no policies'),
    (['--config=configs/nash_md.py', '--devices=many'], '--devices is a whole number'),
    (['--config=configs/nash_md.py', '--memory=0'], '--memory above 0'),
    (['--config=configs/nash_md.py', '--topology=v5e:2x2', '--devices=4'], 'leave --devices out'),
    (['--config=configs/nash_md.py', '--topology=v5e:2x2'], "pip install '.[tpu]'"),
  ],
)
def test_user_errors_print_one_line(arguments, message, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  assert plan.main(['plan', *arguments]) == 2
  assert message in capsys.readouterr().err
