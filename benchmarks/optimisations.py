"""Speed of each optimisation against the program without it: predicted and measured.

python benchmarks/optimisations.py

The small model of `training.py` at batch 32, unless a line gives other sizes. Both programs run
alternately, so that other load slows both. Writes benchmarks/results/optimisations.json and the
table of benchmarks/NOTES.md.
"""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import environments
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm
from training import MODELS, architecture

from nlhf_jax.models import attention, products, scoring
from nlhf_jax.models.blocks import Numerics
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import rollout, sampler, token
from nlhf_jax.structs import Prompts, Responses

ROOT = Path(__file__).parents[1]
RUNS = 3
BATCH = 32
HALF = Numerics(compute=jnp.bfloat16)
POLICY, MIXTURE = {'policy': 1.0}, {'policy': 0.875, 'reference': 0.125}

Call = Callable[[], object]


class Case(NamedTuple):
  """A change: the predicted seconds without it over those with it, the reason, and the decision."""

  what: str
  predicted: float
  why: str
  kept: str
  change: Call
  before: Call


class Setting(NamedTuple):
  """A model, two slots of parameters, and prompts."""

  decoder: object
  slots: dict
  prompts: Prompts
  stop: int

  def rollout(self, mixtures, length=64, count=1) -> Callable:
    """A function (prompts) -> responses."""
    sample = rollout.make_rollout(
      self.decoder, mixtures, length=length, stop=self.stop, count=count
    )
    return lambda prompts: sample(self.slots, prompts, jax.random.key(0))


def setting(batch: int = BATCH, **changes) -> Setting:
  """Random models of the small size, and random prompts of 64 tokens."""
  fields = MODELS['small'] | changes
  decoder = make_decoder(architecture(fields))
  init = jax.jit(decoder.init)
  slots = {'policy': init(jax.random.key(0)), 'reference': init(jax.random.key(1))}
  stop = fields['vocab_size'] - 1
  tokens = np.random.default_rng(0).integers(stop, size=(batch, 64))
  prompts = Prompts(jnp.asarray(tokens, jnp.int32), jnp.ones(tokens.shape, bool))
  return Setting(decoder, slots, prompts, stop)


@contextlib.contextmanager
def patched(module, **values) -> Iterator[None]:
  """Replaces constants of a module inside the context."""
  saved = {name: getattr(module, name) for name in values}
  for name, value in values.items():
    setattr(module, name, value)
  try:
    yield
  finally:
    for name, value in saved.items():
      setattr(module, name, value)


def call_patched(module, call: Call, **values) -> Call:
  """A call that is made with other constants of a module."""

  def changed():
    with patched(module, **values):
      return jax.block_until_ready(call())

  return changed


def loop_cases(small: Setting) -> list[Case]:
  """Optimisations of the loop that samples."""
  prompts = small.prompts
  both, alone, mixture = (
    small.rollout(mixtures) for mixtures in ([POLICY, MIXTURE], [POLICY], [MIXTURE])
  )
  half = jax.tree.map(lambda leaf: leaf[: BATCH // 2], prompts)
  growing = partial(small.rollout([POLICY, MIXTURE], 256), half)
  with patched(sampler, FIRST_ROOM=1 << 20):
    full_size = partial(small.rollout([POLICY, MIXTURE], 256), half)
  ending = setting(vocab_size=128)
  compacted = partial(ending.rollout([POLICY, MIXTURE], 256), ending.prompts)
  with patched(sampler, MIN_BATCH=1 << 20):
    uncompacted = partial(ending.rollout([POLICY, MIXTURE], 256), ending.prompts)
  few = jax.tree.map(lambda leaf: leaf[:8], prompts)
  repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, 8, axis=0), few)
  compiled = jax.jit(small.rollout([POLICY, MIXTURE]))
  return [
    Case(
      'one loop for both sides',
      1.2,
      'two prefills in place of three, and one fixed cost a step in place of two',
      'kept',
      lambda: both(prompts),
      lambda: (alone(prompts), mixture(prompts)),
    ),
    Case(
      'caches that grow (16 prompts, 256 tokens)',
      1.3,
      'attention scans 148 columns on average in place of 255, and is half of a step',
      'kept',
      growing,
      full_size,
    ),
    Case(
      'finished prompts compacted away (256 tokens, of which one in 128 ends a response)',
      1.5,
      'a prompt is finished after the longer of two geometric lengths: 158 tokens of 256',
      'kept, on one device',
      compacted,
      uncompacted,
    ),
    Case(
      'prompts prefilled and cached once for 8 samples',
      1.3,
      'prefill of 64 prompts costs a quarter of the decoding; that of 8 an eighth of that',
      'kept',
      partial(small.rollout([POLICY, MIXTURE], count=8), few),
      partial(small.rollout([POLICY, MIXTURE]), repeated),
    ),
    Case(
      'a loop that returns to the host, against one in a single program',
      1.0,
      'two more programs a rollout, of microseconds; compaction needs it',
      'kept',
      lambda: both(prompts),
      lambda: compiled(prompts),
    ),
  ]


def token_cases(small: Setting) -> list[Case]:
  """Optimisations of a step of the loop."""
  prompts, both = small.prompts, small.rollout([POLICY, MIXTURE])
  # A member of weight zero would be left out.
  with_reference = small.rollout([POLICY | {'reference': 1e-9}, MIXTURE])
  with patched(sampler, default_draft_length=lambda: 1):
    one_by_one = near(small).rollout([POLICY, MIXTURE])
  with patched(sampler, default_draft_length=lambda: 4):
    drafted = near(small).rollout([POLICY, MIXTURE])
  score = jax.jit(partial(scoring.log_probs, small.decoder))
  logits = jax.random.normal(jax.random.key(0), (2 * BATCH, 4096))

  def sample_then_score():
    left, _ = both(prompts)
    return score(small.slots['reference'], prompts, left)

  return [
    Case(
      'sampling a token by inverting block sums, with log-probability and entropy (64 rows)',
      2.0,
      'one random number a row in place of 4,096, and one pass of exponentials in place of three',
      'kept',
      partial(jax.jit(sample_by_sums), jax.random.key(0), logits),
      partial(jax.jit(sample_by_noise), jax.random.key(0), logits),
    ),
    Case(
      'log-probabilities of the reference during sampling, in place of a separate pass',
      0.9,
      'decoding a fourth row costs about twice as much as scoring all tokens at once',
      'dropped: a twentieth of a step, and in bfloat16 the numbers differ from those of the pass',
      lambda: with_reference(prompts),
      sample_then_score,
    ),
    Case(
      'the reference checks four drafted tokens at once (a tenth of the way apart)',
      1.1,
      'four at once cost the reference half of four in turn, and one in forty is rejected',
      'dropped on a CPU; kept on accelerators, where it saves reading weights: not measured',
      lambda: drafted(prompts),
      lambda: one_by_one(prompts),
    ),
  ]


def near(apart: Setting) -> Setting:
  """The setting with a reference a tenth of the way from the policy to the old reference."""
  policy, reference = apart.slots['policy'], apart.slots['reference']
  mixed = jax.tree.map(lambda own, other: 0.9 * own + 0.1 * other, policy, reference)
  return apart._replace(slots={'policy': policy, 'reference': mixed})


def sample_by_sums(key, logits):
  """Sampling as in the rollout."""
  return token.sample_token(jax.random.uniform(key, logits.shape[:1]), logits)


def sample_by_noise(key, logits):
  """Sampling by `jax.random.categorical`."""
  log_p = jax.nn.log_softmax(logits)
  token = jax.random.categorical(key, logits)
  chosen = jnp.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]
  return token, chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def attend_by_softmax(query, key, value, mask, *, scale, cap):
  """`attend` by JAX's own function."""
  del cap  # None
  return jax.nn.dot_product_attention(query, key, value, mask=mask.visible[:, None], scale=scale)


def update_cases(small: Setting) -> list[Case]:
  """Optimisations of the gradient of log-probabilities."""
  tokens = jax.random.randint(jax.random.key(1), (BATCH, 1, 64), 0, small.stop)
  responses = Responses(tokens, jnp.ones(tokens.shape, bool))

  def gradient(log_probs):
    total = jax.grad(lambda params: jnp.sum(log_probs(params)))
    return jax.jit(total), small.slots['policy']

  def ours():
    return gradient(
      lambda params: scoring.log_probs(small.decoder, params, small.prompts, responses)
    )

  def all_log_probs(params):
    whole = jnp.concatenate([small.prompts.tokens, tokens[:, 0]], axis=1)
    hidden, _ = small.decoder.prefill(params, whole, jnp.ones(whole.shape, bool))
    log_p = jax.nn.log_softmax(small.decoder.logits(params, hidden[:, :-1]))
    return jnp.take_along_axis(log_p, whole[:, 1:, None], axis=-1)[:, -64:]

  def call(program, params):
    return lambda: jax.block_until_ready(program(params))

  return [
    Case(
      'logits at response tokens only',
      1.25,
      'the head is a quarter of the operations at all tokens, an eighth at half of them',
      'kept',
      call(*ours()),
      call(*gradient(all_log_probs)),
    ),
    Case(
      'attention in blocks of queries',
      1.1,
      'three quarters of the attention logits are computed, which take a fifth of the time',
      'kept',
      call(*ours()),
      call_patched(attention, call(*ours()), QUERY_BLOCK=1 << 20),
    ),
    Case(
      'attention divided by the sum of exponentials after the product (without blocks)',
      1.1,
      'the backward pass of softmax passes over all queries and keys once more '
      '(written after a first measurement)',
      'kept',
      call_patched(attention, call(*ours()), QUERY_BLOCK=1 << 20),
      call_patched(attention, call(*ours()), KERNELS={'xla': attend_by_softmax}),
    ),
    Case(
      'logits an eighth at a time, recomputed in the backward pass',
      0.95,
      'a twentieth more operations, for an eighth of the memory',
      f'kept beyond {scoring.MAX_LOGITS:,} logits',
      call_patched(scoring, call(*ours()), MAX_LOGITS=1 << 20),
      call(*ours()),
    ),
  ]


def product_cases(small: Setting) -> list[Case]:
  """Optimisations of products of activations and weights."""
  half = small._replace(decoder=make_decoder(architecture(MODELS['small']), HALF))
  tokens = jax.random.randint(jax.random.key(1), (BATCH, 1, 64), 0, small.stop)
  responses = Responses(tokens, jnp.ones(tokens.shape, bool))

  def gradient():
    def total(params):
      return jnp.sum(scoring.log_probs(half.decoder, params, small.prompts, responses))

    program = jax.jit(jax.grad(total))
    return lambda: jax.block_until_ready(program(small.slots['policy']))

  return [
    Case(
      'products of bfloat16 that return float32, on a CPU (gradient of log-probabilities)',
      2.0,
      'alone they take half as long, where the processor has instructions for bfloat16',
      'kept',
      gradient(),
      call_patched(products, gradient(), multiply=multiply_in_half),
    ),
  ]


def multiply_in_half(x, y, axes, dtype):
  """`products.multiply` without products that return float32."""
  numbers = (((axes[0],), (axes[1],)), ((), ()))
  return jax.lax.dot_general(x, y, numbers, preferred_element_type=dtype)


def compare(case: Case) -> dict:
  """Median seconds of both programs, run alternately after compilation."""
  seconds = {'change': [], 'before': []}
  for number in range(RUNS + 1):
    for name, taken in seconds.items():
      start = time.perf_counter()
      jax.block_until_ready(getattr(case, name)())
      if number:
        taken.append(time.perf_counter() - start)
  medians = {name: statistics.median(taken) for name, taken in seconds.items()}
  ratios = [b / a for a, b in zip(seconds['change'], seconds['before'], strict=True)]
  return {
    'what': case.what,
    'why': case.why,
    'predicted': case.predicted,
    'kept': case.kept,
    **{f'seconds_{name}': value for name, value in medians.items()},
    'measured': medians['before'] / medians['change'],
    'least': min(ratios),
    'most': max(ratios),
  }


def table(found: list[dict]) -> str:
  """The results as a Markdown table."""
  lines = ['| what | times faster, predicted | why | measured (least to most) | |']
  lines.append('|---|---|---|---|---|')
  for row in found:
    measured = f'{row["measured"]:.2f} ({row["least"]:.2f} to {row["most"]:.2f})'
    lines.append(
      f'| {row["what"]} | {row["predicted"]:g} | {row["why"]} | {measured} | {row["kept"]} |'
    )
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Measures all cases, and prints and writes the results."""
  small = setting()
  cases = loop_cases(small) + token_cases(small) + update_cases(small) + product_cases(small)
  found = [compare(case) for case in tqdm(cases, unit='case')]
  results = {'machine': environments.machine(), 'cases': found}
  (ROOT / 'benchmarks' / 'results' / 'optimisations.json').write_text(
    json.dumps(results, indent=2) + '\n'
  )
  notes = ROOT / 'benchmarks' / 'NOTES.md'
  before, _, rest = notes.read_text().partition('<!-- table -->\n')
  _, _, after = rest.partition('<!-- end -->\n')
  notes.write_text(f'{before}<!-- table -->\n{table(found)}<!-- end -->\n{after}')
  print(table(found))


if __name__ == '__main__':
  sys.exit(main())
