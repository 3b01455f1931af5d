"""A finite method for convex quadratic programs over the simplex or the orthant.

The active-set idea of Wolfe's minimum-norm-point algorithm (Mathematical Programming,
1976): minimise over the affine hull of the support, walk there until a weight would
turn negative, drop it; when the minimum is reached, let in the coordinate that lowers
the objective most.  Each change of the support is one symmetric pivot of a K x K
tableau, so an iteration costs O(K^2), has static shapes, and can be jitted and vmapped.

Every step solves for the *correction* to the current weights from a freshly computed
gradient.  The tableau's rounding, which grows with the number of pivots, therefore
slows the last steps at worst; it does not reach the result.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddi_jax.precision import matmul

Assess = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
_MAX_CORRECTIONS = 3  # of the weights on the same support; more do not help


class _State(NamedTuple):
  weights: jax.Array  # [K]
  support: jax.Array  # [K] bool
  # On the support minus the inverse of the Hessian in the directions that the
  # constraints allow, elsewhere its Schur complement: diagonal >= 0.
  tableau: jax.Array  # [K, K]
  gradient: jax.Array  # [K]
  pivot: jax.Array  # index that leaves or enters next
  pivots: jax.Array  # bool: whether it does
  corrections: jax.Array  # on this support; _MAX_CORRECTIONS: done
  iterations: jax.Array


def minimize_on_simplex(
  hessian: jax.Array, start: jax.Array, assess: Assess, max_iterations: int
) -> tuple[jax.Array, jax.Array]:
  """Argmin over the simplex of 1/2 w' hessian w + linear' w.

  Args:
    hessian: `[K, K]`, positive semidefinite on the vectors that sum to 0.
    start: index of the vertex to start from.
    assess: weights `[K]` -> (gradient `[K]`, violation `[K]`): how far each gradient
      entry lies below the weighted mean of all, 0 where that is within tolerance.
    max_iterations: stop after so many pivots and corrections.

  Returns:
    (weights `[K]`, iterations).
  """
  row = hessian[start]
  at_start = jnp.arange(len(hessian)) == start
  # The bordered system [[0, 1'], [1, hessian]], pivoted on (0, start).
  tableau = hessian - row[None, :] - row[:, None] + row[start]
  tableau = jnp.where(at_start[:, None] | at_start[None, :], 1, tableau)
  tableau = jnp.where(at_start[:, None] & at_start[None, :], 0, tableau)
  weights = at_start.astype(hessian.dtype)

  def normalize(weights):
    return weights / jnp.sum(weights)

  return _minimize(weights, at_start, tableau, assess, normalize, max_iterations)


def minimize_on_orthant(
  hessian: jax.Array, assess: Assess, max_iterations: int
) -> tuple[jax.Array, jax.Array]:
  """Argmin over w >= 0 of 1/2 w' hessian w + linear' w, started from 0.

  Args:
    hessian: `[K, K]`, positive semidefinite.
    assess: weights `[K]` -> (gradient `[K]`, violation `[K]`): how far each gradient
      entry lies below 0, 0 where that is within tolerance.
    max_iterations: stop after so many pivots and corrections.

  Returns:
    (weights `[K]`, iterations).
  """
  weights = jnp.zeros(len(hessian), hessian.dtype)
  empty = jnp.zeros(len(hessian), bool)
  return _minimize(weights, empty, hessian, assess, lambda same: same, max_iterations)


def _minimize(weights, support, tableau, assess, normalize, max_iterations):
  indices = jnp.arange(len(weights))

  def choose(weights, support, tableau):
    """(Gradient, index of the next to enter, whether it does, whether all is done)."""
    gradient, violation = assess(weights)
    curvature = jnp.diagonal(tableau)
    enters = (violation > 0) & ~support & (curvature > 0)
    # By how much the objective falls; -1 for what only a correction can mend.
    decrease = violation * (violation / jnp.where(enters, curvature, 1))
    score = jnp.where(enters, decrease, jnp.where(violation > 0, -1, -2))
    best = jnp.argmax(score)
    return gradient, best, score[best] >= 0, score[best] < -1

  def unfinished(state):
    return (state.corrections < _MAX_CORRECTIONS) & (state.iterations < max_iterations)

  def body(state):
    pivoted = _pivot(state.tableau, state.pivot, state.support)
    tableau = jnp.where(state.pivots, pivoted, state.tableau)
    support = state.support ^ ((indices == state.pivot) & state.pivots)

    on_support = jnp.where(support, state.gradient, 0)
    step = jnp.where(support, matmul(tableau, on_support), 0)
    target = state.weights + step
    lengths = jnp.where(
      support & (target < 0), state.weights / (state.weights - target), jnp.inf
    )
    leaving = jnp.argmin(lengths)
    length = jnp.minimum(lengths[leaving], 1)
    blocked = length < 1
    stays = support & ~(blocked & (indices == leaving))
    weights = jnp.where(stays, jnp.maximum(state.weights + length * step, 0), 0)
    weights = normalize(weights)

    gradient, entering, enters, solved = choose(weights, support, tableau)
    corrections = jnp.where(solved, _MAX_CORRECTIONS, state.corrections + 1)
    pivots = blocked | enters
    return _State(
      weights=weights,
      support=support,
      tableau=tableau,
      gradient=gradient,
      pivot=jnp.where(blocked, leaving, entering),
      pivots=pivots,
      corrections=jnp.where(pivots, 0, corrections),
      iterations=state.iterations + 1,
    )

  gradient, entering, enters, solved = choose(weights, support, tableau)
  none = jnp.zeros((), jnp.int32)
  corrections = jnp.where(solved, _MAX_CORRECTIONS, none)
  state = _State(
    weights, support, tableau, gradient, entering, enters, corrections, none
  )
  state = jax.lax.while_loop(unfinished, body, state)
  return state.weights, state.iterations


def _pivot(tableau, index, support):
  """The symmetric pivot on a diagonal entry: into the support or out of it."""
  column = tableau[index]
  inverse = 1 / jnp.where(column[index] == 0, 1, column[index])  # 0: not to be used
  # `at` makes XLA store the column; as a `where` it would be recomputed per entry of
  # the outer product, ten times slower on a CPU.
  column = column.at[index].set(jnp.where(support[index], 1, -1))
  at_index = jnp.arange(len(tableau)) == index
  rest = jnp.where(at_index[:, None] | at_index[None, :], 0, tableau)
  return rest - column[:, None] * (column * inverse)[None, :]
