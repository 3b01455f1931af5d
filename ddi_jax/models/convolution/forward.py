"""The convolution itself, in the forms that were measured to be fast on a CPU."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from ddi_jax.models.convolution.products import (
  CACHE_BYTES,
  CANONICAL,
  FEW_CHANNELS,
  HALF,
  Pads,
  Strides,
  images_at_once,
  product,
)
from ddi_jax.numerics import loops

_HALF_CHANNELS = 32


def convolve(
  lhs: jax.Array, rhs: jax.Array, strides: Strides, pads: Pads, precision: Any
) -> jax.Array:
  """`lax.conv_general_dilated` in the canonical form, or as matrix products."""
  if rhs.shape[:2] == (1, 1) and not any(map(any, pads)):
    return product(lhs[:, :: strides[0], :: strides[1]], rhs[0, 0], precision)
  # Crop for negative padding first, because XLA's CPU convolution would read past the
  # array.
  crops = tuple((min(low, 0), min(high, 0), 0) for low, high in pads)
  if any(map(any, crops)):
    no_crop = ((0, 0, 0),)
    lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), no_crop + crops + no_crop)
    pads = tuple((max(low, 0), max(high, 0)) for low, high in pads)
  if precision == HALF and strides == (1, 1) and lhs.shape[3] >= _HALF_CHANNELS:
    return _conv_as_products(lhs, rhs, pads, precision)
  few = lhs.shape[3] < FEW_CHANNELS
  if rhs.shape[1] > 1 and (strides == (1, 1) or few):
    out_width = (lhs.shape[2] + sum(pads[1]) - rhs.shape[1]) // strides[1] + 1
    together = _columns_together(lhs.shape[3], rhs.shape[3], out_width)
    if together > 1:
      return _conv_of_columns(lhs, rhs, strides, pads, precision, together)
  return lax.conv_general_dilated(
    lhs, rhs, strides, pads, dimension_numbers=CANONICAL, precision=precision
  )


def _columns_together(channels: int, features: int, out_width: int) -> int:
  """The number of neighbouring output columns to compute as one.

  It is a power of 2 that divides the number of columns.  In measurements, the best
  number was the one that gives 32 features, or 64 if there are few channels.
  """
  wanted = (64 if channels < FEW_CHANNELS else 32) // features
  return max(
    size for size in (1, 2, 4, 8) if out_width % size == 0 and size <= max(wanted, 1)
  )


def _conv_of_columns(
  lhs: jax.Array,
  rhs: jax.Array,
  strides: Strides,
  pads: Pads,
  precision: Any,
  together: int,
) -> jax.Array:
  """A convolution that computes several neighbouring output columns as features.

  It needs several times as many multiplications, but it has enough features to fill the
  vector units.
  """
  height, width, channels, features = rhs.shape
  zero = jnp.zeros((), rhs.dtype)
  no_pad = (0, 0, 0)
  beside = strides[1] * (together - 1)
  kernels = [
    lax.pad(rhs, zero, (no_pad, (before, beside - before, 0), no_pad, no_pad))
    for before in range(0, beside + 1, strides[1])
  ]
  kernel = jnp.stack(kernels, axis=3)
  columns = lax.conv_general_dilated(
    lhs,
    kernel.reshape(height, width + beside, channels, together * features),
    (strides[0], strides[1] * together),
    pads,
    dimension_numbers=CANONICAL,
    precision=precision,
  )
  batch, rows, blocks, _ = columns.shape
  return columns.reshape(batch, rows, blocks * together, features)


def _conv_as_products(
  lhs: jax.Array, rhs: jax.Array, pads: Pads, precision: Any
) -> jax.Array:
  """One matrix product gives what each input row adds to each output row; then sum."""
  height, width, channels, features = rhs.shape
  zero = jnp.zeros((), lhs.dtype)
  padded = lax.pad(lhs, zero, ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
  rows, columns = (
    size - window + 1
    for size, window in zip(padded.shape[1:3], (height, width), strict=True)
  )
  kernel = rhs.transpose(1, 2, 0, 3).reshape(width * channels, height * features)

  def of_some(images: jax.Array) -> jax.Array:
    seen = jnp.concatenate(
      [images[:, :, start : start + columns] for start in range(width)], axis=-1
    )
    shares = product(seen, kernel, precision)
    by_row = [
      shares[:, row : row + rows, :, row * features : (row + 1) * features]
      for row in range(height)
    ]
    return sum(by_row[1:], by_row[0])

  copied = padded.shape[1] * columns * (2 * width * channels + 4 * height * features)
  size = images_at_once(len(lhs), CACHE_BYTES * 2 // copied)
  return loops.map_groups(of_some, padded, size)
