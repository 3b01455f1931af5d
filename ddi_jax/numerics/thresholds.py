"""Thresholds for rows of numbers, without sorting them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_UNSIGNED = {16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}


def largest_threshold(
  values: jax.Array, reaches: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """For each row, the greatest t >= 0 for which `reaches(values >= t)` is true.

  The search goes bit by bit: it evaluates `reaches` about as often as the values have
  bits.  On a CPU it takes a tenth of the time of a sort.

  Args:
    values: floating point `[B, n]`, >= 0.
    reaches: masks `[B, n]` -> bool `[B, 1]`, row by row.  If it is true for a mask, it
      must be true for every mask that contains this one.

  Returns:
    t `[B, 1]`, one of the row's values, or 0 if it is true for no t > 0.
  """
  size = jnp.finfo(values.dtype).bits
  unsigned = _UNSIGNED[size]
  # The bits of non-negative floats, read as integers, have the same order.
  bits = jax.lax.bitcast_convert_type(values, unsigned)

  def set_bit(place: Any, threshold: jax.Array) -> jax.Array:
    candidate = threshold | (unsigned(1) << (size - 2 - place).astype(unsigned))
    return jnp.where(reaches(bits >= candidate), candidate, threshold)

  threshold = jax.lax.fori_loop(
    0, size - 1, set_bit, jnp.zeros((len(bits), 1), unsigned)
  )
  return jax.lax.bitcast_convert_type(threshold, values.dtype)


def kth_largest(values: jax.Array, count: int | jax.Array) -> jax.Array:
  """The `count`-th largest of each row, `[B, 1]`.

  Args:
    values: floating point `[B, n]`, >= 0.
    count: an integer in [1, n], or integers `[B, 1]`, one for each row.
  """
  return largest_threshold(
    values, lambda chosen: jnp.sum(chosen, axis=1, keepdims=True) >= count
  )
