"""The gradient of a convolution in its inputs, by convolutions or products."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from ddi_jax.models.convolution.forward import convolve
from ddi_jax.models.convolution.products import FEW_CHANNELS, Strides, product

_MANY_FEATURES = 256  # With more features, one matrix product is faster.


def input_gradient(
  cotangent: jax.Array,
  kernel: jax.Array,
  shape: tuple[int, ...],
  strides: Strides,
  pads: Any,
  precision: Any,
) -> jax.Array:
  """The gradient in inputs of this shape, `[B, H, W, C]`."""
  if strides == (1, 1) and shape[-1] >= FEW_CHANNELS:
    return _input_gradient_as_conv(cotangent, kernel, shape, pads, precision)
  if kernel.shape[3] <= _MANY_FEATURES and all(
    map(_has_phases, kernel.shape[:2], strides, pads)
  ):
    return _input_gradient_by_phase(cotangent, kernel, shape, strides, pads, precision)
  return _input_gradient_as_sum(cotangent, kernel, shape, strides, pads, precision)


def _input_gradient_as_conv(
  cotangent: jax.Array,
  kernel: jax.Array,
  shape: tuple[int, ...],
  pads: Any,
  precision: Any,
) -> jax.Array:
  """The output's gradient convolved with the flipped, channel-swapped kernel."""
  input_pads = []
  for size, window, out, (low, _) in zip(
    shape[1:3], kernel.shape[:2], cotangent.shape[1:3], pads, strict=True
  ):
    before = window - 1 - low
    input_pads.append((before, size + window - 1 - out - before))
  flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  return convolve(cotangent, flipped, (1, 1), tuple(input_pads), precision)


def _has_phases(window: int, stride: int, pads: tuple[int, int]) -> bool:
  """Whether `_input_gradient_by_phase` saves work and supports this padding."""
  return 1 < stride <= window and pads[0] >= 0


def _input_gradient_by_phase(
  cotangent: jax.Array,
  kernel: jax.Array,
  shape: tuple[int, ...],
  strides: Strides,
  pads: Any,
  precision: Any,
) -> jax.Array:
  """The gradient by a small convolution, with the inputs' phases as features.

  An input's phase is its position between two output positions.  Output o uses input
  `stride m + phase - low` with kernel row `stride (m - o) + phase`.  With the phases as
  features, the gradient is an ordinary convolution without inserted zeros, and its
  kernel is smaller by the stride.
  """
  channels, features = kernel.shape[2:]
  high = [
    -window % stride for window, stride in zip(kernel.shape, strides, strict=False)
  ]
  whole = jnp.pad(kernel, ((0, high[0]), (0, high[1]), (0, 0), (0, 0)))
  rows, columns = (
    size // stride for size, stride in zip(whole.shape, strides, strict=False)
  )
  split = whole.reshape(rows, strides[0], columns, strides[1], channels, features)
  small = jnp.flip(split, (0, 2)).transpose(0, 2, 5, 1, 3, 4)
  small = small.reshape(rows, columns, features, -1)
  heights, widths = (
    -(-(size + low) // stride)
    for size, stride, (low, _) in zip(shape[1:3], strides, pads, strict=True)
  )
  small_pads = (
    (rows - 1, heights - cotangent.shape[1]),
    (columns - 1, widths - cotangent.shape[2]),
  )
  phases = convolve(cotangent, small, (1, 1), small_pads, precision)
  phases = phases.reshape(-1, heights, widths, *strides, channels)
  total = phases.transpose(0, 1, 3, 2, 4, 5).reshape(
    -1, heights * strides[0], widths * strides[1], channels
  )
  (top, _), (left, _) = pads
  return total[:, top : top + shape[1], left : left + shape[2]]


def _input_gradient_as_sum(
  cotangent: jax.Array,
  kernel: jax.Array,
  shape: tuple[int, ...],
  strides: Strides,
  pads: Any,
  precision: Any,
) -> jax.Array:
  """The kernel positions' shares, from one matrix product, shifted and summed.

  For few channels this is faster than a convolution, which would fill few columns.
  """
  height, width, channels, features = kernel.shape
  columns = kernel.transpose(3, 0, 1, 2).reshape(features, -1)
  shares = product(cotangent, columns, precision).reshape(
    *cotangent.shape[:3], height, width, channels
  )
  zero = jnp.zeros((), shares.dtype)
  total = jnp.zeros(shape, shares.dtype)
  for position in np.ndindex(height, width):
    # The share at output o belongs to input `stride * o + position - low`.
    edges = []
    for axis in range(2):
      before = position[axis] - pads[axis][0]
      span = strides[axis] * (cotangent.shape[1 + axis] - 1) + 1
      edges.append((before, shape[1 + axis] - span - before, strides[axis] - 1))
    share = shares[:, :, :, position[0], position[1]]
    total += lax.pad(share, zero, ((0, 0, 0), *edges, (0, 0, 0)))
  return total
