"""Algorithms on a language-model game small enough to enumerate, against its exact equilibrium.

nlhf run --config=token_game
"""

from ml_collections import ConfigDict

from nlhf_jax.configs import base


def playing(algorithm, *, steps, evaluate_every, **arguments):
  """The training of an algorithm of the catalogue."""
  return base.training(
    algorithm,
    steps=steps,
    batch=320,
    learning_rate=3e-3,
    evaluate_every=evaluate_every,
    b1=0.0,  # momentum would orbit a cycle
    b2=0.95,
    warmup=10,
    **arguments,
  )


def method(algorithm, solver, *, updates=100, steps=1_000, arguments, **tabular):
  """An algorithm judged by the true preferences, and the tabular solver to compare it with."""
  training = playing(algorithm, steps=steps, evaluate_every=50, **arguments)
  return dict(training=training, tabular=dict(solver=solver, updates=updates, arguments=tabular))


def learner(algorithm, **arguments):
  """An algorithm judged by an estimate from the votes so far; a round is 60 updates."""
  row = playing(algorithm, steps=600, evaluate_every=60, **arguments)
  # Votes are on pairs that the algorithm selects (none), or on a response and the one of some
  # candidates that the enhancer chooses (best_of_n, uncertain). One-shot learning has all of its
  # votes before the first update.
  row.update(enhancer='none', candidates=4, one_shot=False)
  return row


def get_config():
  config = ConfigDict(
    dict(
      experiment='token_game',
      seed=0,
      tau=0.05,
      target=0.01,  # the exploitability that counts as solved
      game=dict(
        symbols=3, response_length=3, prompts=5, raters=30, styles=1.0, quality=0.3, taste=0.3
      ),
      model=dict(
        width=32, layers=1, heads=4, key_heads=2, head_size=8, hidden=64, rotary_base=10_000.0
      ),
      # Scale of its embeddings; the smaller, the closer the reference is to uniform.
      reference=dict(scale=0.5),
      methods=ConfigDict(sort_keys=False),
      # Each round starts with votes on `batches` batches; `ridge` is a prior, in votes for a tie.
      votes=dict(batches=5, ridge=1.0, learners=ConfigDict(sort_keys=False)),
    ),
    sort_keys=False,
  )
  tau = config.get_ref('tau')  # one KL coefficient everywhere
  beta, rate, eta, every, steps = 0.05, 0.1, 0.2, 50, 1_000
  config.methods.update(
    nash_md_pg=method('nash_md_pg', 'nash_md', pull=beta, arguments=dict(beta=beta, tau=tau)),
    online_ipo=method('online_ipo', 'self_play', eta=1.0, arguments=dict(tau=tau)),
    inpo=method(
      'inpo',
      'inpo',
      eta=eta,
      updates=steps // every,  # a round is one update of the ideal algorithm
      steps=steps,
      arguments=dict(tau=tau, eta=eta, every=every),
    ),
    egpo=method(
      'egpo',
      'extragradient',
      eta=0.9,
      steps=1_500,  # every second step moves the policy
      arguments=dict(tau=tau, temperature=1.5),
    ),
    # An update of the solver corresponds to steps / 100 steps of training, in which the average
    # moves by this rate.
    nash_ema_pg=method(
      'nash_ema_pg',
      'nash_ema',
      eta=1.0,
      rate=1 - (1 - rate) ** (steps / 100),
      steps=steps,
      arguments=dict(rate=rate, tau=tau),
    ),
    # Nash-MD with pull 1 plays against the reference; the tabular `best_response`, against itself.
    best_response=method('best_response', 'nash_md', pull=1.0, arguments=dict(tau=tau)),
  )
  config.votes.learners.update(
    oelhf=learner('oelhf', tau=tau, candidates=4),
    online_ipo=learner('online_ipo', tau=tau),
    nash_md_pg=learner('nash_md_pg', beta=beta, tau=tau),
  )
  return config
