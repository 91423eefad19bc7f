"""Memory plans need no devices: persistent memory is exact, and excess is reported."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from nlhf_jax import plan

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
  (slots, optimizer, kept, update, rollout, peak), message = needs(
    config, '--devices=4', '--config.mesh.fsdp=4', '--config.mesh.data=1', '--memory=0.0001'
  )
  layer = 4 * 64 * 64 + 3 * 64 * 128
  a_slot = 4 * (512 * 64 + 6 * layer) / 4 / 1e6  # megabytes in float32, a quarter on each device
  assert slots == pytest.approx(2 * a_slot, abs=0.02)  # policy and reference
  assert optimizer == pytest.approx(a_slot, abs=0.02)  # b1=0 stores no first moment
  assert kept == pytest.approx(a_slot, abs=0.02)  # the judge
  assert peak == pytest.approx(slots + optimizer + kept + max(update, rollout), abs=0.05)
  assert 'fsdp=4' in message
  assert 'does NOT fit' in message
  assert '--config.model.compute=bfloat16' in message


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


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config=configs/tabular.py'], 'trains no policies'),
    (['--config=configs/nash_md.py', '--devices=many'], '--devices is a whole number'),
    (['--config=configs/nash_md.py', '--memory=0'], '--memory above 0'),
  ],
)
def test_user_errors_print_one_line(arguments, message, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  assert plan.main(['plan', *arguments]) == 2
  assert message in capsys.readouterr().err
