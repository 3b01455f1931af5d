"""Layers that the image networks share."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from ddi_jax.checks import check_array, check_choice, check_positive_int
from ddi_jax.models.convolution import conv_general_dilated
from ddi_jax.numerics.precision import at_least_float32


@jax.custom_jvp
def celu(inputs: jax.Array) -> jax.Array:
  """CELU with alpha = 1 (Barron, 2017): x where x > 0, else exp(x) - 1.

  Equals `jax.nn.celu` up to rounding (6e-8 in float32), and is several times faster on
  a CPU.  The derivative is computed from the output, so nothing else has to be kept.
  """
  return jnp.where(inputs > 0, inputs, jnp.exp(jnp.minimum(inputs, 0)) - 1)


@celu.defjvp
def _celu_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
  output = celu(*primals)
  return output, tangents[0] * jnp.where(output > 0, 1, output + 1)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "relu": jax.nn.relu,
  "celu": celu,
  "silu": jax.nn.silu,
  "gelu": jax.nn.gelu,
  "softplus": jax.nn.softplus,
}
NORMALIZATIONS = ("none", "group", "batch")
PADDINGS = ("symmetric", "same")


def check_settings(
  *,
  width: int,
  activation: str,
  normalization: str = "none",
  norm_groups: int = 1,
) -> None:
  """Raise ValueError for an impossible value of a setting that the networks share."""
  check_positive_int("width", width)
  check_choice("activation", activation, ACTIVATIONS)
  check_choice("normalization", normalization, NORMALIZATIONS)
  check_positive_int("norm_groups", norm_groups)
  if normalization == "group" and width % norm_groups:
    raise ValueError(
      f"norm_groups must be a divisor of width ({width}) with normalization 'group', "
      f"got {norm_groups!r}."
    )


he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Standardize(nnx.Module):
  """(x - mean) / std per channel, as a layer.

  With this layer inside the network, attacks work in the input's original range.
  """

  def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
    self.mean = tuple(mean)
    self.std = tuple(std)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """`[B, H, W, C]` -> `[B, H, W, C]`.

    Raises:
      ValueError: if the last axis of the inputs is not the channel axis.
    """
    check_array("inputs", inputs)
    channels = len(self.mean)
    is_first = channels == 1 and inputs.shape[1:2] == (1,)
    wrong = inputs.shape[-1] != channels and (channels > 1 or is_first)
    if inputs.ndim != 4 or wrong:
      raise ValueError(
        f"inputs must be [B, H, W, {channels}], the channels last, got shape "
        f"{inputs.shape}.  If they come first, pass jnp.moveaxis(inputs, 1, -1); if "
        "there is no channel axis, pass inputs[..., None]."
      )
    mean = jnp.asarray(self.mean, inputs.dtype)
    return (inputs - mean) / jnp.asarray(self.std, inputs.dtype)


def conv(
  in_features: int,
  out_features: int,
  size: int,
  stride: int = 1,
  *,
  normalization: str = "none",
  kernel_init: Any = he_normal,
  padding: str = "symmetric",
  rngs: nnx.Rngs,
) -> nnx.Conv:
  """A convolution with a square kernel, and with a bias unless a norm follows.

  Its output is smaller than its input by the factor `stride`.  Padding "symmetric", as
  in PyTorch, adds `size // 2` pixels on every side.  Padding "same", as in TensorFlow,
  does not pad above and on the left if the stride is 2.
  """
  pad = size // 2
  before = pad if padding == "symmetric" else max(pad - stride + 1, 0)
  return nnx.Conv(
    in_features,
    out_features,
    (size, size),
    strides=stride,
    padding=((before, pad), (before, pad)),
    use_bias=normalization == "none",
    kernel_init=kernel_init,
    conv_general_dilated=conv_general_dilated,
    rngs=rngs,
  )


class GroupNorm(nnx.Module):
  """Group normalisation of images (Wu and He, 2018).

  Computes the same as `nnx.GroupNorm`, several times faster on a CPU.  It first sums
  the moments per channel, and then applies one scale and one offset per image and
  channel.  This saves a pass over the images, both here and in the gradient.

  Args:
    features: C, number of channels.
    num_groups: must divide `features`.
    epsilon: added to the variance.
    rngs: random streams, which must include "params".
  """

  def __init__(
    self, features: int, num_groups: int, epsilon: float = 1e-5, *, rngs: nnx.Rngs
  ) -> None:
    self.num_groups = num_groups
    self.epsilon = epsilon
    self.scale = nnx.Param(nnx.initializers.ones_init()(rngs.params(), (features,)))
    self.bias = nnx.Param(nnx.initializers.zeros_init()(rngs.params(), (features,)))

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """`[B, H, W, C]` -> `[B, H, W, C]`."""
    scale, bias = self.scale[...], self.bias[...]
    group_size = len(scale) // self.num_groups

    def group_mean(images: jax.Array) -> jax.Array:
      means = jnp.mean(images, axis=(1, 2))
      means = means.reshape(-1, self.num_groups, group_size).mean(-1)
      return jnp.repeat(means, group_size, axis=1)

    wide = at_least_float32(inputs)
    mean, square = group_mean(wide), group_mean(jnp.square(wide))
    variance = jnp.maximum(square - jnp.square(mean), 0)
    factor = scale * jax.lax.rsqrt(variance + self.epsilon)
    offset = bias - mean * factor
    dtype = jnp.promote_types(inputs.dtype, scale.dtype)
    factor, offset = (x[:, None, None].astype(dtype) for x in (factor, offset))
    return inputs * factor + offset


def norm(
  normalization: str, features: int, groups: int, *, rngs: nnx.Rngs
) -> Callable[[jax.Array], jax.Array]:
  """BatchNorm (momentum 0.9), GroupNorm with at most `groups` groups, or nothing."""
  if normalization == "none":
    return nnx.identity
  if normalization == "group":
    return GroupNorm(features, min(groups, features), rngs=rngs)
  return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, rngs=rngs)
