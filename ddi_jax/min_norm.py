"""The minimum-norm point of the convex hull of K vectors, from their Gram matrix."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddi_jax.precision import at_least_float32

_POLISH_EVERY = 20


class MinNormSolution(NamedTuple):
  """Weights of the minimum-norm point, with their certificate.

  Attributes:
    weights: `[K]`, on the simplex.
    squared_norm: `weights' G weights`, the squared norm of the point found.
    gap: `squared_norm - min_k (G weights)_k` >= 0, the duality gap, computed from the
      returned weights.  The least squared norm is at least `squared_norm - 2 gap`, and
      the point z found has `<z, g_k> >= squared_norm - gap` for every k.
    iterations: how many the solver took.
  """

  weights: jax.Array
  squared_norm: jax.Array
  gap: jax.Array
  iterations: jax.Array


@functools.partial(jax.jit, static_argnames=("max_iterations",))
def min_norm_weights(
  gram: jax.Array,
  *,
  tolerance: float | None = None,
  max_iterations: int = 1_000,
) -> MinNormSolution:
  """Argmin over the simplex of `weights' G weights`.

  Accelerated projected gradient (Beck and Teboulle, 2009) with adaptive restart
  (O'Donoghue and Candes, 2015), stopped by the duality gap.  Constant shifts of the
  gradient are inert on the simplex, so the step length comes from the centred matrix
  P G P, P = I - 11'/K: for nearly equal vectors it is far longer than 1 / ||G||.
  Every 20 iterations the finite method of Wolfe (1976) goes on from the current
  support, and its point is taken if its gap is smaller: that ends the slow tail of
  badly scaled problems.

  Args:
    gram: `[K, K]`, symmetric positive semidefinite, K >= 1, floating point, of any
      scale.
    tolerance: stop when the gap is at most this fraction of the squared norm (or, if
      the hull holds the origin to rounding, of the largest squared norm of a vector).
      Default 1e-6 in float32, 1e-12 in float64.  Never less than a few roundings of
      the sum that makes up the squared norm.
    max_iterations: stop after so many iterations; the gap then says how far it came.

  Returns:
    `MinNormSolution`.  A NaN or infinity in `gram` gives NaN weights.

  Raises:
    ValueError: if `gram` is not a floating-point square matrix with K >= 1.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> ddi_jax.min_norm_weights(jnp.array([[1., 0.], [0., 3.]])).weights.round(6)
    Array([0.75, 0.25], dtype=float32)
  """
  if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] < 1:
    raise ValueError(f"gram must be [K, K] with K >= 1, got shape {gram.shape}.")
  if not jnp.issubdtype(gram.dtype, jnp.floating):
    raise ValueError(f"gram must be floating point, got {gram.dtype}.")
  gram = at_least_float32(gram)
  size = len(gram)
  eps = jnp.finfo(gram.dtype).eps
  if tolerance is None:
    tolerance = 1e-6 if gram.dtype == jnp.float32 else 1e-12
  finite = jnp.all(jnp.isfinite(gram))
  scale = jnp.max(jnp.diagonal(gram))
  scale = jnp.where(scale > 0, scale, 1)
  scaled = gram / scale
  absolute = jnp.abs(scaled)
  norms = jnp.sqrt(jnp.diagonal(scaled))
  inverse = 1 / jnp.where(norms > 0, norms, 1)
  cosines = scaled * inverse[:, None] * inverse[None, :]
  step = 1 / jnp.maximum(_centred_norm_bound(scaled), size * eps)

  def certificate(weights, product):
    value = _dot(weights, product)
    return value, jnp.maximum(value - jnp.min(product), 0)

  def is_far(weights, product):
    value, gap = certificate(weights, product)
    # Where the terms of the value cancel, they leave their rounding in it.
    rounding = eps * _dot(weights, jnp.matmul(absolute, weights, precision="highest"))
    reference = jnp.where(value > 2 * size * rounding, value, 1)
    return gap > jnp.maximum(tolerance * reference, 4 * rounding)

  def unsolved(state):
    weights, product, _, _, _, iterations = state
    return is_far(weights, product) & (iterations < max_iterations)

  def affine_minimiser(support):
    system = jnp.where(
      support[:, None] & support[None, :], cosines, jnp.eye(size, dtype=scaled.dtype)
    )
    unscaled = inverse * jnp.linalg.solve(system, jnp.where(support, inverse, 0))
    return unscaled / jnp.sum(unscaled)

  def wolfe_step(state):
    weights, product, support, count = state
    target = affine_minimiser(support)
    blocked = support & (target <= 0)
    ratios = jnp.where(blocked, weights / (weights - target), jnp.inf)
    moved = weights + jnp.minimum(jnp.min(ratios), 1) * (target - weights)
    moved = jnp.where(
      support & (ratios > jnp.min(ratios)) | ~jnp.any(blocked), moved, 0
    )
    moved = jnp.maximum(moved, 0) / jnp.sum(jnp.maximum(moved, 0))
    product = jnp.matmul(scaled, moved, precision="highest")
    entering = jnp.arange(size) == jnp.argmin(product)
    support = (moved > 0) | (entering & ~jnp.any(blocked))
    return moved, product, support, count + 1

  def polish(weights, product):
    # Wolfe's (1976) finite method from here, taken if it comes closer.
    def unfinished(state):
      return is_far(*state[:2]) & (state[3] < 4 * size)

    init = (weights, product, weights > 0, 0)
    candidate, candidate_product, *_ = jax.lax.while_loop(unfinished, wolfe_step, init)
    gap = certificate(weights, product)[1]
    better = certificate(candidate, candidate_product)[1] < gap  # Not if it is NaN.
    return (
      jnp.where(better, candidate, weights),
      jnp.where(better, candidate_product, product),
      better,
    )

  def body(state):
    weights, product, point, point_product, momentum, iterations = state
    new = _project_simplex(point - step * point_product)
    new_product = jnp.matmul(scaled, new, precision="highest")
    iterations += 1
    new, new_product, polished = jax.lax.cond(
      iterations % _POLISH_EVERY == 0,
      polish,
      lambda *same: (*same, jnp.array(False)),
      new,
      new_product,
    )
    overshot = _dot(point - new, new - weights) > 0
    momentum = jnp.where(overshot | polished, 1, momentum)
    next_momentum = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
    push = (momentum - 1) / next_momentum
    point = new + push * (new - weights)
    point_product = new_product + push * (new_product - product)
    return new, new_product, point, point_product, next_momentum, iterations

  uniform = jnp.full(size, 1 / size, gram.dtype)
  smallest = jax.nn.one_hot(jnp.argmin(jnp.diagonal(scaled)), size, dtype=gram.dtype)
  lower = jnp.mean(scaled) < jnp.min(jnp.diagonal(scaled))
  start = jnp.where(lower, uniform, smallest)
  product = jnp.matmul(scaled, start, precision="highest")
  one = jnp.ones((), gram.dtype)
  init = (start, product, start, product, one, jnp.zeros((), jnp.int32))
  weights, product, *_, iterations = jax.lax.while_loop(unsolved, body, init)
  value, gap = certificate(weights, product)
  weights = jnp.where(finite, weights, jnp.nan)
  return MinNormSolution(weights, value * scale, gap * scale, iterations)


def _dot(first, second):
  return jnp.vdot(first, second, precision="highest")


def _centred_norm_bound(gram):
  """An upper bound on ||P G P||_2 that exceeds it by at most K^(1/32)."""
  centred = gram - gram.mean(0, keepdims=True)
  centred = centred - centred.mean(1, keepdims=True)
  # ||M|| <= ||M^32||_F^(1/32): repeated squaring, rescaled against under/overflow.
  bound, exponent = 1.0, 1.0
  for _ in range(5):
    norm = jnp.linalg.norm(centred)
    norm = jnp.where(norm > 0, norm, 1)
    bound, exponent = bound * norm**exponent, exponent / 2
    centred = centred / norm
    centred = jnp.matmul(centred, centred, precision="highest")
  norm = jnp.linalg.norm(centred)
  return bound * norm**exponent


def _project_simplex(point):
  """Euclidean projection on the simplex (Duchi et al., 2008, figure 1)."""
  ordered = jnp.sort(point, descending=True)
  counts = jnp.arange(1, len(point) + 1, dtype=point.dtype)
  thresholds = (jnp.cumsum(ordered) - 1) / counts
  support = jnp.sum(ordered > thresholds)
  projected = jnp.maximum(point - thresholds[support - 1], 0)
  return projected / jnp.sum(projected)
