"""A 2-d convolution whose gradients run at full speed in a loop on a CPU.

XLA's CPU backend runs a convolution inside a `while` loop fast only if it stands
in one canonical form: `NHWC x HWIO -> NHWC`, no reversed window, no dilation
(jax-ml/jax issue 12868).  The gradients that JAX derives for a convolution are not
in that form, and a loop over attack steps or restarts then runs many times
slower.  Here both gradients are written as canonical convolutions or as matrix
products, whichever was measured to be faster (docs/benchmarks.md); the values are
those of `jax.lax.conv_general_dilated` up to rounding.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

_CANONICAL = ("NHWC", "HWIO", "NHWC")
_FEW_CHANNELS = 8


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  *,
  dimension_numbers: Any = _CANONICAL,
  precision: lax.PrecisionLike = None,
  **options: Any,
) -> jax.Array:
  """`jax.lax.conv_general_dilated`, with gradients that are fast inside CPU loops.

  Takes the same arguments, with two differences: `dimension_numbers` are NHWC, HWIO,
  NHWC by default, and on the CPU only reverse-mode differentiation works (`jax.grad`,
  not `jax.jvp`), as with any `jax.custom_vjp`.

  On the CPU, a plain 2-d `NHWC x HWIO -> NHWC` convolution gets gradients that are
  fast inside loops; anything else goes to `jax.lax.conv_general_dilated` unchanged.
  """
  plain = (
    jax.default_backend() == "cpu"
    and lhs.ndim == 4
    and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _CANONICAL)
    and all(map(_is_default, options.values()))
  )
  if not plain:
    return lax.conv_general_dilated(
      lhs,
      rhs,
      window_strides,
      padding,
      dimension_numbers=dimension_numbers,
      precision=precision,
      **options,
    )
  strides = tuple(window_strides)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
  pads = tuple((int(low), int(high)) for low, high in padding)
  if rhs.shape[:2] == (1, 1) and not any(map(any, pads)):
    pointwise = lhs[:, :: strides[0], :: strides[1]]
    return lax.dot_general(
      pointwise, rhs[0, 0], (((3,), (0,)), ((), ())), precision=precision
    )
  return _loop_friendly_conv(lhs, rhs, strides, pads, precision)


def _is_default(option):
  """Whether a dilation, group count, dtype or sharding leaves a convolution plain."""
  return option is None or all(size == 1 for size in np.atleast_1d(option))


def _conv(lhs, rhs, strides, pads, precision):
  # Negative padding is cropped first: XLA's CPU convolution reads past the array.
  crops = tuple((min(low, 0), min(high, 0), 0) for low, high in pads)
  if any(map(any, crops)):
    no_crop = ((0, 0, 0),)
    lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), no_crop + crops + no_crop)
    pads = tuple((max(low, 0), max(high, 0)) for low, high in pads)
  return lax.conv_general_dilated(
    lhs, rhs, strides, pads, dimension_numbers=_CANONICAL, precision=precision
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _loop_friendly_conv(inputs, kernel, strides, pads, precision):
  return _conv(inputs, kernel, strides, pads, precision)


def _forward(inputs, kernel, strides, pads, precision):
  return _conv(inputs, kernel, strides, pads, precision), (inputs, kernel)


def _backward(strides, pads, precision, residuals, cotangent):
  inputs, kernel = residuals
  if strides == (1, 1) and inputs.shape[-1] >= _FEW_CHANNELS:
    input_gradient = _input_gradient_as_conv(
      cotangent, kernel, inputs.shape, pads, precision
    )
  else:
    input_gradient = _input_gradient_as_sum(
      cotangent, kernel, inputs.shape, strides, pads, precision
    )
  kernel_gradient = _kernel_gradient(
    inputs, cotangent, kernel.shape, strides, pads, precision
  )
  return input_gradient, kernel_gradient


def _input_gradient_as_conv(cotangent, kernel, shape, pads, precision):
  """The output's gradient convolved with the flipped, channel-swapped kernel."""
  input_pads = []
  for size, window, out, (low, _) in zip(
    shape[1:3], kernel.shape[:2], cotangent.shape[1:3], pads, strict=True
  ):
    before = window - 1 - low
    input_pads.append((before, size + window - 1 - out - before))
  flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  return _conv(cotangent, flipped, (1, 1), input_pads, precision)


def _input_gradient_as_sum(cotangent, kernel, shape, strides, pads, precision):
  """Each kernel position's share from one matrix product, put in place and summed.

  With strides, and for few channels, this is faster than a convolution, which would
  run over inserted zeros or fill few columns.
  """
  height, width, channels, features = kernel.shape
  columns = kernel.transpose(3, 0, 1, 2).reshape(features, -1)
  shares = lax.dot_general(
    cotangent, columns, (((3,), (0,)), ((), ())), precision=precision
  ).reshape(*cotangent.shape[:3], height, width, channels)
  zero = jnp.zeros((), shares.dtype)
  total = jnp.zeros(shape, shares.dtype)
  for position in np.ndindex(height, width):
    # Output o holds its share of input `stride * o + position - low`.
    edges = []
    for axis in range(2):
      before = position[axis] - pads[axis][0]
      span = strides[axis] * (cotangent.shape[1 + axis] - 1) + 1
      edges.append((before, shape[1 + axis] - span - before, strides[axis] - 1))
    share = shares[:, :, :, position[0], position[1]]
    total += lax.pad(share, zero, ((0, 0, 0), *edges, (0, 0, 0)))
  return total


def _kernel_gradient(inputs, cotangent, kernel_shape, strides, pads, precision):
  """For each kernel position the product of the inputs it saw and the gradient."""
  edges = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
  padded = lax.pad(inputs, jnp.zeros((), inputs.dtype), edges)
  batch, *out, features = cotangent.shape
  gradient = cotangent.reshape(-1, features)
  products = []
  for row, column in np.ndindex(*kernel_shape[:2]):
    seen = lax.slice(
      padded,
      (0, row, column, 0),
      (
        batch,
        row + strides[0] * (out[0] - 1) + 1,
        column + strides[1] * (out[1] - 1) + 1,
        padded.shape[3],
      ),
      (1, *strides, 1),
    ).reshape(-1, padded.shape[3])
    products.append(
      lax.dot_general(seen, gradient, (((0,), (0,)), ((), ())), precision=precision)
    )
  return jnp.stack(products).reshape(kernel_shape)


_loop_friendly_conv.defvjp(_forward, _backward)
