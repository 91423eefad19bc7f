"""Checks on an accelerator: attention kernels against their definition, drafts against none.

python benchmarks/attention_kernels.py [--compute bfloat16]

Writes benchmarks/results/attention_kernels.json; the status is 1 if a check fails. On a CPU, which
has one kernel of attention only, drafts alone are checked and nothing is written.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import environments
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from timing import timed

from nlhf_jax.models import architectures, attention
from nlhf_jax.models.blocks import Numerics
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import rollout, sampler
from nlhf_jax.sampling.token import UNFILTERED
from nlhf_jax.structs import Prompts

RESULTS = Path(__file__).parent / 'results'
SHAPES = ((4, 512, 32, 8, 64), (8, 128, 9, 3, 64), (2, 2048, 8, 8, 128))  # rows, tokens, heads, ...
TOLERANCE = {'bfloat16': 2e-2, 'float32': 2e-3}  # of the largest difference, over the largest value
MIXTURE = ({'policy': 0.875, 'reference': 0.125},)
VOCABULARY, LENGTH, ROWS = 6, 3, 1 << 15


def check_attention(shape: tuple[int, ...], compute: str) -> dict:
  """The chosen kernel against XLA's: largest relative difference, and seconds of both.

  Args:
    shape: rows, tokens, heads, key heads, size of a head.
    compute: type of the arrays.
  """
  rows, length, heads, groups, size = shape
  keys = jax.random.split(jax.random.key(0), 4)
  query, key, value, weight = (
    jax.random.normal(it, (rows, length, count, size), compute)
    for it, count in zip(keys, (heads, groups, groups, heads), strict=True)
  )
  real = jnp.arange(length) >= jnp.arange(rows)[:, None]  # padding at the front
  visible = real[:, None, :] & jnp.tri(length, dtype=bool)
  # Rows that see nothing differ by definition; their queries are padding.
  mask = attention.AttentionMask(visible | jnp.eye(length, dtype=bool), real)
  name = attention.choose_kernel(attention.platform(), query, None)
  found = {'shape': shape, 'kernel': name}
  results = {}
  for kernel in dict.fromkeys((name, 'xla')):
    attend = partial(attention.KERNELS[kernel], mask=mask, scale=size**-0.5, cap=None)

    def loss(*arrays, attend=attend):
      out = jnp.where(real[..., None, None], attend(*arrays), 0)
      return jnp.sum((out * weight).astype(jnp.float32)), out

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, out), gradients = run(query, key, value)
    results[kernel] = [np.asarray(leaf, np.float32) for leaf in (out, *gradients)]
    found[f'{kernel} s'] = min(timed(lambda run=run: run(query, key, value), 5))
  found['difference'] = max(
    float(np.max(np.abs(one - other)) / np.max(np.abs(other)))
    for one, other in zip(results[name], results['xla'], strict=True)
  )
  return found | {'passed': found['difference'] <= TOLERANCE[compute]}


def check_drafts(compute: str) -> dict:
  """Whether responses with and without drafts have one distribution, by a chi-square test."""
  sizes = architectures.small(VOCABULARY, 32, 2, 4, 2, 8, 64, 10_000.0)
  decoder = make_decoder(sizes, Numerics(compute, compute))
  slots = {
    name: jax.jit(decoder.init)(jax.random.key(number))
    for number, name in enumerate(('policy', 'reference'))
  }
  prompts = jnp.ones((ROWS, 2), jnp.int32)
  prompts = Prompts(prompts, jnp.ones_like(prompts, bool))
  plain = sampler.make_sampler(decoder, MIXTURE, LENGTH, VOCABULARY - 1, 1, UNFILTERED)
  counts = []
  for number, draft_length in enumerate((1, 2)):
    (sampled,) = rollout.rollout(
      plain._replace(draft_length=draft_length), slots, prompts, jax.random.key(9 + number)
    )
    tokens = np.asarray(jnp.where(sampled.mask, sampled.tokens, VOCABULARY - 1))[:, 0]
    codes = tokens @ VOCABULARY ** np.arange(LENGTH)
    counts.append(np.bincount(codes, minlength=VOCABULARY**LENGTH))
  counts = np.array(counts)
  common = counts.sum(axis=0) >= 20
  table = np.concatenate([counts[:, common], counts[:, ~common].sum(axis=1, keepdims=True)], axis=1)
  p = float(stats.chi2_contingency(table[:, table.sum(axis=0) > 0]).pvalue)
  return {'responses': int(common.sum()), 'p': p, 'passed': p > 1e-4}


def main() -> int:
  """Runs and stores all checks."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--compute', choices=list(TOLERANCE), default='bfloat16')
  compute, machine = parser.parse_args().compute, environments.machine()
  shapes = SHAPES if jax.default_backend() != 'cpu' else ()
  found = {
    'machine': machine,
    'compute': compute,
    'attention': [check_attention(shape, compute) for shape in shapes],
    'drafts': check_drafts(compute),
  }
  text = json.dumps(found, indent=2)
  print(text)
  if shapes:
    (RESULTS / 'attention_kernels.json').write_text(text + '\n')
  return int(not all(check['passed'] for check in (*found['attention'], found['drafts'])))


if __name__ == '__main__':
  sys.exit(main())
