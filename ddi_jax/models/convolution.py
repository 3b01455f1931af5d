"""A 2-d convolution whose gradients run at full speed in a loop on a CPU.

XLA's CPU backend runs a convolution inside a `while` loop fast only if it stands
in one canonical form: `NHWC x HWIO -> NHWC`, no reversed window, no dilation
(jax-ml/jax issue 12868).  The gradients that JAX derives for a convolution are not
in that form, and a loop over attack steps or restarts then runs 5 to 30 times
slower.  Here both gradients are written as canonical convolutions; the values are
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
  """Drop-in replacement for `jax.lax.conv_general_dilated` (same keyword arguments).

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
  # Undo the stride: zeros between the output's gradients.
  interior = ((0, 0, 0), *((0, 0, s - 1) for s in strides), (0, 0, 0))
  dilated = lax.pad(cotangent, jnp.zeros((), cotangent.dtype), interior)
  # dL/dx[p] = sum_k w[k] g[p + pad_low - k]: a correlation with the flipped kernel,
  # padded so that the result has the input's size.
  input_pads, kernel_pads = [], []
  for size, window, out, (low, _) in zip(
    inputs.shape[1:3], kernel.shape[:2], dilated.shape[1:3], pads, strict=True
  ):
    before = window - 1 - low
    input_pads.append((before, size + window - 1 - out - before))
    # dL/dw[k] = sum_p g[p] x[p + k - pad_low]: x slides over g as a kernel.
    kernel_pads.append((low, out + window - 1 - size - low))
  flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  input_gradient = _conv(dilated, flipped, (1, 1), input_pads, precision)
  kernel_gradient = _conv(
    inputs.transpose(3, 1, 2, 0),
    dilated.transpose(1, 2, 0, 3),
    (1, 1),
    kernel_pads,
    precision,
  ).transpose(1, 2, 0, 3)
  return input_gradient, kernel_gradient


_loop_friendly_conv.defvjp(_forward, _backward)
