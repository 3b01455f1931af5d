"""Derivatives of a convex problem's solution, by the implicit function theorem."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ddi_jax.numerics.precision import matmul

# (weights [K], data) -> the gradient [K] of a convex objective in the weights.
GradientFn = Callable[[jax.Array, Any], jax.Array]


def differentiable_weights(
  weights: jax.Array, gradient_fn: GradientFn, data: Any, *, on_simplex: bool
) -> jax.Array:
  """Give the weights the derivative in `data` that a minimiser has.

  Reverse mode cannot pass through the solvers' loops, and need not.  At the minimum
  over the simplex, the gradient has the same entry for all positive weights; for
  weights >= 0 without a sum, this entry is 0.  This remains true when the data change,
  which determines the change of the weights.  If a weight of 0 is about to grow, the
  two one-sided derivatives differ, and the result is that of the positive weights
  alone.  If there are many minimisers, the result is the derivative that changes the
  weights least.

  Args:
    weights: `[K]`, the minimiser.
    gradient_fn: the gradient of the objective; a pure function that closes over no
      array of `data`.
    data: a pytree of arrays.
    on_simplex: whether the weights sum to 1; otherwise they are only >= 0.

  Returns:
    The same weights `[K]`, which can be differentiated any number of times, in forward
    and reverse mode.
  """
  return _at_optimum(gradient_fn, on_simplex, jax.lax.stop_gradient(weights), data)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _at_optimum(
  gradient_fn: GradientFn, on_simplex: bool, weights: jax.Array, data: Any
) -> jax.Array:
  del gradient_fn, on_simplex, data
  return weights


@_at_optimum.defjvp
def _at_optimum_jvp(
  gradient_fn: GradientFn, on_simplex: bool, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
  weights, data = primals
  weights = _at_optimum(gradient_fn, on_simplex, weights, data)
  # The directions in which the weights can change: P.
  free = (weights > 0).astype(weights.dtype)
  allowed = jnp.diag(free)
  if on_simplex:
    allowed -= free[:, None] * free[None, :] / jnp.sum(free)
  hessian = jax.jacfwd(lambda weights: gradient_fn(weights, data))(weights)
  _, change = jax.jvp(lambda data: gradient_fn(weights, data), (data,), (tangents[1],))
  # P hessian P w' = -P change, and w' = P w'.
  projected = matmul(allowed, matmul(hessian, allowed))
  inverse = jnp.linalg.pinv((projected + projected.T) / 2, hermitian=True)
  return weights, -matmul(inverse, change)
