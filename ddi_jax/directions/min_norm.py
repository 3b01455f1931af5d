"""The minimum-norm point of the convex hull of K vectors, from their inner products."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from ddi_jax.checks import check_choice, check_number, check_positive_int
from ddi_jax.directions import active_set, projected_gradient
from ddi_jax.directions.implicit import differentiable_weights
from ddi_jax.gradients.gram import ShiftedGram
from ddi_jax.numerics.precision import at_least_float32, matmul

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int

SOLVERS = {
  "active_set": active_set.minimize_on_simplex,
  "projected_gradient": projected_gradient.minimize_on_simplex,
}


class MinNormSolution(NamedTuple):
  """Weights of the minimum-norm point, with their certificate.

  With slacks e (see `min_norm_weights`) the "value" below is ||z||^2 + e'weights;
  without slacks, it is the squared norm.

  Attributes:
    weights: `[K]`, non-negative, with sum 1 to rounding.
    squared_norm: ||z||^2 of the returned point z.
    gap: the relative duality gap >= 0 of the returned weights, that is, max_k (value -
      <z, g_k> - e_k) as a fraction of the value or, if the value is 0 up to rounding,
      of the largest squared norm of a vector.  The least possible value is at least 1 -
      2 gap times the returned one.  The gap is computed in the precision of the
      weights, and has their rounding error.
    iterations: number of iterations of the solver.
    converged: whether `gap` is at most the tolerance.
  """

  weights: Float[Array, " K"]
  squared_norm: Float[Array, ""]
  gap: Float[Array, ""]
  iterations: Int[Array, ""]
  converged: Bool[Array, ""]


def min_norm_weights(
  gram: Float[Array, "K K"],
  slacks: Float[Array, " K"] | None = None,
  *,
  solver: str = "active_set",
  tolerance: float | None = None,
  max_iterations: int | None = None,
) -> MinNormSolution:
  """Weights of the minimum-norm point of a convex hull, with slacks if given.

    argmin over the simplex of ||z||^2 / 2 + slacks'weights,  z = sum_k weights_k g_k

  Without slacks, z is the minimum-norm point of the convex hull.  With slacks, this is
  the dual problem of a bundle of linear models, see `ddi_jax.danskin_direction`.

  There are two solvers, compared in docs/min_norm.md.  "active_set" ends after a finite
  number of pivots, about one per positive weight, with a gap at the level of rounding,
  whatever the tolerance.  "projected_gradient" (accelerated, with adaptive restart)
  stops at the tolerance.  It needs more iterations the worse the gradients are scaled,
  and can end before it has converged.

  Args:
    gram: inner products of the vectors, `[K, K]`, symmetric positive semidefinite,
      K >= 1, floating point, of any scale.
    slacks: `[K]` in units of the squared norm, or None for 0.  Only differences matter.
      An infinite slack excludes its vector.
    solver: "active_set" or "projected_gradient".
    tolerance: the gap that counts as converged.  Default 1e-6 in float32, 1e-12 in
      float64.  If rounding does not allow so small a gap, the solver stops at the level
      of rounding, and `converged` is False.
    max_iterations: limit of the iterations.  The default is 50 + 8 K for "active_set"
      (a few times what it needs, unless rounding makes it cycle) and 1000 for
      "projected_gradient".

  Weights and squared norm can be differentiated in forward and reverse mode, any number
  of times, by the implicit function theorem.  At a kink, where a weight of 0 is about
  to grow, the derivative is that of the positive weights alone.  If many weights are
  optimal, as for equal vectors, it is the derivative that changes the weights least.

  Returns:
    `MinNormSolution`.  A NaN or infinity in `gram`, or a NaN in `slacks`, makes
    weights, squared norm and gap NaN.

  Raises:
    ValueError: if `gram` is not a floating-point square matrix with K >= 1, `slacks`
      are not `[K]`, the solver is unknown or max_iterations < 1.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> ddi_jax.min_norm_weights(jnp.array([[1., 0.], [0., 3.]])).weights.round(6)
    Array([0.75, 0.25], dtype=float32)
  """
  check_solver(solver, tolerance, max_iterations)
  gram, slacks = _as_array(gram), _as_array(slacks)
  if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] < 1:
    raise ValueError(f"gram must be [K, K] with K >= 1, got shape {gram.shape}.")
  if not jnp.issubdtype(gram.dtype, jnp.floating):
    raise ValueError(f"gram must be floating point, got {gram.dtype}.")
  if slacks is not None and jnp.shape(slacks) != gram.shape[:1]:
    raise ValueError(f"slacks must be {gram.shape[:1]}, got {jnp.shape(slacks)}.")
  return _solve_gram(
    gram, slacks, solver=solver, tolerance=tolerance, max_iterations=max_iterations
  )


def _as_array(values: Any) -> Any:
  return jnp.asarray(values) if isinstance(values, (list, tuple)) else values


@functools.partial(jax.jit, static_argnames=("solver", "max_iterations"))
def _solve_gram(
  gram: jax.Array, slacks: jax.Array | None, **settings: Any
) -> MinNormSolution:
  gram = at_least_float32(gram)
  zeros = jnp.zeros(len(gram), gram.dtype)
  return solve(ShiftedGram(gram, zeros, zeros[0]), slacks, **settings)


def check_solver(
  solver: str, tolerance: float | None, max_iterations: int | None
) -> None:
  """Raise ValueError, naming the setting, for a setting that no solver takes."""
  check_choice("solver", solver, SOLVERS)
  check_number("tolerance", tolerance, "[0, inf)", optional=True)
  check_positive_int("max_iterations", max_iterations, optional=True)


def _gradient(weights: jax.Array, data: tuple[jax.Array, jax.Array]) -> jax.Array:
  hessian, linear = data
  return matmul(hessian, weights) + linear


def solve(
  inner: ShiftedGram,
  slacks: jax.Array | None = None,
  *,
  solver: str = "active_set",
  tolerance: float | None = None,
  max_iterations: int | None = None,
) -> MinNormSolution:
  """Solve `min_norm_weights` for a `ShiftedGram`, which keeps differences."""
  check_solver(solver, tolerance, max_iterations)
  size = len(inner.offsets)
  dtype = inner.offsets.dtype
  eps = jnp.finfo(dtype).eps
  if tolerance is None:
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-12
  if max_iterations is None:
    max_iterations = 50 + 8 * size if solver == "active_set" else 1_000
  slacks = jnp.zeros(size, dtype) if slacks is None else jnp.asarray(slacks, dtype)
  slacks = slacks - jnp.min(slacks)
  # The weights do not depend on the scale, so it need not be differentiated.
  largest = jax.lax.stop_gradient(jnp.max(inner.squared_norms()))
  scale = jnp.where(largest > 0, largest, 1)
  finite = jnp.isfinite(largest) & jnp.all(jnp.isfinite(inner.differences))
  finite &= ~jnp.any(jnp.isnan(slacks))
  scaled = ShiftedGram(*(part / scale for part in inner))
  # At the optimum a vector of positive weight has slack <= 2 (largest squared norm).
  # Slacks above 4 may therefore be 4, so that rounding does not drown the others.
  slacks = jnp.minimum(slacks / scale, 4)
  # The solver's loops cannot be differentiated; their result is, at the end.
  hessian, offsets, squared_norm = jax.lax.stop_gradient(scaled)
  fixed_slacks = jax.lax.stop_gradient(slacks)
  linear = offsets + fixed_slacks
  absolute = jnp.abs(hessian)
  absolute_linear = jnp.abs(offsets) + fixed_slacks

  def certificate(
    weights: jax.Array,
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(Gradient, weighted mean - gradient, reference of the gap, rounding error)."""
    gradient = matmul(hessian, weights) + linear
    terms = matmul(absolute, weights) + absolute_linear
    mean, mean_terms = matmul(jnp.stack([gradient, terms]), weights)
    shift = matmul(offsets, weights) + squared_norm
    value = mean + shift
    # If the terms of the value cancel, only their rounding errors are left.
    zero = value <= 2 * size * eps * (mean_terms + jnp.abs(shift) + squared_norm)
    reference = jnp.where(zero, 1, value)
    return gradient, mean - gradient, reference, 4 * eps * (terms + mean_terms)

  def assess(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    gradient, violation, reference, rounding = certificate(weights)
    # The finite method gains nothing by stopping earlier than at rounding.
    stop = 0 if solver == "active_set" else tolerance
    allowed = jnp.maximum(stop * reference, rounding)
    return gradient, jnp.where(violation > allowed, violation, 0)

  start = jnp.argmin(jnp.diagonal(hessian) / 2 + linear)
  weights, iterations = SOLVERS[solver](hessian, start, assess, max_iterations)
  _, violation, reference, _ = certificate(weights)
  gap = jnp.maximum(jnp.max(violation), 0) / reference
  problem = (scaled.differences, scaled.offsets + slacks)
  weights = differentiable_weights(weights, _gradient, problem, on_simplex=True)
  twice = matmul(scaled.differences, weights) + 2 * scaled.offsets
  value = matmul(weights, twice) + scaled.squared_norm
  return MinNormSolution(
    weights=jnp.where(finite, weights, jnp.nan),
    squared_norm=jnp.where(finite, jnp.maximum(value, 0) * scale, jnp.nan),
    gap=jnp.where(finite, gap, jnp.nan),
    iterations=iterations,
    converged=finite & (gap <= tolerance),
  )
