"""The training methods by name: which candidates, and which direction from them."""

from collections.abc import Callable
from typing import NamedTuple

import ml_collections
import optax

import ddi_jax


class Method(NamedTuple):
  """How a method differs from the others; everything else is shared.

  Attributes:
    attacked: whether the candidates are adversarial; if not, the clean batch is the
      only one.
    restarts: whether there are `num_restarts` candidates rather than one.
    select_worst: whether they are reduced, per example, to the worst of them.
    direction: config -> the transformation from K gradients to one.
    proximal: whether the K candidates make one gradient, that of
      `ddi_jax.proximal_danskin_gradient`.
  """

  attacked: bool
  restarts: bool
  select_worst: bool
  direction: Callable[
    [ml_collections.ConfigDict], optax.GradientTransformationExtraArgs
  ]
  proximal: bool = False


def _first(config):
  return ddi_jax.first_restart_direction(normalize=config.unit_norm)


def _average(config):
  return ddi_jax.average_direction(normalize=config.unit_norm)


def _danskin(config):
  return ddi_jax.danskin_direction(normalize=config.unit_norm, **config.danskin)


def _mgda(config):
  return ddi_jax.mgda_direction(normalize=config.unit_norm, **config.mgda)


def _upgrad(config):
  return ddi_jax.upgrad_direction(normalize=config.unit_norm)


def _cagrad(config):
  return ddi_jax.cagrad_direction(normalize=config.unit_norm, **config.cagrad)


def _pcgrad(config):
  return ddi_jax.pcgrad_direction(normalize=config.unit_norm)


METHODS = {
  # No attack: ordinary training.
  "standard": Method(False, False, False, _first),
  # Adversarial training as in Madry et al. (2018).
  "pgd": Method(True, False, False, _first),
  # The mean of the K gradients: the control for danskin.
  "average": Method(True, True, False, _average),
  # Per example the worst of the K attacks, then one gradient.
  "worst_restart": Method(True, True, True, _first),
  # The minimum-norm combination of the K gradients (Latorre et al., 2023).
  "danskin": Method(True, True, False, _danskin),
  # The minimiser of the robust loss linearised per example (ddi_jax/proximal.py).
  "proximal": Method(True, True, False, _first, proximal=True),
  # Other aggregators of the same K gradients, see ddi_jax/aggregators.py.
  "mgda": Method(True, True, False, _mgda),
  "upgrad": Method(True, True, False, _upgrad),
  "cagrad": Method(True, True, False, _cagrad),
  "pcgrad": Method(True, True, False, _pcgrad),
}


def num_attacks(method: str, num_restarts: int) -> int:
  """How many attacks a step of the method makes (1 for `standard`'s clean batch)."""
  return num_restarts if METHODS[method].restarts else 1
