"""The settings of an evaluation, and the attacks that follow from them."""

import itertools
from typing import NamedTuple

import ml_collections

import ddi_jax
from ddi_jax.attacks.ensemble import named_attacks, standard_attacks
from ddi_jax.training.run.restore import CHECKPOINTS
from ddi_jax.training.settings.pieces import ConfigError
from ddi_jax.training.settings.threats import THREAT_MODELS, evaluated_radii

VERSIONS = {"autoattack": "standard", "autoattack-plus": "plus"}
_CURVE_ATTACKS: tuple[str, ...] = ("apgd-ce", "apgd-t")
_CURVE_MULTIPLES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


class AuditSettings(NamedTuple):
  """The settings of `launch.py --evaluate`.

  Attributes:
    attacks: "autoattack", "autoattack-plus", or names of attacks separated by commas.
    checkpoint: "best" or "last".
    limit: number of test images; None: config.evaluation.test_limit.
    epsilons: increasing radii of the curve.  Empty: no curve.  None: multiples of the
      config's epsilon from 0 to 2.
    norm: one of the norms in which the run is evaluated; None: the only one.
    save: whether to save the adversarial examples.
    restart: whether to discard the results of an earlier evaluation.
  """

  attacks: str = "autoattack"
  checkpoint: str = "best"
  limit: int | None = None
  epsilons: tuple[float, ...] | None = None
  norm: str | None = None
  save: bool = False
  restart: bool = False

  @property
  def folder_name(self) -> str:
    """The name of the evaluation's folder in the run's workdir."""
    name = f"evaluation-{self.attacks.replace(',', '+')}"
    name += "" if self.norm is None else f"-{self.norm}"
    return name if self.checkpoint == "best" else f"{name}-{self.checkpoint}"


class AuditPlan(NamedTuple):
  """The attacks of an evaluation.

  Attributes:
    threat_model: the threat model of the attacks.
    version: the `version` argument of `ddi_jax.evaluate`.
    attacks: names of the attacks.
    epsilons: radii of the curve.
    curve_attacks: names of the attacks at each radius of the curve.
  """

  threat_model: ddi_jax.ThreatModel
  version: str | tuple[str, ...]
  attacks: tuple[str, ...]
  epsilons: tuple[float, ...]
  curve_attacks: tuple[str, ...]


def make_plan(config: ml_collections.ConfigDict, settings: AuditSettings) -> AuditPlan:
  """Derive the attacks of an evaluation from its settings and a checked config.

  Raises:
    ConfigError: if a setting is impossible.
  """
  if settings.checkpoint not in CHECKPOINTS:
    raise ConfigError(
      f"--evaluate_checkpoint must be one of {', '.join(CHECKPOINTS)}; got "
      f"{settings.checkpoint!r}."
    )
  if settings.limit is not None and settings.limit < 1:
    raise ConfigError(f"--evaluate_limit must be >= 1, got {settings.limit}.")
  radii = evaluated_radii(config)
  norm = settings.norm
  if norm is None and len(radii) == 1:
    (norm,) = radii
  if norm not in radii:
    raise ConfigError(
      f"--evaluate_norm must be one of {', '.join(radii)}, the norms that this "
      f"run is evaluated in; got {norm}."
    )
  epsilon = radii[norm]
  threat_model = THREAT_MODELS[norm](epsilon)
  version: str | tuple[str, ...]
  if settings.attacks in VERSIONS:
    version = VERSIONS[settings.attacks]
    attacks = tuple(standard_attacks(threat_model, version))
    curve_attacks = _CURVE_ATTACKS
  else:
    try:
      version = tuple(named_attacks(threat_model, settings.attacks.split(",")))
    except ValueError as error:
      raise ConfigError(
        f"--evaluate must be {', '.join(VERSIONS)} or names of attacks separated by "
        f"commas: {error}"
      ) from error
    attacks = curve_attacks = version
  epsilons = settings.epsilons
  if epsilons is None:
    # Round, because 0.75 * 0.15 is 0.11249999999999999.
    rounded = [float(f"{multiple * epsilon:.6g}") for multiple in _CURVE_MULTIPLES]
    epsilons = tuple(rounded) if epsilon > 0 else ()
  if any(not 0 <= radius < float("inf") for radius in epsilons) or any(
    small >= large for small, large in itertools.pairwise(epsilons)
  ):
    raise ConfigError(
      "--evaluate_epsilons must be finite numbers >= 0, increasing; got "
      f"{', '.join(map(str, epsilons))}."
    )
  return AuditPlan(threat_model, version, attacks, epsilons, curve_attacks)
