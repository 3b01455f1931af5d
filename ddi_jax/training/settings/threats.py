"""The threat models of a run, for its attacks and for its evaluation."""

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
  """The radii, by norm, of the threat models in whose union the run is evaluated."""
  if config.evaluation.norms:
    return {norm: config.radii[norm] for norm in config.evaluation.norms}
  return {config.attack.norm: config.attack.epsilon}


def step_size(settings: ml_collections.ConfigDict, epsilon: Any) -> Any:
  """The step size of PGD: the setting, or 2.5 epsilon / steps if it is None.

  Args:
    settings: `config.attack` or `config.evaluation`.
    epsilon: the radius.
  """
  if settings.step_size is not None:
    return settings.step_size
  return 2.5 * epsilon / settings.steps
