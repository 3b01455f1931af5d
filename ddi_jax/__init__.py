"""Danskin's descent direction for adversarial training in JAX."""

from ddi_jax import attacks, losses
from ddi_jax.accuracy import Accuracy, wilson_interval
from ddi_jax.aggregators import (
  cagrad_direction,
  mgda_direction,
  pcgrad_direction,
  upgrad_direction,
)
from ddi_jax.attacks import (
  Attack,
  AutoAttackResult,
  ClassifierAttack,
  Objective,
  autoattack,
  pgd,
)
from ddi_jax.calibration import calibrate_temperature
from ddi_jax.direction import (
  DirectionState,
  average_direction,
  danskin_direction,
  first_restart_direction,
)
from ddi_jax.evaluation import RobustnessEvaluation, evaluate
from ddi_jax.gradient_matrix import KeptGradients, gram_matrix
from ddi_jax.min_norm import MinNormSolution, min_norm_weights
from ddi_jax.proximal import ProximalInfo, proximal_danskin_gradient
from ddi_jax.recomputation import RecomputedGradients
from ddi_jax.restarts import (
  RestartInfo,
  candidate_gradients,
  restart_candidates,
  restart_gradients,
  worst_candidate,
)
from ddi_jax.robustness_curve import RobustnessCurve, robustness_curve
from ddi_jax.step_effects import StepEffects, TriedDirection, step_effects
from ddi_jax.threat_models import ThreatModel, l1, l2, linf

__all__ = [
  "Accuracy",
  "Attack",
  "AutoAttackResult",
  "ClassifierAttack",
  "DirectionState",
  "KeptGradients",
  "MinNormSolution",
  "Objective",
  "ProximalInfo",
  "RecomputedGradients",
  "RestartInfo",
  "RobustnessCurve",
  "RobustnessEvaluation",
  "StepEffects",
  "ThreatModel",
  "TriedDirection",
  "attacks",
  "autoattack",
  "average_direction",
  "cagrad_direction",
  "calibrate_temperature",
  "candidate_gradients",
  "danskin_direction",
  "evaluate",
  "first_restart_direction",
  "gram_matrix",
  "l1",
  "l2",
  "linf",
  "losses",
  "mgda_direction",
  "min_norm_weights",
  "pcgrad_direction",
  "pgd",
  "proximal_danskin_gradient",
  "restart_candidates",
  "restart_gradients",
  "robustness_curve",
  "step_effects",
  "upgrad_direction",
  "wilson_interval",
  "worst_candidate",
]
__version__ = "0.1.0"
