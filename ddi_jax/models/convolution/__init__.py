"""A 2-d convolution whose gradients run at full speed in a loop on a CPU.

Inside a `while` loop, XLA's CPU backend runs a convolution fast only if it has one
canonical form: `NHWC x HWIO -> NHWC`, no reversed window, no dilation (jax-ml/jax issue
12868).  The gradients that JAX derives for a convolution do not have that form, so a
loop over attack steps or restarts runs many times slower.  This package writes both
gradients as canonical convolutions or as matrix products, whichever was measured to be
faster (docs/benchmarks.md).  The values equal those of
`jax.lax.conv_general_dilated` up to rounding.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
import numpy as np

from ddi_jax.models.convolution.primitive import loop_friendly_conv
from ddi_jax.models.convolution.products import CANONICAL
from ddi_jax.numerics import platform


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  *,
  dimension_numbers: Any = CANONICAL,
  precision: lax.PrecisionLike = None,
  **options: Any,
) -> jax.Array:
  """`jax.lax.conv_general_dilated`, with gradients that are fast inside CPU loops.

  It takes the same arguments.  `dimension_numbers` are NHWC, HWIO, NHWC by default.

  On the CPU, a plain 2-d `NHWC x HWIO -> NHWC` convolution gets gradients that are fast
  inside loops.  Any other convolution is passed to `jax.lax.conv_general_dilated`
  unchanged.

  The plain convolution on the CPU also honours the precision "bfloat16", given here or
  by `jax.default_matmul_precision`.  It then rounds factors to bfloat16 where that
  saves time (on processors with AMX or AVX512-BF16), and keeps sums and results in
  float32.

  Example:
    >>> import jax.numpy as jnp
    >>> from ddi_jax import models
    >>> images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    >>> models.conv_general_dilated(images, kernel, (2, 2), "SAME").shape
    (2, 4, 4, 4)
  """
  plain = (
    platform.target() == "cpu"
    and lhs.ndim == 4
    and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    == lax.conv_dimension_numbers(lhs.shape, rhs.shape, CANONICAL)
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
  # Read the default now, because the gradients may be traced outside its context.
  if precision is None:
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], strides, padding)
  pads = tuple((int(low), int(high)) for low, high in padding)
  return loop_friendly_conv(lhs, rhs, strides, pads, precision)


def _is_default(option: Any) -> bool:
  """Whether a dilation, group count, dtype or sharding leaves a convolution plain."""
  return option is None or all(size == 1 for size in np.atleast_1d(option))
