"""Nash-MD-PG without a preference model: the oracle casts one vote on every pair."""

from nlhf_jax.configs import base

get_config = base.trains(
  nash_md_model_free=base.policy(
    'nash_md_pg', beta=0.125, tau=0.06, judge='oracle', feedback='vote'
  )
)
