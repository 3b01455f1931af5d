"""Wide residual networks for 32x32 images (Zagoruyko and Komodakis, 2016)."""

from collections.abc import Sequence

from flax import nnx
import jax

from ddi_jax.checks import check_choice, check_positive_int
from ddi_jax.models import layers
from ddi_jax.models.resnet import PreActBlock, stages_of_blocks


class WideResNet(nnx.Module):
  """WRN-depth-widening, with pre-activation blocks: WRN-28-10 by default.

  Args:
    image_shape: (height, width, channels) of the inputs.
    num_classes: C, number of logits.
    mean: mean per channel for inputs in [0, 1]; standardisation is the first layer.
    std: standard deviation per channel.
    depth: 6 n + 4, at most 1000, for n >= 1 blocks in each of the three stages.
    widening: an integer >= 1; the stages have 1, 2 and 4 times `widening * width`
      channels.
    width: channels of the stem, 16 in the paper.
    activation: one of `layers.ACTIVATIONS`.
    normalization: "none", "group" or "batch".
    norm_groups: number of groups for "group"; must divide `width`.
    padding: padding of the convolutions with stride 2: "symmetric", as in PyTorch
      definitions, or "same", as in DeepMind's definition (Gowal et al., 2020) and those
      derived from it.
    rngs: random streams, which must include "params".

  Raises:
    ValueError: for a depth, widening or padding that is not allowed.
  """

  def __init__(
    self,
    image_shape: tuple[int, int, int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    depth: int = 28,
    widening: int = 10,
    width: int = 16,
    activation: str = "relu",
    normalization: str = "batch",
    norm_groups: int = 8,
    padding: str = "symmetric",
    rngs: nnx.Rngs,
  ) -> None:
    if not 10 <= depth <= 1000 or depth % 6 != 4:
      raise ValueError(
        f"depth must be 6 n + 4 with n >= 1, and at most 1000, got {depth!r}."
      )
    check_positive_int("widening", widening)
    check_choice("padding", padding, layers.PADDINGS)
    layers.check_settings(
      width=width,
      activation=activation,
      normalization=normalization,
      norm_groups=norm_groups,
    )
    self.standardize = layers.Standardize(mean, std)
    self.activation = layers.ACTIVATIONS[activation]
    self.padding = padding
    self.stem = layers.conv(
      image_shape[-1], width, 3, normalization=normalization, rngs=rngs
    )
    features = 4 * widening * width
    self.blocks = stages_of_blocks(
      PreActBlock,
      width,
      (features // 4, features // 2, features),
      [(depth - 4) // 6] * 3,
      activation=activation,
      norm=(normalization, norm_groups),
      padding=padding,
      rngs=rngs,
    )
    self.norm = layers.norm(normalization, features, norm_groups, rngs=rngs)
    self.logits = nnx.Linear(features, num_classes, rngs=rngs)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """`[B, H, W, C]` in [0, 1] -> logits `[B, num_classes]`."""
    x = self.stem(self.standardize(inputs))
    for block in self.blocks:
      x = block(x)
    x = self.activation(self.norm(x))
    return self.logits(x.mean(axis=(1, 2)))
