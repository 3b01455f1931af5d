"""The loop-friendly convolution against a plain sum, in value and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from platforms import compiling_for
import pytest
from rounding import assert_sums_agree

from ddi_jax.models import conv_general_dilated
from ddi_jax.models.convolution import kernel_gradient

NUMBERS = ("NHWC", "HWIO", "NHWC")


def reference_conv(inputs, kernel, strides, padding, dimension_numbers):
  """A sum over kernel positions: jax's own gradient is wrong for wide padding.

  (XLA's CPU backend reads past the array where that gradient needs negative padding.)
  """
  del dimension_numbers
  if isinstance(padding, str):
    sizes = inputs.shape[1:3], kernel.shape[:2]
    padding = jax.lax.padtype_to_pads(*sizes, strides, padding)
  padded = jnp.pad(inputs, ((0, 0), *padding, (0, 0)))
  out = [
    (size - window) // stride + 1
    for size, window, stride in zip(
      padded.shape[1:3], kernel.shape[:2], strides, strict=True
    )
  ]
  total = 0
  for row, column in np.ndindex(*kernel.shape[:2]):
    seen = padded[
      :,
      row : row + strides[0] * (out[0] - 1) + 1 : strides[0],
      column : column + strides[1] * (out[1] - 1) + 1 : strides[1],
    ]
    total += seen @ kernel[row, column]
  return total


def value_and_gradients(conv, inputs, kernel, strides, padding, **options):
  """The output, and the gradients of its sum with weights between -1 and 1.

  Each is one sum of products, so that its rounding is known.
  """

  def loss(inputs, kernel):
    out = conv(inputs, kernel, strides, padding, dimension_numbers=NUMBERS, **options)
    weights = jnp.cos(jnp.arange(out.size)).reshape(out.shape)
    return jnp.sum(weights * out), out

  compute = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  (_, out), gradients = compute(inputs, kernel)
  return out, *gradients


def assert_right(inputs_shape, kernel_shape, strides, padding):
  inputs = jax.random.normal(jax.random.key(0), inputs_shape)
  kernel = jax.random.normal(jax.random.key(1), kernel_shape)
  arguments = (inputs, kernel, strides, padding)
  found = value_and_gradients(conv_general_dilated, *arguments)
  expected = value_and_gradients(reference_conv, *arguments)
  *window, in_channels, out_channels = kernel_shape
  window = math.prod(window)
  positions = math.prod(expected[0].shape[:3])
  terms = (window * in_channels, window * out_channels, positions)
  for ours, theirs, count in zip(found, expected, terms, strict=True):
    assert_sums_agree(ours, theirs, count)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("window", "channels"), [((1, 1), 2), ((3, 3), 9), ((2, 4), 2), ((2, 4), 9)]
)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize(
  "padding", ["SAME", "VALID", ((1, 2), (0, 1)), ((3, 0), (3, 3))]
)
def test_values_and_gradients(channels, window, strides, padding):
  assert_right((2, 7, 8, channels), (*window, channels, 5), strides, padding)


def small_case():
  inputs = jax.random.normal(jax.random.key(2), (2, 2, 5, 5, 3))
  kernels = jax.random.normal(jax.random.key(3), (2, 3, 3, 3, 4))
  return inputs, kernels


def plain(inputs, kernel):
  return conv_general_dilated(inputs, kernel, (2, 1), "SAME")


def test_forward_mode_and_its_gradient():
  (inputs, tangent), (kernel, kernel_tangent) = small_case()

  def slope(conv, inputs, kernel):
    def out(inputs, kernel):
      return conv(inputs, kernel, (2, 1), "SAME", dimension_numbers=NUMBERS) ** 2

    tangents = (tangent, kernel_tangent)
    return jnp.sum(jax.jvp(out, (inputs, kernel), tangents)[1] ** 2)

  found, expected = (
    jax.jit(jax.value_and_grad(lambda x, k, c=conv: slope(c, x, k), (0, 1)))(
      inputs, kernel
    )
    for conv in (conv_general_dilated, reference_conv)
  )
  # The output and its tangent (3 x 3 x 3 terms each), then the sum of 2 x 3 x 5 x 4.
  assert_sums_agree(found, expected, 27 + 27 + 120)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_is_one_after_the_other(axes):
  inputs, kernels = small_case()
  arguments = [
    array if axis == 0 else array[0]
    for array, axis in zip((inputs, kernels), axes, strict=True)
  ]

  def gradients(inputs, kernel):
    return jax.grad(lambda *pair: jnp.sum(plain(*pair) ** 2), (0, 1))(inputs, kernel)

  for fn in (plain, gradients):
    found = jax.vmap(fn, axes)(*arguments)
    for index in range(2):
      one = [
        array[index] if axis == 0 else array
        for array, axis in zip(arguments, axes, strict=True)
      ]
      ours = jax.tree.map(lambda leaf, index=index: leaf[index], found)
      # The output has 3 x 3 x 3 terms, its transposes 3 x 3 x 4 and 2 x 3 x 5.
      assert_sums_agree(ours, fn(*one), 27 + 36)


@pytest.mark.slow
@pytest.mark.parametrize(
  "shape", [(1, 3), (3, 16), (3, 40), (16, 16), (12, 3), (9, 70)]
)
@pytest.mark.parametrize("width", [6, 8])
def test_output_columns_together(shape, width):
  """However many columns are computed as one."""
  assert_right((2, 4, width, shape[0]), (3, 3, *shape), (1, 1), "SAME")


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_kernel_gradient_of_some_images_at_a_time(strides, monkeypatch):
  monkeypatch.setattr(kernel_gradient, "CACHE_BYTES", 1)
  assert_right((300, 3, 4, 8), (2, 2, 8, 3), strides, "SAME")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("kernel_shape", "strides", "padding"),
  [
    ((3, 3, 32, 5), (1, 1), [(1, 1), (1, 1)]),
    ((3, 2, 32, 5), (1, 1), [(0, 1), (2, 1)]),
    ((3, 3, 32, 5), (2, 2), [(1, 1), (1, 1)]),
    ((1, 1, 32, 5), (2, 2), [(0, 0), (0, 0)]),
    ((3, 3, 2, 32), (1, 1), "SAME"),
  ],
)
def test_products_of_bfloat16(kernel_shape, strides, padding):
  inputs = jax.random.normal(jax.random.key(0), (2, 7, 8, kernel_shape[2]))
  kernel = jax.random.normal(jax.random.key(1), kernel_shape) / 30
  arguments = (inputs, kernel, strides, padding)
  with jax.default_matmul_precision("bfloat16"):
    rounded = value_and_gradients(conv_general_dilated, *arguments)
  expected = value_and_gradients(reference_conv, *arguments)
  errors = []
  for ours, theirs in zip(rounded, expected, strict=True):
    assert ours.dtype == jnp.float32
    errors.append(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))
  assert 1e-5 < max(errors) < 2e-2


@pytest.mark.parametrize(
  "options",
  [{"feature_group_count": 2}, {"rhs_dilation": (2, 2)}, {"lhs_dilation": (2, 1)}],
)
def test_other_convolutions_go_to_lax(options):
  groups = options.get("feature_group_count", 1)
  inputs = jnp.ones((1, 6, 6, 4))
  kernel = jnp.ones((3, 3, 4 // groups, 2))
  arguments = (inputs, kernel, (1, 1), ((1, 1), (1, 1)))
  found = value_and_gradients(conv_general_dilated, *arguments, **options)
  expected = value_and_gradients(jax.lax.conv_general_dilated, *arguments, **options)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_other_backends_use_lax():
  def conv(inputs, kernel):
    return conv_general_dilated(
      inputs, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS
    )

  with compiling_for("gpu"):
    jaxpr = str(jax.make_jaxpr(conv)(jnp.ones((1, 4, 4, 8)), jnp.ones((3, 3, 8, 2))))
  assert "loop_friendly_conv" not in jaxpr
