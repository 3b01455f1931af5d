"""A small convolutional network for digits and MNIST."""

from collections.abc import Sequence

from flax import nnx
import jax

from ddi_jax.checks import check_positive_int
from ddi_jax.models import layers


class SmallConvNet(nnx.Module):
  """Two 3x3 convolutions of `width` and `2 width` channels and two dense layers.

  Args:
    image_shape: (height, width, channels) of the inputs.
    num_classes: C, number of logits.
    mean: mean per channel for inputs in [0, 1]; standardisation is the first layer.
    std: standard deviation per channel.
    width: channels of the first convolution.
    hidden: number of units of the hidden dense layer.
    strides: strides of the two convolutions.
    activation: one of `layers.ACTIVATIONS`.
    normalization: "none", "group" or "batch"; applied after each convolution.
    norm_groups: number of groups for "group".
    rngs: random streams, which must include "params".
  """

  def __init__(
    self,
    image_shape: tuple[int, int, int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    width: int = 16,
    hidden: int = 64,
    strides: Sequence[int] = (1, 2),
    activation: str = "relu",
    normalization: str = "none",
    norm_groups: int = 8,
    rngs: nnx.Rngs,
  ) -> None:
    layers.check_settings(
      width=width,
      activation=activation,
      normalization=normalization,
      norm_groups=norm_groups,
    )
    check_positive_int("hidden", hidden)
    if len(strides) != 2 or not all(isinstance(s, int) and s >= 1 for s in strides):
      raise ValueError(f"strides must be two integers >= 1, got {strides!r}.")
    height, breadth, channels = image_shape
    self.standardize = layers.Standardize(mean, std)
    self.activation = layers.ACTIVATIONS[activation]
    first, second = strides
    self.conv1 = layers.conv(
      channels, width, 3, first, normalization=normalization, rngs=rngs
    )
    self.norm1 = layers.norm(normalization, width, norm_groups, rngs=rngs)
    self.conv2 = layers.conv(
      width, 2 * width, 3, second, normalization=normalization, rngs=rngs
    )
    self.norm2 = layers.norm(normalization, 2 * width, norm_groups, rngs=rngs)
    for stride in strides:
      height, breadth = -(-height // stride), -(-breadth // stride)
    flat = height * breadth * 2 * width
    self.hidden = nnx.Linear(flat, hidden, kernel_init=layers.he_normal, rngs=rngs)
    self.logits = nnx.Linear(hidden, num_classes, rngs=rngs)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """`[B, H, W, C]` in [0, 1] -> logits `[B, num_classes]`."""
    x = self.standardize(inputs)
    x = self.activation(self.norm1(self.conv1(x)))
    x = self.activation(self.norm2(self.conv2(x)))
    x = self.activation(self.hidden(x.reshape(len(x), -1)))
    return self.logits(x)
