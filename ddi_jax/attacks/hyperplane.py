"""The nearest point of a hyperplane inside a box, in l_inf, l2 and l1."""

from typing import Any

import jax
import jax.numpy as jnp

from ddi_jax.numerics.thresholds import largest_threshold
from ddi_jax.threat_models import Bounds


def displacement(
  norm: str,
  points: jax.Array,
  normals: jax.Array,
  values: jax.Array,
  bounds: Bounds,
) -> jax.Array:
  """The smallest moves in the box that bring linear functions to zero.

    minimise |d| subject to values + <normals, d> = 0 and points + d in the box

  (Croce and Hein, 2020, "Minimally distorted adversarial examples", section 2.1).  The
  result is exact up to rounding.  For l_inf and l2 every coordinate moves until it
  meets the wall: for l_inf all at the same speed, for l2 at the speed of its normal.
  The time is found by Newton steps on a concave, piecewise linear function, which end
  after finitely many steps.  For l1 the coordinates move one after another, those with
  the largest normals first.

  Args:
    norm: "linf", "l2" or "l1".
    points: `[B, ...]`, in the box.
    normals: `[B, ...]`.
    values: `[B]`.
    bounds: the box `(low, high)`, or None.

  Returns:
    Moves `[B, ...]`.  If the hyperplane misses the box, the move leads to the corner of
    the box that is nearest to the hyperplane.  If the normal is zero, the move is zero.
  """
  flat_points = points.reshape(len(points), -1)
  flat = normals.reshape(len(points), -1)
  # Scale, so that the squares of a saturated network's gradients do not underflow.
  scale = jnp.max(jnp.abs(flat), axis=1, keepdims=True)
  scale = jnp.where(scale > 0, scale, 1)
  needs = jnp.abs(values[:, None]).astype(flat.dtype) / scale
  weights = jnp.abs(flat) / scale
  signs = -jnp.sign(values)[:, None].astype(flat.dtype) * jnp.sign(flat)
  if bounds is None:
    rooms = jnp.full_like(flat, jnp.inf)
  else:
    low, high = bounds
    rooms = jnp.where(signs > 0, high - flat_points, flat_points - low)
  solve = {"linf": _together, "l2": _by_weight, "l1": _in_turn}[norm]
  # A coordinate whose weight underflows beside the largest does not move.
  still = (signs == 0) | (weights == 0)
  lengths = jnp.where(still, 0, solve(weights, rooms, needs))
  return (signs * lengths).reshape(points.shape)


def _together(weights: jax.Array, rooms: jax.Array, needs: jax.Array) -> jax.Array:
  return _until_met(weights, jnp.ones_like(weights), rooms, needs)


def _by_weight(weights: jax.Array, rooms: jax.Array, needs: jax.Array) -> jax.Array:
  return _until_met(weights, weights, rooms, needs)


def _until_met(
  weights: jax.Array, speeds: Any, rooms: jax.Array, needs: jax.Array
) -> jax.Array:
  """Lengths min(t speeds, rooms) for the least t with <weights, lengths> = `needs`."""

  def later(time: jax.Array) -> jax.Array:
    # Never later than the solution, because <weights, lengths> is concave in time.
    reached = time * speeds
    free = reached < rooms
    met = jnp.sum(weights * jnp.where(free, reached, rooms), axis=1, keepdims=True)
    slope = jnp.sum(jnp.where(free, weights * speeds, 0), axis=1, keepdims=True)
    left = jnp.maximum(needs - met, 0)
    return time + jnp.where(slope > 0, left / jnp.where(slope > 0, slope, 1), 0)

  rounding = 1 + 8 * jnp.finfo(weights.dtype).eps
  _, time = jax.lax.while_loop(
    lambda times: jnp.any(times[1] > times[0] * rounding),
    lambda times: (times[1], later(times[1])),
    (zero := jnp.zeros_like(needs), later(zero)),
  )
  return jnp.minimum(time * speeds, rooms)


def _in_turn(weights: jax.Array, rooms: jax.Array, needs: jax.Array) -> jax.Array:
  """A fractional knapsack: lengths of least sum with <weights, lengths> = `needs`."""
  weights = jnp.maximum(weights, 0)
  gains = jnp.where(weights > 0, weights * rooms, 0)

  def total(chosen: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(chosen, gains, 0), axis=1, keepdims=True)

  last = largest_threshold(weights, lambda chosen: total(chosen) >= needs)
  whole, parted = weights > last, (weights == last) & (weights > 0)
  # Coordinates of equal weight move one after the other.
  so_far = jnp.cumsum(jnp.where(parted, gains, 0), axis=1)[:, :-1]
  so_far = jnp.concatenate([jnp.zeros_like(needs), so_far], axis=1)
  wanted = (needs - total(whole) - so_far) / jnp.where(parted, weights, 1)
  parts = jnp.where(parted, jnp.clip(wanted, 0, rooms), 0)
  return jnp.where(whole, rooms, parts)
