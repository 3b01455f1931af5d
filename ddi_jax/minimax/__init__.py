"""Minimise the greatest of K smooth losses."""

from ddi_jax.minimax.solver import MinimaxSolution, MinimaxStatus, minimize_max

__all__ = ["MinimaxSolution", "MinimaxStatus", "minimize_max"]
