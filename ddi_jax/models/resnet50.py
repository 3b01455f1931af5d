"""ResNet-50 for ImageNet (He et al., 2016a)."""

from collections.abc import Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from ddi_jax.models import layers
from ddi_jax.models.resnet import stages_of_blocks

_BLOCKS = (3, 4, 6, 3)  # Number of blocks in each stage.
_EXPANSION = 4


class BottleneckBlock(nnx.Module):
  """1x1, 3x3 and 1x1 convolutions with norms, plus shortcut, then activation.

  The stride is in the 3x3 convolution, not in the first one ("version 1.5").
  """

  def __init__(
    self,
    in_features: int,
    features: int,
    stride: int,
    activation: str,
    norm: tuple[str, int],
    rngs: nnx.Rngs,
  ) -> None:
    kind, groups = norm
    inner = features // _EXPANSION
    self.activation = layers.ACTIVATIONS[activation]
    self.conv1 = layers.conv(in_features, inner, 1, normalization=kind, rngs=rngs)
    self.norm1 = layers.norm(kind, inner, groups, rngs=rngs)
    self.conv2 = layers.conv(inner, inner, 3, stride, normalization=kind, rngs=rngs)
    self.norm2 = layers.norm(kind, inner, groups, rngs=rngs)
    zero = nnx.initializers.zeros_init()
    self.conv3 = layers.conv(
      inner,
      features,
      1,
      normalization=kind,
      kernel_init=zero if kind == "none" else layers.he_normal,
      rngs=rngs,
    )
    last_norm: Any = layers.norm(kind, features, groups, rngs=rngs)
    if kind != "none":  # The block starts as the identity (Goyal et al., 2017).
      last_norm.scale[...] = jnp.zeros(features)
    self.norm3 = last_norm
    self.projects = stride != 1 or in_features != features
    if self.projects:
      self.shortcut = layers.conv(
        in_features, features, 1, stride, normalization=kind, rngs=rngs
      )
      self.shortcut_norm = layers.norm(kind, features, groups, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.activation(self.norm1(self.conv1(x)))
    y = self.activation(self.norm2(self.conv2(y)))
    y = self.norm3(self.conv3(y))
    shortcut = self.shortcut_norm(self.shortcut(x)) if self.projects else x
    return self.activation(y + shortcut)


class ResNet50(nnx.Module):
  """ResNet-50 with a 7x7 stem and a max pooling.

  Before the final mean, the images are 32 times smaller than the inputs.

  Args:
    image_shape: (height, width, channels) of the inputs.
    num_classes: C, number of logits.
    mean: mean per channel for inputs in [0, 1]; standardisation is the first layer.
    std: standard deviation per channel.
    width: channels of the stem; the stages have 4, 8, 16 and 32 times as many.
    activation: one of `layers.ACTIVATIONS`.
    normalization: "none", "group" or "batch".
    norm_groups: number of groups for "group"; must divide `width`.
    rngs: random streams, which must include "params".
  """

  def __init__(
    self,
    image_shape: tuple[int, int, int],
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    width: int = 64,
    activation: str = "relu",
    normalization: str = "batch",
    norm_groups: int = 8,
    rngs: nnx.Rngs,
  ) -> None:
    layers.check_settings(
      width=width,
      activation=activation,
      normalization=normalization,
      norm_groups=norm_groups,
    )
    self.standardize = layers.Standardize(mean, std)
    self.activation = layers.ACTIVATIONS[activation]
    self.stem = layers.conv(
      image_shape[-1], width, 7, 2, normalization=normalization, rngs=rngs
    )
    self.norm = layers.norm(normalization, width, norm_groups, rngs=rngs)
    stage_features = [_EXPANSION * width * 2**stage for stage in range(4)]
    self.blocks = stages_of_blocks(
      BottleneckBlock,
      width,
      stage_features,
      _BLOCKS,
      activation=activation,
      norm=(normalization, norm_groups),
      rngs=rngs,
    )
    self.logits = nnx.Linear(stage_features[-1], num_classes, rngs=rngs)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """`[B, H, W, C]` in [0, 1] -> logits `[B, num_classes]`."""
    x = self.activation(self.norm(self.stem(self.standardize(inputs))))
    x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for block in self.blocks:
      x = block(x)
    return self.logits(x.mean(axis=(1, 2)))
