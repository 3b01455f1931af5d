"""The gradient of a convolution in its kernel, by matrix products."""

import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from ddi_jax.models.convolution.products import (
  CACHE_BYTES,
  FEW_CHANNELS,
  Pads,
  Strides,
  images_at_once,
  product_over_positions,
)


def kernel_gradient(
  inputs: jax.Array,
  cotangent: jax.Array,
  kernel_shape: tuple[int, ...],
  strides: Strides,
  pads: Pads,
  precision: Any,
) -> jax.Array:
  """The gradient in the kernel, summed over groups of images.

  The groups are small, so that copies of the images stay in the cache.
  """
  batch, *image = inputs.shape
  copied = 4 * (math.prod(image) + kernel_shape[0] * math.prod(cotangent.shape[1:]))
  wanted = max(CACHE_BYTES, 16 * math.prod(kernel_shape)) // copied
  at_once = images_at_once(batch, wanted)

  def of_some(images: jax.Array, gradient: jax.Array) -> jax.Array:
    if strides[0] == 1 and image[-1] >= FEW_CHANNELS:
      return _kernel_gradient_by_column(
        images, gradient, kernel_shape, strides, pads, precision
      )
    return _kernel_gradient_by_row(
      images, gradient, kernel_shape, strides, pads, precision
    )

  if at_once == batch:
    return of_some(inputs, cotangent)
  parts = tuple(
    array.reshape(-1, at_once, *array.shape[1:]) for array in (inputs, cotangent)
  )
  total = jnp.zeros(kernel_shape, jnp.result_type(inputs, cotangent))
  return lax.scan(lambda sum_, part: (sum_ + of_some(*part), None), total, parts)[0]


def _kernel_gradient_by_column(
  inputs: jax.Array,
  cotangent: jax.Array,
  kernel_shape: tuple[int, ...],
  strides: Strides,
  pads: Pads,
  precision: Any,
) -> jax.Array:
  """One product per kernel column, with the output gradients for all kernel rows."""
  height, width, channels, features = kernel_shape
  rows = inputs.shape[1]
  zero = jnp.zeros((), cotangent.dtype)
  shifted = []
  for row in range(height):
    before = row - pads[0][0]
    edges = (before, rows - cotangent.shape[1] - before, 0)
    shifted.append(lax.pad(cotangent, zero, ((0, 0, 0), edges, (0,) * 3, (0,) * 3)))
  gradient = jnp.concatenate(shifted, axis=-1).reshape(-1, height * features)
  products = [
    product_over_positions(seen, gradient, precision)
    for seen in _columns_seen(inputs, cotangent, width, strides, pads)
  ]
  by_column = jnp.stack(products).reshape(width, channels, height, features)
  return by_column.transpose(2, 0, 1, 3)


def _kernel_gradient_by_row(
  inputs: jax.Array,
  cotangent: jax.Array,
  kernel_shape: tuple[int, ...],
  strides: Strides,
  pads: Pads,
  precision: Any,
) -> jax.Array:
  """One product per kernel row, of the inputs that it multiplies and the gradient."""
  height, width, channels, features = kernel_shape
  padded = lax.pad(
    inputs,
    jnp.zeros((), inputs.dtype),
    ((0, 0, 0), (*pads[0], 0), (0, 0, 0), (0, 0, 0)),
  )
  span = strides[0] * (cotangent.shape[1] - 1) + 1
  products = []
  for row in range(height):
    rows = lax.slice_in_dim(padded, row, row + span, strides[0], axis=1)
    seen = jnp.concatenate(
      _columns_seen(rows, cotangent, width, strides, pads), axis=-1
    )
    products.append(product_over_positions(seen, cotangent, precision))
  return jnp.stack(products).reshape(height, width, channels, features)


def _columns_seen(
  inputs: jax.Array, cotangent: jax.Array, width: int, strides: Strides, pads: Pads
) -> list[jax.Array]:
  """The inputs that each kernel column multiplies, `[B, rows, out columns, C]`."""
  padded = lax.pad(
    inputs,
    jnp.zeros((), inputs.dtype),
    ((0, 0, 0), (0, 0, 0), (*pads[1], 0), (0, 0, 0)),
  )
  span = strides[1] * (cotangent.shape[2] - 1) + 1
  return [
    lax.slice_in_dim(padded, column, column + span, strides[1], axis=2)
    for column in range(width)
  ]
