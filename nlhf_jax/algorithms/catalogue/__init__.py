"""Every algorithm, as a function of its arguments.

Letters are those of the papers: `tau` is the coefficient of KL(pi, mu), where mu is the reference,
in win probability per nat; `beta` scales a log-ratio; `eta` is explained by each algorithm. `every`
is the length of a round in updates.
"""

from nlhf_jax.algorithms.catalogue.offline_data import (
  apo_down,
  apo_zero,
  cdpo,
  chi_po,
  cpo,
  dpo,
  ipo,
  ipo_per_token,
  kto,
  orpo,
  preference_model,
  reward_model,
  robust_dpo,
  rpo_backward,
  rpo_forward,
  rpo_squared,
  rso,
  rso_hinge,
  sft,
  simpo,
  slic,
)
from nlhf_jax.algorithms.catalogue.online_pairs import (
  chi_self_play,
  egpo,
  ipo_md,
  oelhf,
  online_dpo,
  online_ipo,
  xpo,
)
from nlhf_jax.algorithms.catalogue.policy_gradients import (
  best_of_k,
  best_response,
  clipped_self_play,
  mpo,
  nash_ema_pg,
  nash_md_group,
  nash_md_pg,
  nash_prox,
  nash_rejection,
  psi_self_play,
  rlhf_pg,
  self_play,
  self_play_group,
  spo,
  standardised_self_play,
)
from nlhf_jax.algorithms.catalogue.rounds import (
  comal,
  dno,
  gpo,
  inpo,
  mnpo,
  omwu,
  onpo,
  rebel,
  rspo,
  spin,
  sppo,
  sppo_estimated,
  sppo_gated,
  sppo_pair,
  sppo_tempered,
)

# Name -> factory, in the order in which they are printed.
ALGORITHMS = {
  make.__name__: make
  for make in (
    *(
      sft,
      preference_model,
      reward_model,
      dpo,
      cdpo,
      robust_dpo,
      ipo,
      ipo_per_token,
      chi_po,
      rpo_squared,
      rpo_backward,
      rpo_forward,
      apo_zero,
      apo_down,
      orpo,
      cpo,
      slic,
      kto,
      simpo,
      rso,
      rso_hinge,
    ),
    *(nash_md_pg, self_play, best_response, rlhf_pg, nash_ema_pg, spo, mpo, nash_prox),
    *(nash_md_group, self_play_group, standardised_self_play, psi_self_play),
    *(clipped_self_play, nash_rejection, best_of_k),
    *(spin, sppo, sppo_estimated, sppo_pair, sppo_gated, sppo_tempered),
    *(gpo, rspo, rebel, dno, inpo, comal, mnpo, onpo, omwu),
    *(online_dpo, online_ipo, ipo_md, xpo, egpo, oelhf, chi_self_play),
  )
}
