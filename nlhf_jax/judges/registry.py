"""All judges by name, except the oracle of the embedded task: one line each."""

from nlhf_jax.judges import gpm, learned, lengths, pairrm, remote, reward

TRAINED = {
  kind.name: kind
  for kind in (
    learned.KIND,
    reward.KIND,
    gpm.KIND,
  )
}
EXTERNAL = {
  kind.name: kind
  for kind in (
    lengths.KIND,
    pairrm.KIND,
    remote.KIND,
  )
}
NAMES = (*TRAINED, *EXTERNAL)
STAGES = {name: kind.stage for name, kind in TRAINED.items()}
BY_STAGE = {kind.stage: kind for kind in TRAINED.values()}


def gives_rewards(name: str | None) -> bool:
  """Whether policies learn from this judge's rewards, not from its probabilities."""
  return name in TRAINED and TRAINED[name].payoff == 'reward'
