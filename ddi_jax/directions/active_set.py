"""A finite method for convex quadratic programs over the simplex or the orthant.

The method is the active-set idea of Wolfe's minimum-norm-point algorithm (Mathematical
Programming, 1976).  It minimises over the affine hull of the support: it moves there
until a weight would turn negative, and drops that weight.  When the minimum over the
hull is reached, it adds the coordinate that lowers the objective most.  Each change of
the support is one symmetric pivot of a K x K tableau, so an iteration costs O(K^2), has
static shapes, and can be jitted and vmapped.  With a linear term the objective may fall
in a direction without curvature, where no pivot is possible: then the coordinate grows
outside the support until a weight is 0.

Every step solves for the *correction* to the current weights from a freshly computed
gradient.  Rounding errors in the tableau grow with the number of pivots.  They slow the
last steps at worst, but do not reach the result.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddi_jax.numerics.precision import matmul

Assess = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
_MAX_CORRECTIONS = 3  # corrections on the same support; more do not help


class _State(NamedTuple):
  weights: jax.Array  # [K]
  support: jax.Array  # [K] bool
  # On the support: minus the inverse of the Hessian in the directions that the
  # constraints allow.  Elsewhere: its Schur complement, whose diagonal is >= 0.
  tableau: jax.Array  # [K, K]
  gradient: jax.Array  # [K]
  pivot: jax.Array  # index that joins or leaves the support next
  pivots: jax.Array  # bool: whether `pivot` joins or leaves
  growing: jax.Array  # index of a coordinate that grows outside the support
  grows: jax.Array  # bool: whether `growing` grows
  corrections: jax.Array  # number on this support; _MAX_CORRECTIONS if solved
  iterations: jax.Array
  best_weights: jax.Array  # [K], those of the least violation so far
  best_violation: jax.Array


def minimize_on_simplex(
  hessian: jax.Array, start: jax.Array, assess: Assess, max_iterations: int
) -> tuple[jax.Array, jax.Array]:
  """Argmin over the simplex of 1/2 w' hessian w + linear' w.

  Args:
    hessian: `[K, K]`, positive semidefinite on the vectors that sum to 0.
    start: index of the vertex to start from.
    assess: weights `[K]` -> (gradient `[K]`, violation `[K]`).  The violation is how
      far a gradient entry lies below the weighted mean of all, or 0 if that is within
      tolerance.
    max_iterations: stop after this many pivots and corrections.

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

  def normalize(weights: jax.Array) -> jax.Array:
    return weights / jnp.sum(weights)

  return _minimize(weights, at_start, tableau, assess, normalize, max_iterations)


def minimize_on_orthant(
  hessian: jax.Array, assess: Assess, max_iterations: int
) -> tuple[jax.Array, jax.Array]:
  """Argmin over w >= 0 of 1/2 w' hessian w + linear' w, started from 0.

  Args:
    hessian: `[K, K]`, positive semidefinite.
    assess: weights `[K]` -> (gradient `[K]`, violation `[K]`).  The violation is how
      far a gradient entry lies below 0, or 0 if that is within tolerance.
    max_iterations: stop after this many pivots and corrections.

  Returns:
    (weights `[K]`, iterations).
  """
  weights = jnp.zeros(len(hessian), hessian.dtype)
  empty = jnp.zeros(len(hessian), bool)
  return _minimize(weights, empty, hessian, assess, lambda same: same, max_iterations)


def _minimize(
  weights: jax.Array,
  support: jax.Array,
  tableau: jax.Array,
  assess: Assess,
  normalize: Callable[[jax.Array], jax.Array],
  max_iterations: int,
) -> tuple[jax.Array, jax.Array]:
  indices = jnp.arange(len(weights))
  # Curvature below this counts as none: the step then ends where a weight reaches 0.
  floor = jnp.finfo(tableau.dtype).eps ** 2 * jnp.max(jnp.abs(tableau))
  floor = jnp.maximum(floor, jnp.finfo(tableau.dtype).tiny)

  def choose(
    weights: jax.Array, support: jax.Array, tableau: jax.Array
  ) -> tuple[jax.Array, ...]:
    """(Gradient, violation, entering index, whether it enters, is curved, all done)."""
    gradient, violation = assess(weights)
    curvature = jnp.maximum(jnp.diagonal(tableau), floor)
    # The fall of the objective; -1 for a violation that only a correction can mend.
    decrease = violation * jnp.minimum(violation / curvature, 1)
    score = jnp.where(violation > 0, jnp.where(support, -1, decrease), -2)
    best = jnp.argmax(score)
    curved = curvature[best] >= violation[best]
    worst = jnp.where(jnp.isfinite(jnp.sum(gradient)), jnp.max(violation), jnp.inf)
    return gradient, worst, best, score[best] >= 0, curved, score[best] < -1

  def unfinished(state: _State) -> jax.Array:
    return (state.corrections < _MAX_CORRECTIONS) & (state.iterations < max_iterations)

  def body(state: _State) -> _State:
    pivoted = _pivot(state.tableau, state.pivot, state.support)
    tableau = jnp.where(state.pivots, pivoted, state.tableau)
    support = state.support ^ ((indices == state.pivot) & state.pivots)

    # Step to the optimum over the support.  Or step along the growing coordinate, as
    # far as the objective falls, while the support follows so as to stay optimal.
    on_support = jnp.where(support, state.gradient, 0)
    newton = jnp.where(support, matmul(tableau, on_support), 0)
    column = tableau[state.growing]
    growth = jnp.where(support, -column, 0) + (indices == state.growing)
    slope = jnp.maximum(-matmul(growth, state.gradient), 0)
    curvature = column[state.growing]
    step = jnp.where(state.grows, growth, newton)
    wanted = jnp.where(state.grows, slope / jnp.maximum(curvature, floor), 1)

    shrinks = support & (step < 0)
    lengths = state.weights / jnp.where(shrinks, -step, 1)
    lengths = jnp.where(shrinks, lengths, jnp.inf)
    leaving = jnp.argmin(lengths)
    blocked = lengths[leaving] < wanted
    length = jnp.minimum(lengths[leaving], wanted)
    weights = jnp.maximum(state.weights + length * step, 0)
    weights = normalize(jnp.where(blocked & (indices == leaving), 0, weights))

    gradient, violation, entering, enters, curved, solved = choose(
      weights, support, tableau
    )
    improved = violation < state.best_violation
    # If the step is blocked, drop the leaving index and go on.  If the coordinate has
    # grown to its minimum, add it to the support.
    arrived = state.grows & ~blocked
    joins = arrived & (curvature > floor)
    enters &= ~blocked & ~arrived
    pivot = jnp.where(arrived, state.growing, entering)
    corrections = jnp.where(solved, _MAX_CORRECTIONS, state.corrections + 1)
    return _State(
      weights=weights,
      support=support,
      tableau=tableau,
      gradient=gradient,
      pivot=jnp.where(blocked, leaving, pivot),
      pivots=blocked | (enters & curved) | joins,
      growing=jnp.where(blocked, state.growing, entering),
      grows=jnp.where(blocked, state.grows, enters & ~curved),
      corrections=jnp.where(blocked | enters | joins, 0, corrections),
      iterations=state.iterations + 1,
      best_weights=jnp.where(improved, weights, state.best_weights),
      best_violation=jnp.where(improved, violation, state.best_violation),
    )

  # The first iteration changes nothing and assesses the start, because a second copy of
  # the assessment would take as long to compile as the loop.
  none, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
  first = jnp.zeros_like(indices[0])
  state = _State(
    weights=weights,
    support=support,
    tableau=tableau,
    gradient=jnp.zeros_like(weights),
    pivot=first,
    pivots=no,
    growing=first,
    grows=no,
    corrections=none - 1,
    iterations=none - 1,
    best_weights=weights,
    best_violation=jnp.full_like(floor, jnp.inf),
  )
  state = jax.lax.while_loop(unfinished, body, state)
  # If many gradients meet at the origin, pivots on mere rounding errors can undo the
  # progress, so the best weights are returned.
  return state.best_weights, state.iterations


def _pivot(tableau: jax.Array, index: jax.Array, support: jax.Array) -> jax.Array:
  """The symmetric pivot on a diagonal entry, into the support or out of it."""
  column = tableau[index]
  inverse = 1 / jnp.where(column[index] == 0, 1, column[index])  # if 0, not used
  # `at` makes XLA store the column; as a `where` it would be recomputed per entry of
  # the outer product, ten times slower on a CPU.
  column = column.at[index].set(jnp.where(support[index], 1, -1))
  at_index = jnp.arange(len(tableau)) == index
  rest = jnp.where(at_index[:, None] | at_index[None, :], 0, tableau)
  return rest - column[:, None] * (column * inverse)[None, :]
