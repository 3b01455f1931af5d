"""Accelerated projected gradient for convex quadratic programs over the simplex."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddi_jax.numerics.precision import matmul

Assess = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class _State(NamedTuple):
  weights: jax.Array  # [K]
  gradient: jax.Array  # [K], at `weights`
  unsolved: jax.Array  # bool
  point: jax.Array  # [K], extrapolated
  point_gradient: jax.Array  # [K]
  momentum: jax.Array
  iterations: jax.Array


def minimize_on_simplex(
  hessian: jax.Array, start: jax.Array, assess: Assess, max_iterations: int
) -> tuple[jax.Array, jax.Array]:
  """Argmin over the simplex of 1/2 w' hessian w + linear' w.

  This is the accelerated method of Beck and Teboulle (2009) with the adaptive restart
  of O'Donoghue and Candes (2015).  Adding a constant to all entries of the gradient
  changes nothing on the simplex, so the step length comes from the centred matrix P
  hessian P, P = I - 11'/K.  For nearly equal gradients it is far longer than 1 /
  ||hessian||.

  For arguments and results see `ddi_jax.directions.active_set.minimize_on_simplex`.
  """
  size = len(hessian)
  eps = jnp.finfo(hessian.dtype).eps
  step = 1 / jnp.maximum(
    _centred_norm_bound(hessian), size * eps * jnp.max(jnp.abs(hessian))
  )
  step = jnp.where(jnp.isfinite(step), step, 0)  # The Hessian may be 0.

  def unfinished(state: _State) -> jax.Array:
    return state.unsolved & (state.iterations < max_iterations)

  def body(state: _State) -> _State:
    weights = project_on_simplex(state.point - step * state.point_gradient)
    gradient, violation = assess(weights)
    move = weights - state.weights
    overshot = matmul(state.point - weights, move) > 0
    momentum = jnp.where(overshot, 1, state.momentum)
    next_momentum = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
    push = (momentum - 1) / next_momentum
    return _State(
      weights=weights,
      gradient=gradient,
      unsolved=jnp.any(violation > 0),
      point=weights + push * move,
      point_gradient=gradient + push * (gradient - state.gradient),
      momentum=next_momentum,
      iterations=state.iterations + 1,
    )

  weights = jax.nn.one_hot(start, size, dtype=hessian.dtype)
  gradient, violation = assess(weights)
  state = _State(
    weights=weights,
    gradient=gradient,
    unsolved=jnp.any(violation > 0),
    point=weights,
    point_gradient=gradient,
    momentum=jnp.ones((), hessian.dtype),
    iterations=jnp.zeros((), jnp.int32),
  )
  state = jax.lax.while_loop(unfinished, body, state)
  return state.weights, state.iterations


def project_on_simplex(point: jax.Array) -> jax.Array:
  """Euclidean projection on the simplex (Duchi et al., 2008, figure 1)."""
  ordered = jnp.sort(point, descending=True)
  counts = jnp.arange(1, len(point) + 1, dtype=point.dtype)
  thresholds = (jnp.cumsum(ordered) - 1) / counts
  support = jnp.sum(ordered > thresholds)
  projected = jnp.maximum(point - thresholds[support - 1], 0)
  return projected / jnp.sum(projected)


def _centred_norm_bound(hessian: jax.Array) -> jax.Array:
  """An upper bound on ||P hessian P||_2 that exceeds it by at most K^(1/32)."""
  centred = hessian - hessian.mean(0, keepdims=True)
  centred = centred - centred.mean(1, keepdims=True)
  # ||M|| <= ||M^32||_F^(1/32): repeated squaring, rescaled against under/overflow.
  bound, exponent = jnp.ones((), hessian.dtype), 1.0
  for _ in range(5):
    norm = jnp.linalg.norm(centred)
    norm = jnp.where(norm > 0, norm, 1)
    bound, exponent = bound * norm**exponent, exponent / 2
    centred = centred / norm
    centred = matmul(centred, centred)
  norm = jnp.linalg.norm(centred)
  return bound * norm**exponent
