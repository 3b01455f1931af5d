"""The parts that the image networks share."""

from collections.abc import Callable, Sequence

from flax import nnx
import jax
import jax.numpy as jnp

from ddi_jax.models.convolution import conv_general_dilated

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "relu": jax.nn.relu,
  "celu": jax.nn.celu,
  "silu": jax.nn.silu,
  "gelu": jax.nn.gelu,
  "softplus": jax.nn.softplus,
}
NORMALIZATIONS = ("none", "group", "batch")

he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Standardize(nnx.Module):
  """(x - mean) / std per channel: lets attacks live in the input's own range."""

  def __init__(self, mean: Sequence[float], std: Sequence[float]):
    self.mean = tuple(mean)
    self.std = tuple(std)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """`[B, H, W, C]` -> `[B, H, W, C]`."""
    mean = jnp.asarray(self.mean, inputs.dtype)
    return (inputs - mean) / jnp.asarray(self.std, inputs.dtype)


def conv(
  in_features: int,
  out_features: int,
  size: int,
  stride: int = 1,
  *,
  normalization: str = "none",
  kernel_init=he_normal,
  rngs: nnx.Rngs,
) -> nnx.Conv:
  """A square convolution, padded by `size // 2`; biased unless a norm follows."""
  pad = size // 2
  return nnx.Conv(
    in_features,
    out_features,
    (size, size),
    strides=stride,
    padding=((pad, pad), (pad, pad)),
    use_bias=normalization == "none",
    kernel_init=kernel_init,
    conv_general_dilated=conv_general_dilated,
    rngs=rngs,
  )


def norm(
  normalization: str, features: int, groups: int, *, rngs: nnx.Rngs
) -> Callable[[jax.Array], jax.Array]:
  """BatchNorm (momentum 0.9), GroupNorm with at most `groups` groups, or nothing."""
  if normalization == "none":
    return nnx.identity
  if normalization == "group":
    return nnx.GroupNorm(
      features, num_groups=min(groups, features), epsilon=1e-5, rngs=rngs
    )
  return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, rngs=rngs)
