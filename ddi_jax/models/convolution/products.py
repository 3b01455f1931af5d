"""Matrix products, and the number of images to process at once."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from ddi_jax.numerics import loops

Strides = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]
CANONICAL = ("NHWC", "HWIO", "NHWC")
FEW_CHANNELS = 8
CACHE_BYTES = 2**21
HALF = "bfloat16"  # The precision with bfloat16 factors and float32 sums.


def images_at_once(batch: int, wanted: int) -> int:
  """The largest divisor of `batch` that is at most `wanted`, or 1.

  If XLA splits the program over devices by itself (`jax.set_mesh`), the result is
  `batch`: a loop over parts of the batch would gather what is split.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if any(mesh.shape[axis] > 1 for axis in mesh.auto_axes):
    return batch
  return loops.largest_divisor(batch, max(wanted, 1))


def product_over_positions(
  first: jax.Array, second: jax.Array, precision: Any
) -> jax.Array:
  """sum_n first_n second_n', where n runs over all axes but the last."""
  first, second = (array.reshape(-1, array.shape[-1]) for array in (first, second))
  return product(first, second, precision, contracted=(0, 0))


def product(
  first: jax.Array, second: jax.Array, precision: Any, contracted: Any = (-1, 0)
) -> jax.Array:
  """Contract one axis of each array; by default this is the matrix product."""
  numbers = (((contracted[0] % first.ndim,), (contracted[1],)), ((), ()))
  if precision != HALF:
    return lax.dot_general(first, second, numbers, precision=precision)
  dtype = jnp.result_type(first, second)
  product = lax.dot_general(
    first.astype(jnp.bfloat16),
    second.astype(jnp.bfloat16),
    numbers,
    preferred_element_type=jnp.float32,
  )
  return product.astype(dtype)
