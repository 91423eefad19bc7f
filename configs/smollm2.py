"""SmolLM2-135M-Instruct: Nash-MD and its rivals on AlpacaEval's judgements, with adapters.

`make real` fetches the model and the data. Judges are general preference models: one that policies
learn from, and one that is held apart and only evaluates. Every policy that samples has as many
responses judged at each step: sixteen.
"""

from ml_collections import ConfigDict

from nlhf_jax.configs import base

MODEL = '.cache/smollm2/model.gguf'
DATA = '.cache/smollm2/comparisons.jsonl,.cache/smollm2/prompts.jsonl'


def policy(algorithm, *, batch=8, judge='gpm', **arguments):
  """A policy of forty steps, at a rate for adapters."""
  row = base.policy(
    algorithm, steps=40, batch=batch, learning_rate=3e-4, b1=0.9, judge=judge, **arguments
  )
  row.update(evaluate_every=10)
  return row


def get_config(part=''):
  """The whole experiment, or a part of it.

  The part `judges` trains three kinds of judges on all comparisons, and compares them. `start` is
  Nash-MD alone, to measure how a run starts.
  """
  if part not in ('', 'judges', 'start'):
    raise ValueError(f"there is no part '{part}'; leave it out, or use judges or start.")
  config = base.get_config('file')
  # The weights in the file have 4 bits; adapters are trained in float32.
  config.model.update(hf=MODEL, compute='bfloat16', weights='bfloat16', remat='layers')
  config.model.lora.update(rank=16, alpha=32.0)
  config.data.update(
    path=DATA,
    schema='graded,prompts',
    skip_bad=True,
    prompt_length=96,
    response_length=64,
    held_out=0.37,
  )
  config.sft.steps = 0  # the model follows instructions already
  for judge in (config.general_preference_model, config.reward_model, config.preference_model):
    judge.update(steps=100, batch=8, evaluate_every=100)
    judge.optimizer.learning_rate = 3e-4
  config.general_preference_model.scale = 0.1
  config.update(judges='gpm', held_apart='gpm', unfinished='loses')
  if part == 'judges':
    config.update(experiment='judges', judges='learned,reward,gpm', held_apart='')
    config.sizes = ConfigDict({'SmolLM2-135M': {}})
    config.tests = dict(path='', schema='comparisons', split='', skip_bad=False)
    return config
  config.curves.prompts = 16
  config.tournament.update(prompts=256, batch=32, best_of=8, best_of_judge='gpm')
  config.policies.update(
    nash_md=policy('nash_md_pg', beta=0.125, tau=0.05),
    self_play=policy('self_play', tau=0.05),
    # Other seeds: the random numbers of a policy depend on its name.
    nash_md_again=policy('nash_md_pg', beta=0.125, tau=0.05),
    self_play_again=policy('self_play', tau=0.05),
    nash_ema=policy('nash_ema_pg', rate=0.05, tau=0.05),
    online_ipo=policy('online_ipo', tau=0.05),
    sppo=policy('sppo', batch=4, eta=5.0, samples=4, every=10, log_z=0.5),
    dpo=policy('dpo', beta=0.1),
    rlhf=policy('rlhf_pg', tau=0.5, judge='reward'),
  )
  if part == 'start':
    config.update(judges='lengths', held_apart='')
    config.policies = {'nash_md': policy('nash_md_pg', beta=0.125, tau=0.05, judge='lengths')}
    config.tournament.update(prompts=32, best_of=0)  # which would need a judge
    return config
  config.exploiter = base.exploiter(
    'best_response',
    exploited='nash_md, sft',
    steps=40,
    batch=8,
    learning_rate=3e-4,
    b1=0.9,
    warmup=10,
    evaluate_every=40,
    tau=0.0,
  )
  return config
