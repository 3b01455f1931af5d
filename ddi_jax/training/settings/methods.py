"""The training methods by name: their candidates, and their update directions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections
import optax

import ddi_jax
from ddi_jax.training.settings import pieces

OWN_SETTINGS = "method_settings"


class Method(NamedTuple):
  """The choices in which methods differ; everything else is shared.

  Attributes:
    attacked: whether the candidates are adversarial.  If not, the clean batch is the
      only candidate.
    restarts: whether there are `num_restarts` candidates rather than one.
    select_worst: whether only the candidate with the greatest loss is kept for each
      example.
    direction: makes the transformation from K gradients to one.  None if the direction
      is computed from the candidates (`ddi_jax.proximal_danskin_gradient`).
    group: the config group with the method's settings, None if it has none.
  """

  attacked: bool
  restarts: bool
  select_worst: bool
  direction: Callable[..., optax.GradientTransformationExtraArgs] | None
  group: str | None = None

  @property
  def proximal(self) -> bool:
    """Whether the direction is computed from the candidates, without K gradients."""
    return self.direction is None

  @property
  def can_normalize(self) -> bool:
    """Whether `config.unit_norm` applies to this method; not all user methods do."""
    return self.direction is None or pieces.accepts(self.direction, "normalize")


METHODS = {
  # Ordinary training, without an attack.
  "standard": Method(False, False, False, ddi_jax.first_restart_direction),
  # Adversarial training as in Madry et al. (2018).
  "pgd": Method(True, False, False, ddi_jax.first_restart_direction),
  # The mean of the K gradients, as a control for danskin.
  "average": Method(True, True, False, ddi_jax.average_direction),
  # One gradient, at the worst of the K attacks for each example.
  "worst_restart": Method(True, True, True, ddi_jax.first_restart_direction),
  # The minimum-norm combination of the K gradients (Latorre et al., 2023).
  "danskin": Method(True, True, False, ddi_jax.danskin_direction, "danskin"),
  # The minimiser of the robust loss linearised per example.
  "proximal": Method(True, True, False, None, "proximal"),
  # Other aggregators of the same K gradients.
  "mgda": Method(True, True, False, ddi_jax.mgda_direction, "mgda"),
  "upgrad": Method(True, True, False, ddi_jax.upgrad_direction),
  "cagrad": Method(True, True, False, ddi_jax.cagrad_direction, "cagrad"),
  "pcgrad": Method(True, True, False, ddi_jax.pcgrad_direction),
  "dual_projection": Method(True, True, False, ddi_jax.dual_projection_direction),
  "aligned_mtl": Method(True, True, False, ddi_jax.aligned_mtl_direction),
  "imtl_g": Method(True, True, False, ddi_jax.imtl_g_direction),
  "conflict_free": Method(True, True, False, ddi_jax.conflict_free_direction),
  "nash_mtl": Method(True, True, False, ddi_jax.nash_mtl_direction),
}


def find_method(config: ml_collections.ConfigDict) -> Method:
  """Find the method named by `config.method`.

  A user's own direction gets all K gradients.

  Raises:
    ConfigError: if there is no method of this name.
  """
  piece = pieces.find("method", config.method, METHODS)
  if isinstance(piece, Method):
    return piece
  return Method(True, True, False, piece, OWN_SETTINGS)


def create_direction(
  config: ml_collections.ConfigDict,
) -> optax.GradientTransformationExtraArgs:
  """Create the method's transformation from K gradients to one.

  The method must not be `proximal`, which has none.

  Raises:
    ConfigError: for settings that the direction refuses.
  """
  method = find_method(config)
  assert method.direction is not None
  settings: dict[str, Any] = dict(config[method.group]) if method.group else {}
  if pieces.accepts(method.direction, "normalize"):
    settings["normalize"] = config.unit_norm
  direction = pieces.call(method.direction, settings, method.group or "method")
  if not (hasattr(direction, "init") and hasattr(direction, "update")):
    raise pieces.ConfigError(
      f"config.method {config.method!r} must make an optax transformation of K "
      f"gradients, got {type(direction).__name__}."
    )
  return optax.with_extra_args_support(direction)


def num_attacks(config: ml_collections.ConfigDict) -> int:
  """The number of attacks in a step of the method (1 for `standard`'s clean batch)."""
  return config.num_restarts if find_method(config).restarts else 1
