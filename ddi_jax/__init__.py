"""Danskin's descent direction: minimise a worst case, and train robustly, in JAX."""

from ddi_jax import attacks, candidates, losses
from ddi_jax.attacks import (
  Attack,
  AutoAttackResult,
  ClassifierAttack,
  Objective,
  autoattack,
  pgd,
)
from ddi_jax.candidates import restart_candidates, worst_candidate
from ddi_jax.checks import check_examples
from ddi_jax.directions.aggregators import (
  cagrad_direction,
  dual_projection_direction,
  mgda_direction,
  pcgrad_direction,
  upgrad_direction,
)
from ddi_jax.directions.balanced import (
  aligned_mtl_direction,
  conflict_free_direction,
  imtl_g_direction,
  nash_mtl_direction,
)
from ddi_jax.directions.danskin import (
  average_direction,
  danskin_direction,
  first_restart_direction,
)
from ddi_jax.directions.min_norm import MinNormSolution, min_norm_weights
from ddi_jax.directions.proximal import ProximalInfo, proximal_danskin_gradient
from ddi_jax.directions.weighting import (
  DirectionState,
  Weighting,
  WeightingInput,
  Weights,
  weighted_direction,
)
from ddi_jax.evaluation.accuracy import Accuracy, wilson_interval
from ddi_jax.evaluation.curve import RobustnessCurve, robustness_curve
from ddi_jax.evaluation.robustness import RobustnessEvaluation, evaluate
from ddi_jax.evaluation.step_comparison import StepEffects, TriedDirection, step_effects
from ddi_jax.evaluation.temperature import calibrate_temperature
from ddi_jax.gradients.gram import gram_matrix
from ddi_jax.gradients.per_candidate import (
  RestartInfo,
  candidate_gradients,
  restart_gradients,
)
from ddi_jax.gradients.recomputed import RecomputedGradients, recomputed_gradients
from ddi_jax.minimax.solver import (
  MinimaxProgress,
  MinimaxSolution,
  MinimaxStatus,
  minimize_max,
)
from ddi_jax.minimax.transformation import MinimaxState, minimax_lbfgs
from ddi_jax.minimax.worst_case import WorstCaseSolution, minimize_worst_case
from ddi_jax.threat_models import ThreatModel, l1, l2, linf

__all__ = [
  "Accuracy",
  "Attack",
  "AutoAttackResult",
  "ClassifierAttack",
  "DirectionState",
  "MinNormSolution",
  "MinimaxProgress",
  "MinimaxSolution",
  "MinimaxState",
  "MinimaxStatus",
  "Objective",
  "ProximalInfo",
  "RecomputedGradients",
  "RestartInfo",
  "RobustnessCurve",
  "RobustnessEvaluation",
  "StepEffects",
  "ThreatModel",
  "TriedDirection",
  "Weighting",
  "WeightingInput",
  "Weights",
  "WorstCaseSolution",
  "aligned_mtl_direction",
  "attacks",
  "autoattack",
  "average_direction",
  "cagrad_direction",
  "calibrate_temperature",
  "candidate_gradients",
  "candidates",
  "check_examples",
  "conflict_free_direction",
  "danskin_direction",
  "dual_projection_direction",
  "evaluate",
  "first_restart_direction",
  "gram_matrix",
  "imtl_g_direction",
  "l1",
  "l2",
  "linf",
  "losses",
  "mgda_direction",
  "min_norm_weights",
  "minimax_lbfgs",
  "minimize_max",
  "minimize_worst_case",
  "nash_mtl_direction",
  "pcgrad_direction",
  "pgd",
  "proximal_danskin_gradient",
  "recomputed_gradients",
  "restart_candidates",
  "restart_gradients",
  "robustness_curve",
  "step_effects",
  "upgrad_direction",
  "weighted_direction",
  "wilson_interval",
  "worst_candidate",
]
__version__ = "0.2.0"
