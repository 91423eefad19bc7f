"""The paper's comparison on the embedded task: all policies against each other, and exploiters.

The 14 policies of table 1 of arXiv 2312.00886 under its names (`ema1_average` is its EMA1*; every
run has SFT), related algorithms, and two that learn from the oracle, which separates the error of
an algorithm from that of its judge.
"""

from nlhf_jax.configs import base, dpo, egpo, inpo, ipo, online_ipo, rlhf, sppo

TAU = 0.06
BETAS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
RATES = (0.02, 0.005)  # weight of the current policy; the paper has a tenth, in 30 times the steps


def get_config(source='synthetic'):
  if source != 'synthetic':
    raise ValueError('the comparison needs the oracle of the embedded task; leave the source out.')
  config = base.get_config()
  config.policies.update(rlhf.get_config().policies)
  config.policies.sp = base.policy('self_play', tau=TAU)
  for number, beta in enumerate(BETAS, 1):
    config.policies[f'md{number}'] = base.policy('nash_md_pg', beta=beta, tau=TAU)
  config.policies.br = base.policy('best_response', tau=TAU)
  for number, rate in enumerate(RATES, 1):
    both = dict(entries='policy, average', tau=TAU)
    config.policies[f'ema{number}'] = base.policy('nash_ema_pg', rate=rate, **both)
  for neighbour in (dpo, ipo, sppo, online_ipo, inpo, egpo):
    config.policies.update(neighbour.get_config().policies)
  config.policies.sp_oracle = base.policy('self_play', judge='oracle', tau=TAU)
  config.policies.md1_oracle = base.policy('nash_md_pg', judge='oracle', beta=BETAS[0], tau=TAU)
  config.exploiter = base.exploiter(
    'best_response',
    steps=200,
    batch=32,
    learning_rate=1e-3,
    evaluate_every=200,
    b1=0.0,
    b2=0.95,
    warmup=10,
    tau=0.0,
  )
  return config
