"""Nash-MD on a pretrained model with a judge of your own: own_judge.py FOLDER_OR_HUB_NAME."""

import sys

import jax
import optax

import nlhf_jax as nlhf

PROMPTS = ['What is a game?', 'What is a judge?', 'What is a policy?', 'What is a mixture?']


def shorter(prompts, left, right):  # P(left is preferred); ties count 1/2, as both orders are used
  return [len(a) < len(b) for a, b in zip(left, right, strict=True)]


model = nlhf.from_pretrained(sys.argv[1], lora_rank=8)
judge = nlhf.judges.from_function(shorter)
algorithm = nlhf.algorithms.nash_md_pg(beta=0.1, tau=0.01)
train = nlhf.make_train_step(model, algorithm, judge, optax.adamw(1e-3), response_length=16)
state = train.init(jax.random.key(0))
for step in range(10):
  state, metrics = train(state, PROMPTS, jax.random.key(step))
  print(f'step {step}: {metrics["response_length"]:.1f} tokens, payoff {metrics["payoff"]:+.3f}')
print(nlhf.generate(model, state.slots['policy'], PROMPTS[:1], length=16))
