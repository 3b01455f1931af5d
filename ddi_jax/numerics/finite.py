"""Substitutes for numbers and derivatives that are not finite."""

from typing import Any

import jax
import jax.numpy as jnp


def finite_or(values: jax.Array, substitute: Any) -> jax.Array:
  """The values where they are finite, otherwise the substitute.

  The substitute is an array or a scalar.  A gradient can be NaN or infinite in one
  entry, for example that of a square root at 0.  It then carries no information about
  this entry, and must not spoil the other entries through a norm.
  """
  return jnp.where(jnp.isfinite(values), values, substitute)


def square_root(values: jax.Array) -> jax.Array:
  """The square root of values >= 0, with derivative 0 at 0 instead of infinity."""
  return jnp.where(values == 0, 0, jnp.sqrt(jnp.where(values == 0, 1, values)))
