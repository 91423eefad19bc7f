"""KTO: winners and losers as separate examples."""

from nlhf_jax.configs import base

get_config = base.trains(kto=base.offline('kto', beta=0.1, desirable=1.0, undesirable=1.0))
