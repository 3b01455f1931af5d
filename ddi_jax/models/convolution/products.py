"""Matrix products, and how many images are worked on together."""

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
HALF = "bfloat16"  # A precision: products of bfloat16 factors, summed in float32.


def images_at_once(batch: int, wanted: int) -> int:
  """The largest divisor of the batch within bounds; at least 1.

  All of them where XLA splits the program over devices by itself
  (`jax.set_mesh`): a loop over parts of a batch would gather what is split.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if any(mesh.shape[axis] > 1 for axis in mesh.auto_axes):
    return batch
  return loops.largest_divisor(batch, max(wanted, 1))


def product_over_positions(
  first: jax.Array, second: jax.Array, precision: Any
) -> jax.Array:
  """sum_n first_n second_n' over all but the last axes."""
  first, second = (array.reshape(-1, array.shape[-1]) for array in (first, second))
  return product(first, second, precision, contracted=(0, 0))


def product(
  first: jax.Array, second: jax.Array, precision: Any, contracted: Any = (-1, 0)
) -> jax.Array:
  """Sums over an axis of each, by default a product of matrices."""
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
