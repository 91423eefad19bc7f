"""External judges in two processes of two devices each: same verdicts, one sends requests."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax.judges import pairrm_scoring
from nlhf_jax.models import pairrm_encoder as networks
from tests.judges import faults, published

pytest.importorskip('openai', reason='the remote judge needs the extra remote')

ROOT = Path(__file__).parents[2]
PROMPTS = ['why is it bad?', 'is the cat on the mat?', 'how', 'why', 'is it good']
LEFT = ['it is very very good!', 'no', 'no. ' * 40, 'yes ' * 30, 'bad']
RIGHT = ['bad', 'no, the cat is not on the mat', 'a b c', 'very good ' * 25, 'it is the cat']
PROGRAM = """
import json, sys
from pathlib import Path
import jax
from nlhf_jax import distributed
cluster, folder, url, texts = sys.argv[1:]
jax.config.update('jax_num_cpu_devices', 2)
distributed.join(cluster)
from nlhf_jax.models import pairrm_encoder as networks, sharding
from nlhf_jax.judges import pairrm_scoring
from nlhf_jax.judges.endpoint import Endpoint
from nlhf_jax.judges.remote import make_remote_judge
from nlhf_jax.judges.judge_prompts import SUMMARIES
folder, texts = Path(folder), json.loads(texts)
with jax.set_mesh(sharding.make_mesh(2, 2, 1)):
  ranker, params, lengths = networks.load_ranker(folder)
  parts = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)}
  split = not params['encoder']['embed']['embedding'].is_fully_replicated
  vocabulary = pairrm_scoring.read_vocabulary(folder, len(params['encoder']['embed']['embedding']))
  logits = pairrm_scoring.make_score(ranker, params, lengths, vocabulary, 4)(*texts)
  judge = make_remote_judge(Endpoint(url, 'm', '', folder / 'answers.sqlite', retries=0), SUMMARIES)
  preference = judge.preference(*texts)
found = [sorted(parts), split, logits.tolist(), preference.tolist(), judge.counts().get('asked', 0)]
print(json.dumps(found), file=sys.stderr)
"""


def alone(folder):
  """The logits in one process with one device."""
  ranker, params, lengths = networks.load_ranker(folder)
  size = len(params['encoder']['embed']['embedding'])
  vocabulary = pairrm_scoring.read_vocabulary(folder, size)
  return pairrm_scoring.make_score(ranker, params, lengths, vocabulary, 4)(PROMPTS, LEFT, RIGHT)


def test_two_processes_agree_with_one(tmp_path):
  published.save(tmp_path, 'port')
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'

  def behave(content, before):
    left, right = (text.partition(' - ')[2] for text in content.split('\n\n')[2:4])
    return faults.Reply(faults.completion('1' if len(left) > len(right) else '2'))

  with faults.serve(behave) as served:
    rest = [str(tmp_path), served.url, json.dumps([PROMPTS, LEFT, RIGHT])]
    programs = [
      subprocess.Popen(
        [sys.executable, '-c', PROGRAM, f'{address},2,{number}', *rest],
        cwd=ROOT,
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo'},
        stderr=subprocess.PIPE,
        text=True,
      )
      for number in range(2)
    ]
    expected, found = alone(tmp_path), []
    for program in programs:
      _, errors = program.communicate(timeout=500)
      assert program.returncode == 0, errors
      found.append(json.loads(errors.splitlines()[-1]))
  longer = [
    float(len(left.rstrip()) > len(right.rstrip())) for left, right in zip(LEFT, RIGHT, strict=True)
  ]
  for parts, split, logits, preference, _ in found:
    assert (parts, split) == ([4], True)  # on all devices, and the largest tensor in parts
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert preference == longer
  assert [asked for *_, asked in found] == [len(PROMPTS), 0]
  assert len(served.seen) == len(PROMPTS)
