"""What stands in for a number or a derivative that is not finite."""

from typing import Any

import jax
import jax.numpy as jnp


def finite_or(values: jax.Array, substitute: Any) -> jax.Array:
  """The values where they are finite, elsewhere the substitute (an array or a scalar).

  A gradient that is NaN or infinite in one entry (of a square root at 0, say) has
  nothing to say about that entry, and must not spoil the others in a norm.
  """
  return jnp.where(jnp.isfinite(values), values, substitute)


def square_root(values: jax.Array) -> jax.Array:
  """The square root of values >= 0, whose derivative at 0 is 0 instead of infinite."""
  return jnp.where(values == 0, 0, jnp.sqrt(jnp.where(values == 0, 1, values)))
