"""Exploitability of transformers trained on conversations in which they may ask, beside the oracle.

python benchmarks/clarify.py

The task of `nlhf_jax/tasks/clarify.py` with two posts, of which one hints at nothing and one nearly
names its fact; three seeds of the reference. Self-play on whole conversations is measured every 100
steps; what learning one turn at a time ends at is computed exactly. All at the same tau. Writes
benchmarks/results/clarify.json.
"""

import json
from functools import partial
from pathlib import Path

import environments
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax.algorithms import catalogue
from nlhf_jax.games import dialogues, turn_by_turn
from nlhf_jax.models import architectures, scoring
from nlhf_jax.models.transformer import make_decoder
from nlhf_jax.sampling.dialogue_rollout import Dialogue, Replies, make_dialogue_rollout
from nlhf_jax.structs import Prompts
from nlhf_jax.tasks import clarify
from nlhf_jax.training.rollout_step import make_rollout_step
from nlhf_jax.training.update import initial_state, make_update

RESULTS = Path(__file__).parent / 'results'
TASK = clarify.make_clarify_task(np.array([[0.25] * 4, [0.85, 0.05, 0.05, 0.05]]))
SEEDS, STEPS, EVERY, BATCH, TAU = 3, 500, 100, 256, 0.03
ALGORITHM = catalogue.self_play(TAU)
DECODER = make_decoder(
  architectures.small(
    TASK.vocabulary, 32, layers=1, heads=4, key_heads=2, head_size=8, hidden=64, rotary_base=1e4
  )
)


def tell(prompts, responses, key):
  """The user: tells the fact to whoever asks, and ends the conversation otherwise."""
  post = np.asarray(prompts.tokens)[:, -1] - TASK.ask - 1
  chances = np.cumsum(TASK.facts[post], axis=-1)[:, None]
  uniform = np.asarray(jax.random.uniform(key, responses.tokens.shape[:2]))[..., None]
  told = np.sum(chances[..., :-1] <= uniform, axis=-1)
  asked = responses.tokens[..., 0] == TASK.ask
  return Replies(told[..., None], asked.astype(int), ~asked)


@jax.jit
def read_policy(params):
  """The policy of every post, as tables."""
  count, posts = TASK.facts.shape[1], TASK.posts.tokens[:, 0]
  shape = len(posts), count
  columns = np.broadcast_arrays(posts[:, None], TASK.ask, np.arange(count))
  tokens = jnp.asarray(np.stack(columns, axis=-1).reshape(-1, 3))
  hidden, _ = DECODER.prefill(params, tokens, jnp.ones_like(tokens, bool))
  log_pi = jax.nn.log_softmax(DECODER.logits(params, hidden)).reshape(*shape, 3, -1)
  return [
    clarify.clarify_policy(TASK, log_pi[post, 0, 0], log_pi[post, :, 2])
    for post in range(len(posts))
  ]


def games_of(reference):
  """The game of every post, for parameters of the reference."""
  tables = read_policy(reference)
  return [clarify.clarify_game(TASK, post, table, TAU) for post, table in enumerate(tables)]


measure = jax.jit(
  lambda games, tables: [
    dialogues.dialogue_exploitability(game, log_pi)
    for game, log_pi in zip(games, tables, strict=True)
  ]
)


def train(seed: int) -> dict:
  """Self-play from the reference of a seed, and the oracle."""
  reference = DECODER.init(jax.random.key(seed))
  games = games_of(reference)
  rollout = partial(make_dialogue_rollout, DECODER, dialogue=Dialogue(tell, 2, 1), length=1, stop=0)
  feedback = lambda comparison, key: clarify.clarify_judge(TASK, comparison)
  play = make_rollout_step(ALGORITHM, rollout, feedback)
  optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS), b1=0.0)
  score = scoring.make_score(DECODER)
  update = make_update(ALGORITHM, score, optimizer, lambda *_: {}, rollout_step=play)
  state = initial_state(ALGORITHM, reference, optimizer)
  prompts = Prompts(*(np.tile(leaf, (BATCH // len(TASK.facts), 1)) for leaf in TASK.posts))
  curve = []
  for step in range(STEPS + 1):
    if step % EVERY == 0:
      tables = read_policy(state.slots['policy'])
      curve.append([float(gap) for gap in measure(games, tables)])
    if step < STEPS:
      key = jax.random.fold_in(jax.random.key(1000 + seed), step)
      state, _ = update(state, prompts, key)
  return {
    'steps': list(range(0, STEPS + 1, EVERY)),
    'whole conversations': curve,
    'asks': [float(jnp.exp(log_pi[0][0, TASK.ask])) for log_pi in tables],
    **solve(games),
  }


def solve(games) -> dict:
  """Exactly: how often the equilibrium asks, and what learning turn by turn ends at."""

  def equilibrium(game):
    step = lambda _, log_pi: dialogues.mtpo_step(game, log_pi, 1.0)
    return jax.lax.fori_loop(0, 1500, step, game.log_reference)

  found = {'equilibrium': [], 'same prefix': [], 'myopic': [], 'equilibrium asks': []}
  solvers = {
    'equilibrium': jax.jit(equilibrium),
    'same prefix': jax.jit(turn_by_turn.solve_same_prefix),
    'myopic': jax.jit(turn_by_turn.solve_myopic),
  }
  for game in games:
    for name, solver in solvers.items():
      log_pi = solver(game)
      found[name].append(float(dialogues.dialogue_exploitability(game, log_pi)))
      if name == 'equilibrium':
        found['equilibrium asks'].append(float(jnp.exp(log_pi[0][0, TASK.ask])))
  return found


def main() -> None:
  """Trains on every seed, prints a line of each, and writes the curves."""
  runs = []
  for seed in range(SEEDS):
    runs.append(train(seed))
    last = {name: runs[-1][name] for name in ('equilibrium', 'same prefix', 'myopic')}
    print(seed, runs[-1]['whole conversations'][0], runs[-1]['whole conversations'][-1], last)
    print(' asks', runs[-1]['asks'], 'at the equilibrium', runs[-1]['equilibrium asks'], flush=True)
  found = {
    'machine': environments.machine(),
    'command': 'python benchmarks/clarify.py',
    'tau': TAU,
    'posts': TASK.facts.tolist(),
    'seeds': runs,
  }
  (RESULTS / 'clarify.json').write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  main()
