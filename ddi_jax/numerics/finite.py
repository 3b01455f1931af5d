"""What stands in for a number that is not finite."""

from typing import Any

import jax
import jax.numpy as jnp


def finite_or(values: jax.Array, substitute: Any) -> jax.Array:
  """The values where they are finite, elsewhere the substitute (an array or a scalar).

  A gradient that is NaN or infinite in one entry (of a square root at 0, say) has
  nothing to say about that entry, and must not spoil the others in a norm.
  """
  return jnp.where(jnp.isfinite(values), values, substitute)
