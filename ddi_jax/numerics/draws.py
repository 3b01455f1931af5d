"""Random arrays that compile quickly."""

from collections.abc import Callable
from typing import Any

import jax


def draw_flat(
  draw: Callable[..., jax.Array], key: jax.Array, like: jax.Array, **settings: Any
) -> jax.Array:
  """`draw(key, like.shape, like.dtype, **settings)`, drawn as a vector.

  The numbers are the same, bit for bit.  XLA's CPU backend compiles a generator for a
  vector in a quarter of the time that it takes for an array of images, in which every
  number's position is computed from four indices.

  Args:
    draw: `jax.random.uniform`, `normal` and so on.
    key: a key; consumed.
    like: an array of the wanted shape and dtype.
    **settings: further arguments of `draw`.
  """
  return draw(key, (like.size,), like.dtype, **settings).reshape(like.shape)
