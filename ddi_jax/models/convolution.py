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
import math
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp
import numpy as np

from ddi_jax import loops

_CANONICAL = ("NHWC", "HWIO", "NHWC")
_FEW_CHANNELS = 8
_MANY_FEATURES = 256  # Above, one product of matrices is the faster input gradient.
_CACHE_BYTES = 2**21
_HALF = "bfloat16"  # A precision: products of bfloat16 factors, summed in float32.
_HALF_CHANNELS = 32


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

  Takes the same arguments; `dimension_numbers` are NHWC, HWIO, NHWC by default.

  On the CPU, a plain 2-d `NHWC x HWIO -> NHWC` convolution gets gradients that are
  fast inside loops; anything else goes to `jax.lax.conv_general_dilated` unchanged.
  There the precision "bfloat16", given here or by `jax.default_matmul_precision`, is
  not ignored: factors are rounded to bfloat16 where that saves time (processors with
  AMX or AVX512-BF16), sums and results are float32.
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
  if precision is None:  # Now: the gradients may be traced outside its context.
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
  pads = tuple((int(low), int(high)) for low, high in padding)
  return _loop_friendly_conv(lhs, rhs, strides, pads, precision)


def _is_default(option):
  """Whether a dilation, group count, dtype or sharding leaves a convolution plain."""
  return option is None or all(size == 1 for size in np.atleast_1d(option))


def _conv(lhs, rhs, strides, pads, precision):
  if rhs.shape[:2] == (1, 1) and not any(map(any, pads)):
    return _product(lhs[:, :: strides[0], :: strides[1]], rhs[0, 0], precision)
  # Negative padding is cropped first: XLA's CPU convolution reads past the array.
  crops = tuple((min(low, 0), min(high, 0), 0) for low, high in pads)
  if any(map(any, crops)):
    no_crop = ((0, 0, 0),)
    lhs = lax.pad(lhs, jnp.zeros((), lhs.dtype), no_crop + crops + no_crop)
    pads = tuple((max(low, 0), max(high, 0)) for low, high in pads)
  if precision == _HALF and strides == (1, 1) and lhs.shape[3] >= _HALF_CHANNELS:
    return _conv_as_products(lhs, rhs, pads, precision)
  few = lhs.shape[3] < _FEW_CHANNELS
  if rhs.shape[1] > 1 and (strides == (1, 1) or few):
    out_width = (lhs.shape[2] + sum(pads[1]) - rhs.shape[1]) // strides[1] + 1
    together = _columns_together(lhs.shape[3], rhs.shape[3], out_width)
    if together > 1:
      return _conv_of_columns(lhs, rhs, strides, pads, precision, together)
  return lax.conv_general_dilated(
    lhs, rhs, strides, pads, dimension_numbers=_CANONICAL, precision=precision
  )


def _columns_together(channels, features, out_width):
  """How many output columns to compute as one: a power of 2 that divides their number.

  As measured: so many that the features become 32, or 64 for few channels.
  """
  wanted = (64 if channels < _FEW_CHANNELS else 32) // features
  return max(
    size for size in (1, 2, 4, 8) if out_width % size == 0 and size <= max(wanted, 1)
  )


def _conv_of_columns(lhs, rhs, strides, pads, precision, together):
  """A convolution whose features are those of several neighbouring output columns.

  Several times as many products, but with enough features to fill the vector units.
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
    dimension_numbers=_CANONICAL,
    precision=precision,
  )
  batch, rows, blocks, _ = columns.shape
  return columns.reshape(batch, rows, blocks * together, features)


def _conv_as_products(lhs, rhs, pads, precision):
  """One product gives what each input row adds to all output rows; then their sum."""
  height, width, channels, features = rhs.shape
  zero = jnp.zeros((), lhs.dtype)
  padded = lax.pad(lhs, zero, ((0, 0, 0), (*pads[0], 0), (*pads[1], 0), (0, 0, 0)))
  rows, columns = (
    size - window + 1
    for size, window in zip(padded.shape[1:3], (height, width), strict=True)
  )
  kernel = rhs.transpose(1, 2, 0, 3).reshape(width * channels, height * features)

  def of_some(images):
    seen = jnp.concatenate(
      [images[:, :, start : start + columns] for start in range(width)], axis=-1
    )
    shares = _product(seen, kernel, precision)
    return sum(
      shares[:, row : row + rows, :, row * features : (row + 1) * features]
      for row in range(height)
    )

  copied = padded.shape[1] * columns * (2 * width * channels + 4 * height * features)
  size = _images_at_once(len(lhs), _CACHE_BYTES * 2 // copied)
  return loops.map_groups(of_some, padded, size)


def _images_at_once(batch, wanted):
  """The largest divisor of the batch within bounds."""
  return max(
    size
    for size in range(1, batch + 1)
    if batch % size == 0 and (size == 1 or size <= wanted)
  )


def _loop_friendly_conv(inputs, kernel, strides, pads, precision):
  settings = {"strides": strides, "pads": pads, "precision": precision}
  # The primitive holds its own program, where `loops.resolve` looks for convolutions.
  program = jax.make_jaxpr(functools.partial(_conv, **settings))(inputs, kernel)
  return _conv_p.bind(inputs, kernel, program=program, **settings)


def _run(inputs, kernel, *, program, **settings):
  del settings
  (out,) = core.jaxpr_as_fun(program)(inputs, kernel)
  return out


def _input_gradient(cotangent, inputs, kernel, *, strides, pads, precision, program):
  del program
  shape = inputs.aval.shape
  if strides == (1, 1) and shape[-1] >= _FEW_CHANNELS:
    return _input_gradient_as_conv(cotangent, kernel, shape, pads, precision)
  if kernel.shape[3] <= _MANY_FEATURES and all(
    map(_has_phases, kernel.shape[:2], strides, pads)
  ):
    return _input_gradient_by_phase(cotangent, kernel, shape, strides, pads, precision)
  return _input_gradient_as_sum(cotangent, kernel, shape, strides, pads, precision)


def _transposed_for_kernel(
  cotangent, inputs, kernel, *, strides, pads, precision, program
):
  del program
  shape = kernel.aval.shape
  return _kernel_gradient(inputs, cotangent, shape, strides, pads, precision)


def _batched(arguments, axes, *, strides, pads, precision, program):
  """More images where only they are batched; else one convolution after the other."""
  del program
  inputs, kernel = (
    array if axis is None else jnp.moveaxis(array, axis, 0)
    for array, axis in zip(arguments, axes, strict=True)
  )

  def one(inputs, kernel):
    return _loop_friendly_conv(inputs, kernel, strides, pads, precision)

  if axes[1] is None:
    out = one(inputs.reshape(-1, *inputs.shape[2:]), kernel)
    return out.reshape(*inputs.shape[:2], *out.shape[1:]), 0
  if axes[0] is None:
    return lax.map(lambda kernel: one(inputs, kernel), kernel), 0
  return lax.map(lambda pair: one(*pair), (inputs, kernel)), 0


# Linear in either argument, so JAX needs to know no more than the two transposes.
_conv_p = core.Primitive("loop_friendly_conv")
_conv_p.def_impl(_run)
_conv_p.def_abstract_eval(lambda *_, program, **settings: program.out_avals[0])
ad.defbilinear(_conv_p, _input_gradient, _transposed_for_kernel)
batching.primitive_batchers[_conv_p] = _batched
mlir.register_lowering(_conv_p, mlir.lower_fun(_run, multiple_results=False))


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


def _has_phases(window, stride, pads):
  """Whether `_input_gradient_by_phase` saves work, and is written for such pads."""
  return 1 < stride <= window and pads[0] >= 0


def _input_gradient_by_phase(cotangent, kernel, shape, strides, pads, precision):
  """One small convolution for all inputs that lie alike between two output positions.

  Input `stride m + phase - low` meets output o through kernel row
  `stride (m - o) + phase`: with phases as features it is an ordinary convolution,
  without inserted zeros, of a kernel that is smaller by the stride.
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
  phases = _conv(cotangent, small, (1, 1), small_pads, precision)
  phases = phases.reshape(-1, heights, widths, *strides, channels)
  total = phases.transpose(0, 1, 3, 2, 4, 5).reshape(
    -1, heights * strides[0], widths * strides[1], channels
  )
  (top, _), (left, _) = pads
  return total[:, top : top + shape[1], left : left + shape[2]]


def _input_gradient_as_sum(cotangent, kernel, shape, strides, pads, precision):
  """Each kernel position's share from one matrix product, put in place and summed.

  For few channels this is faster than a convolution, which would fill few columns.
  """
  height, width, channels, features = kernel.shape
  columns = kernel.transpose(3, 0, 1, 2).reshape(features, -1)
  shares = _product(cotangent, columns, precision).reshape(
    *cotangent.shape[:3], height, width, channels
  )
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
  """Sums over images, a few at a time: what they are copied to stays in the cache."""
  batch, *image = inputs.shape
  copied = 4 * (math.prod(image) + kernel_shape[0] * math.prod(cotangent.shape[1:]))
  wanted = max(_CACHE_BYTES, 16 * math.prod(kernel_shape)) // copied
  at_once = _images_at_once(batch, wanted)

  def of_some(images, gradient):
    if strides[0] == 1 and image[-1] >= _FEW_CHANNELS:
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
  inputs, cotangent, kernel_shape, strides, pads, precision
):
  """For each kernel column one product with the gradients that all its rows saw."""
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
    _product_over_positions(seen, gradient, precision)
    for seen in _columns_seen(inputs, cotangent, width, strides, pads)
  ]
  by_column = jnp.stack(products).reshape(width, channels, height, features)
  return by_column.transpose(2, 0, 1, 3)


def _kernel_gradient_by_row(inputs, cotangent, kernel_shape, strides, pads, precision):
  """For each kernel row one product of the inputs that it saw and the gradient."""
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
    products.append(_product_over_positions(seen, cotangent, precision))
  return jnp.stack(products).reshape(height, width, channels, features)


def _columns_seen(inputs, cotangent, width, strides, pads):
  """What each column of the kernel meets: arrays `[B, rows, out columns, C]`."""
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


def _product_over_positions(first, second, precision):
  """sum_n first_n second_n' over all but the last axes."""
  first, second = (array.reshape(-1, array.shape[-1]) for array in (first, second))
  return _product(first, second, precision, contracted=(0, 0))


def _product(first, second, precision, contracted=(-1, 0)):
  """Sums over an axis of each, by default a product of matrices."""
  numbers = (((contracted[0] % first.ndim,), (contracted[1],)), ((), ()))
  if precision != _HALF:
    return lax.dot_general(first, second, numbers, precision=precision)
  dtype = jnp.result_type(first, second)
  halves = (array.astype(jnp.bfloat16) for array in (first, second))
  product = lax.dot_general(*halves, numbers, preferred_element_type=jnp.float32)
  return product.astype(dtype)
