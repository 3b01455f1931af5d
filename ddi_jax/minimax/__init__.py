"""Minimise the greatest of K smooth losses, or of those at all points of a set."""

from ddi_jax.minimax.solver import MinimaxSolution, MinimaxStatus, minimize_max
from ddi_jax.minimax.worst_case import WorstCaseSolution, minimize_worst_case

__all__ = [
  "MinimaxSolution",
  "MinimaxStatus",
  "WorstCaseSolution",
  "minimize_max",
  "minimize_worst_case",
]
