"""The threat models of a run: those of its attacks, and those of its evaluation."""

from collections.abc import Callable
from typing import Any

import ml_collections

import ddi_jax

THREAT_MODELS: dict[str, Callable[[Any], ddi_jax.ThreatModel]] = {
  "linf": ddi_jax.linf,
  "l2": ddi_jax.l2,
  "l1": ddi_jax.l1,
}
NORMS = tuple(THREAT_MODELS)


def evaluated_radii(config: ml_collections.ConfigDict) -> dict[str, float]:
  """Radii by norm of the threat models whose union the network is evaluated in."""
  if config.evaluation.norms:
    return {norm: config.radii[norm] for norm in config.evaluation.norms}
  return {config.attack.norm: config.attack.epsilon}


def step_size(settings: ml_collections.ConfigDict, epsilon: Any) -> Any:
  """The length of a PGD step: as set, else 2.5 epsilon / steps.

  Args:
    settings: `config.attack` or `config.evaluation`.
    epsilon: the radius.
  """
  if settings.step_size is not None:
    return settings.step_size
  return 2.5 * epsilon / settings.steps
