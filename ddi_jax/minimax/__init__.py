"""Minimise the greatest of K smooth losses, or of losses over a set of points."""

from ddi_jax.minimax.solver import (
  MinimaxProgress,
  MinimaxSolution,
  MinimaxStatus,
  minimize_max,
)
from ddi_jax.minimax.transformation import MinimaxState, minimax_lbfgs
from ddi_jax.minimax.worst_case import WorstCaseSolution, minimize_worst_case

__all__ = [
  "MinimaxProgress",
  "MinimaxSolution",
  "MinimaxState",
  "MinimaxStatus",
  "WorstCaseSolution",
  "minimax_lbfgs",
  "minimize_max",
  "minimize_worst_case",
]
