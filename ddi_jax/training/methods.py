"""The training methods by name: which candidates, and which direction from them."""

from collections.abc import Callable
from typing import NamedTuple

import optax

import ddi_jax


class Method(NamedTuple):
  """How a method differs from the others; everything else is shared.

  Attributes:
    attacked: whether the candidates are adversarial; if not, the clean batch is the
      only one.
    restarts: whether there are `num_restarts` candidates rather than one.
    select_worst: whether they are reduced, per example, to the worst of them.
    direction: (normalize) -> the transformation from K gradients to one.
  """

  attacked: bool
  restarts: bool
  select_worst: bool
  direction: Callable[..., optax.GradientTransformationExtraArgs]


METHODS = {
  # No attack: ordinary training.
  "standard": Method(False, False, False, ddi_jax.first_restart_direction),
  # Adversarial training as in Madry et al. (2018).
  "pgd": Method(True, False, False, ddi_jax.first_restart_direction),
  # The mean of the K gradients: the control for danskin.
  "average": Method(True, True, False, ddi_jax.average_direction),
  # Per example the worst of the K attacks, then one gradient.
  "worst_restart": Method(True, True, True, ddi_jax.first_restart_direction),
  # The minimum-norm combination of the K gradients (Latorre et al., 2023).
  "danskin": Method(True, True, False, ddi_jax.danskin_direction),
}


def num_candidates(method: str, num_restarts: int) -> int:
  """How many attacks a step of the method makes (1 for `standard`'s clean batch)."""
  return num_restarts if METHODS[method].restarts else 1
