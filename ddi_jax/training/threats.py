"""The threat models of a run: those of its attacks, and those that judge it."""

import ml_collections

import ddi_jax

THREAT_MODELS = {"linf": ddi_jax.linf, "l2": ddi_jax.l2, "l1": ddi_jax.l1}
NORMS = tuple(THREAT_MODELS)


def judged_radii(config: ml_collections.ConfigDict) -> dict[str, float]:
  """Radii by norm of the threat models whose union the network is judged in."""
  if config.evaluation.norms:
    return {norm: config.radii[norm] for norm in config.evaluation.norms}
  return {config.attack.norm: config.attack.epsilon}
