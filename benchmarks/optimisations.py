"""Each thing done for speed against the program without it, in one run: predicted and measured.

python benchmarks/optimisations.py

The small model of `training.py` at batch 32, unless a line says otherwise. Both programs run in
turns, so that a slow hour slows both. Writes benchmarks/results/optimisations.json and the table of
benchmarks/NOTES.md.
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

from nlhf_jax.models import attention, scoring
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling import rollout, token
from nlhf_jax.structs import Prompts, Responses

ROOT = Path(__file__).parents[1]
RUNS = 3
BATCH = 32
POLICY, MIXTURE = {'policy': 1.0}, {'policy': 0.875, 'reference': 0.125}

Call = Callable[[], object]


class Case(NamedTuple):
  """A change: the seconds without it over those with it, as they should be, and what came of it."""

  what: str
  predicted: float
  why: str
  kept: str
  change: Call
  before: Call


class Setting(NamedTuple):
  """A model, two policies of it, and what they are asked."""

  decoder: object
  slots: dict
  prompts: Prompts
  stop: int

  def rollout(self, mixtures, length=64, count=1) -> Callable:
    """(prompts) -> responses."""
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
  """The module with other constants."""
  saved = {name: getattr(module, name) for name in values}
  for name, value in values.items():
    setattr(module, name, value)
  try:
    yield
  finally:
    for name, value in saved.items():
      setattr(module, name, value)


def under(module, call: Call, **values) -> Call:
  """The call, made with other constants of a module."""

  def changed():
    with patched(module, **values):
      return jax.block_until_ready(call())

  return changed


def of_rollouts() -> list[Case]:
  """What was done to sampling."""
  small, prompts = setting(), setting().prompts
  both, alone, mixture = (
    small.rollout(mixtures) for mixtures in ([POLICY, MIXTURE], [POLICY], [MIXTURE])
  )
  half = jax.tree.map(lambda leaf: leaf[: BATCH // 2], prompts)
  long, many = (partial(small.rollout([POLICY, MIXTURE], 256), half) for _ in range(2))
  ending = setting(vocab_size=128)
  uneven, even = (partial(ending.rollout([POLICY, MIXTURE], 256), ending.prompts) for _ in 'ab')
  few = jax.tree.map(lambda leaf: leaf[:8], prompts)
  repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, 8, axis=0), few)
  compiled = jax.jit(small.rollout([POLICY, MIXTURE]))
  hearing = small.rollout([POLICY | {'reference': 1e-9}, MIXTURE])  # a weight of zero is not read
  with patched(mixtures, drafts=lambda: 1):
    each = near(small).rollout([POLICY, MIXTURE])
  with patched(mixtures, drafts=lambda: 4):
    drafted = near(small).rollout([POLICY, MIXTURE])
  score = jax.jit(partial(scoring.log_probs, small.decoder))
  logits = jax.random.normal(jax.random.key(0), (2 * BATCH, 4096))

  def and_scored():
    left, _ = both(prompts)
    return score(small.slots['reference'], prompts, left)

  return [
    Case(
      'one loop for both sides',
      1.2,
      'prompts are read twice in place of three times, and a step costs its fixed part once',
      'kept',
      lambda: both(prompts),
      lambda: (alone(prompts), mixture(prompts)),
    ),
    Case(
      'caches that grow (16 prompts, 256 tokens)',
      1.3,
      'attention scans 148 places on average, not 255, and is half of a step',
      'kept',
      long,
      under(rollout, many, PLACES=1 << 20),
    ),
    Case(
      'done prompts left behind (256 tokens, of which one in 128 ends a response)',
      1.5,
      'a prompt lives to the end of the longer of two geometric lengths: 158 tokens of 256',
      'kept, on one device',
      uneven,
      under(rollout, even, PROMPTS=1 << 20),
    ),
    Case(
      'prompts read and kept once for 8 samples',
      1.3,
      'reading 64 prompts costs as much as a quarter of the decoding; 8 cost an eighth of that',
      'kept',
      partial(small.rollout([POLICY, MIXTURE], count=8), few),
      partial(small.rollout([POLICY, MIXTURE]), repeated),
    ),
    Case(
      'a loop that the host comes back to, against one in a single program',
      1.0,
      'two programs a rollout more, of microseconds; it is what lets prompts be left behind',
      'kept',
      lambda: both(prompts),
      lambda: compiled(prompts),
    ),
    Case(
      'a token by inverting sums of blocks, with its log-probability and entropy (64 rows)',
      2.0,
      'one random number a row in place of 4,096, and one pass of exponentials in place of three',
      'kept',
      partial(jax.jit(by_sums), jax.random.key(0), logits),
      partial(jax.jit(by_noise), jax.random.key(0), logits),
    ),
    Case(
      'log-probabilities of the reference heard while sampling, in place of a pass of its own',
      0.9,
      'a fourth stream decodes a token a row at about twice what reading all at once costs',
      'dropped: a twentieth of a step, and in bfloat16 another number than that of the pass',
      lambda: hearing(prompts),
      and_scored,
    ),
    Case(
      'the reference reads four drafts of the policy at once (a tenth of the way apart)',
      1.1,
      'four at once cost the reference half of four apart, and one in forty is drawn again',
      'dropped on a CPU; kept on accelerators, for the weights that are not read: not measured',
      lambda: drafted(prompts),
      lambda: each(prompts),
    ),
  ]


def near(apart: Setting) -> Setting:
  """The same with a reference a tenth of the way from the policy to where it was."""
  policy, reference = apart.slots['policy'], apart.slots['reference']
  mixed = jax.tree.map(lambda own, other: 0.9 * own + 0.1 * other, policy, reference)
  return apart._replace(slots={'policy': policy, 'reference': mixed})


def by_sums(key, logits):
  """As the rollout draws."""
  return token.draw(jax.random.uniform(key, logits.shape[:1]), logits)


def by_noise(key, logits):
  """As it is usually done."""
  log_p = jax.nn.log_softmax(logits)
  token = jax.random.categorical(key, logits)
  chosen = jnp.take_along_axis(log_p, token[:, None], axis=-1)[:, 0]
  return token, chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def by_softmax(query, key, value, sight, *, scale, cap):
  """`attend` as JAX has it."""
  del cap  # there is none
  return jax.nn.dot_product_attention(query, key, value, mask=sight.visible[:, None], scale=scale)


def of_updates() -> list[Case]:
  """What was done to the gradient of log-probabilities."""
  small = setting()
  tokens = jax.random.randint(jax.random.key(1), (BATCH, 1, 64), 0, small.stop)
  responses = Responses(tokens, jnp.ones(tokens.shape, bool))

  def gradient(log_probs):
    total = jax.grad(lambda params: jnp.sum(log_probs(params)))
    return jax.jit(total), small.slots['policy']

  def ours():
    return gradient(
      lambda params: scoring.log_probs(small.decoder, params, small.prompts, responses)
    )

  def everywhere(params):
    whole = jnp.concatenate([small.prompts.tokens, tokens[:, 0]], axis=1)
    hidden, _ = small.decoder.prefill(params, whole, jnp.ones(whole.shape, bool))
    log_p = jax.nn.log_softmax(small.decoder.logits(params, hidden[:, :-1]))
    return jnp.take_along_axis(log_p, whole[:, 1:, None], axis=-1)[:, -64:]

  def call(program, params):
    return lambda: jax.block_until_ready(program(params))

  return [
    Case(
      'logits at the responses only',
      1.25,
      'the head is a quarter of the operations at all places, an eighth at half of them',
      'kept',
      call(*ours()),
      call(*gradient(everywhere)),
    ),
    Case(
      'attention in blocks of queries',
      1.1,
      'three quarters of the logits of attention are made, which is a fifth of the time',
      'kept',
      call(*ours()),
      under(attention, call(*ours()), QUERY_BLOCK=1 << 20),
    ),
    Case(
      'attention divided by the sums of its weights once values are weighed (without blocks)',
      1.1,
      'the backward pass of softmax goes over all queries and keys once more '
      '(said after a first look)',
      'kept',
      under(attention, call(*ours()), QUERY_BLOCK=1 << 20),
      under(attention, call(*ours()), KERNELS={'xla': by_softmax}),
    ),
    Case(
      'logits an eighth at a time, made again in the backward pass',
      0.95,
      'a twentieth more operations, for an eighth of the memory',
      f'kept beyond {scoring.MAX_LOGITS:,} logits',
      under(scoring, call(*ours()), MAX_LOGITS=1 << 20),
      call(*ours()),
    ),
  ]


def compared(case: Case) -> dict:
  """Median seconds of both, taken in turns, after a run each that compiles."""
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
  """In Markdown."""
  lines = ['| what | times faster, predicted | why | measured (least to most) | |']
  lines.append('|---|---|---|---|---|')
  for row in found:
    measured = f'{row["measured"]:.2f} ({row["least"]:.2f} to {row["most"]:.2f})'
    lines.append(
      f'| {row["what"]} | {row["predicted"]:g} | {row["why"]} | {measured} | {row["kept"]} |'
    )
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Measures all cases, prints and keeps them."""
  cases = of_rollouts() + of_updates()
  found = [compared(case) for case in tqdm(cases, unit='case')]
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
