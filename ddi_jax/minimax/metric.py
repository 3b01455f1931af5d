"""The metric of the curvature: an inverse Hessian from the last steps (L-BFGS)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddi_jax.numerics.precision import matmul


class Metric(NamedTuple):
  """A limited-memory inverse Hessian H: BFGS updates of `scale` times identity.

  Attributes:
    steps: `[M, D]`, the newest last.
    changes: `[M, D]`, changes of the gradient along the steps.
    curvatures: `[M]`, inner products of steps and changes; 0 marks an empty slot.
    scale: factor of the identity that the updates start from.
  """

  steps: jax.Array
  changes: jax.Array
  curvatures: jax.Array
  scale: jax.Array

  @property
  def is_empty(self) -> jax.Array:
    """Whether H is a multiple of the identity."""
    return ~jnp.any(self.curvatures > 0)


def empty_metric(memory: int, scale: jax.Array, size: int) -> Metric:
  """`scale` times identity, with room for `memory` pairs."""
  pairs = jnp.zeros((memory, size), scale.dtype)
  return Metric(pairs, pairs, jnp.zeros(memory, scale.dtype), scale)


def apply_metric(metric: Metric, gradients: jax.Array) -> jax.Array:
  """Apply H to each of K vectors, `[K, D]`, by the two loops of L-BFGS.

  Nocedal and Wright (2006), "Numerical optimization", algorithm 7.4.
  """
  pairs = (metric.steps, metric.changes, metric.curvatures)

  def newest_first(
    vectors: jax.Array, pair: tuple[jax.Array, ...]
  ) -> tuple[jax.Array, jax.Array]:
    step, change, curvature = pair
    share = _share(matmul(vectors, step), curvature)
    return vectors - share[:, None] * change[None], share

  def oldest_first(
    vectors: jax.Array, pair: tuple[jax.Array, ...]
  ) -> tuple[jax.Array, None]:
    step, change, curvature, share = pair
    difference = share - _share(matmul(vectors, change), curvature)
    return vectors + difference[:, None] * step[None], None

  vectors, shares = jax.lax.scan(newest_first, gradients, pairs, reverse=True)
  vectors, _ = jax.lax.scan(oldest_first, metric.scale * vectors, (*pairs, shares))
  return vectors


def _share(product: jax.Array, curvature: jax.Array) -> jax.Array:
  return jnp.where(curvature > 0, product / jnp.where(curvature > 0, curvature, 1), 0)


def add_pair(
  metric: Metric, step: jax.Array, change: jax.Array, metric_step: jax.Array
) -> Metric:
  """The metric after one more step, damped so that it stays positive definite.

  Args:
    metric: H.
    step: `[D]`.
    change: `[D]`, the change of the gradient.
    metric_step: `[D]`, inverse(H) step.

  Returns:
    The same metric if the step is zero or anything is not finite.
  """
  # Powell (1978): damp the change so that the curvature is at least a fifth of what H
  # expects.
  seen, expected = matmul(step, change), matmul(step, metric_step)
  damped = 0.8 * expected / jnp.where(seen < expected, expected - seen, 1)
  share = jnp.where(seen >= 0.2 * expected, 1, damped)
  change = share * change + (1 - share) * metric_step
  curvature, square = matmul(step, change), matmul(change, change)
  usable = (curvature > 0) & jnp.isfinite(curvature) & (square > 0) & (expected > 0)
  usable &= jnp.isfinite(square)

  def append(old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.concatenate([old[1:], new[None]]) if len(old) else old

  new = Metric(
    append(metric.steps, step),
    append(metric.changes, change),
    append(metric.curvatures, curvature),
    curvature / jnp.where(square > 0, square, 1),
  )
  return jax.tree.map(lambda n, o: jnp.where(usable, n, o), new, metric)
