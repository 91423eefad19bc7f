"""chi-PO: DPO for the price KL + chi^2 / 2, which limits what is gained beyond the data."""

from nlhf_jax.configs import base

get_config = base.trains(chi_po=base.offline('chi_po', beta=0.1, r_max=5.0))
