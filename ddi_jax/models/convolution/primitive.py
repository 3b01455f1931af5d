"""The convolution as a JAX primitive, whose transposes are the two gradients."""

import functools
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp

from ddi_jax.models.convolution.forward import convolve
from ddi_jax.models.convolution.input_gradient import input_gradient
from ddi_jax.models.convolution.kernel_gradient import kernel_gradient
from ddi_jax.models.convolution.products import Pads, Strides


def loop_friendly_conv(
  inputs: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads, precision: Any
) -> jax.Array:
  """The convolution with its two gradients, at full speed inside CPU loops."""
  settings = {"strides": strides, "pads": pads, "precision": precision}
  # The primitive contains its own program, in which `loops.Traced` looks for
  # convolutions.
  program = jax.make_jaxpr(functools.partial(convolve, **settings))(inputs, kernel)
  return _conv_p.bind(inputs, kernel, program=program, **settings)


def _run(
  inputs: jax.Array, kernel: jax.Array, *, program: Any, **settings: Any
) -> jax.Array:
  del settings
  (out,) = core.jaxpr_as_fun(program)(inputs, kernel)
  return out


def _transposed_for_inputs(
  cotangent: jax.Array,
  inputs: jax.Array,
  kernel: jax.Array,
  *,
  strides: Strides,
  pads: Pads,
  precision: Any,
  program: Any,
) -> jax.Array:
  del program
  return input_gradient(cotangent, kernel, inputs.aval.shape, strides, pads, precision)


def _transposed_for_kernel(
  cotangent: jax.Array,
  inputs: jax.Array,
  kernel: jax.Array,
  *,
  strides: Strides,
  pads: Pads,
  precision: Any,
  program: Any,
) -> jax.Array:
  del program
  shape = kernel.aval.shape
  return kernel_gradient(inputs, cotangent, shape, strides, pads, precision)


def _batched(
  arguments: Any,
  axes: Any,
  *,
  strides: Strides,
  pads: Pads,
  precision: Any,
  program: Any,
) -> tuple[jax.Array, int]:
  """The batching rule for `jax.vmap`.

  If only the images are batched, it makes one convolution of more images.  Otherwise it
  makes one convolution after another.
  """
  del program
  inputs, kernel = (
    array if axis is None else jnp.moveaxis(array, axis, 0)
    for array, axis in zip(arguments, axes, strict=True)
  )

  def one(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    return loop_friendly_conv(inputs, kernel, strides, pads, precision)

  if axes[1] is None:
    out = one(inputs.reshape(-1, *inputs.shape[2:]), kernel)
    return out.reshape(*inputs.shape[:2], *out.shape[1:]), 0
  if axes[0] is None:
    return lax.map(lambda kernel: one(inputs, kernel), kernel), 0
  return lax.map(lambda pair: one(*pair), (inputs, kernel)), 0


# The convolution is linear in each argument, so JAX needs only the two transposes.
_conv_p = core.Primitive("loop_friendly_conv")
_conv_p.def_impl(_run)
_conv_p.def_abstract_eval(lambda *_, program, **settings: program.out_avals[0])
ad.defbilinear(_conv_p, _transposed_for_inputs, _transposed_for_kernel)
batching.primitive_batchers[_conv_p] = _batched
mlir.register_lowering(_conv_p, mlir.lower_fun(_run, multiple_results=False))
