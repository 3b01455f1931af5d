"""ResNet-18 for 32x32 images, with post- or pre-activation blocks."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import nnx
import jax

from ddi_jax.models import layers


class BasicBlock(nnx.Module):
  """conv-norm-act-conv-norm, plus shortcut, act (He et al., 2016a)."""

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
    self.activation = layers.ACTIVATIONS[activation]
    self.conv1 = layers.conv(
      in_features, features, 3, stride, normalization=kind, rngs=rngs
    )
    self.norm1 = layers.norm(kind, features, groups, rngs=rngs)
    self.conv2 = _last_conv(features, kind, rngs)
    self.norm2 = layers.norm(kind, features, groups, rngs=rngs)
    self.projects = stride != 1 or in_features != features
    if self.projects:
      self.shortcut = layers.conv(
        in_features, features, 1, stride, normalization=kind, rngs=rngs
      )
      self.shortcut_norm = layers.norm(kind, features, groups, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    y = self.activation(self.norm1(self.conv1(x)))
    y = self.norm2(self.conv2(y))
    shortcut = self.shortcut_norm(self.shortcut(x)) if self.projects else x
    return self.activation(y + shortcut)


class PreActBlock(nnx.Module):
  """norm-act-conv-norm-act-conv, plus shortcut (He et al., 2016b).

  A shortcut without a convolution adds the input itself.  A shortcut with a convolution
  is applied to the activated input, or to the input if `activated_shortcut` is False.
  """

  def __init__(
    self,
    in_features: int,
    features: int,
    stride: int,
    activation: str,
    norm: tuple[str, int],
    rngs: nnx.Rngs,
    padding: Any = "symmetric",
    activated_shortcut: Any = True,
  ) -> None:
    kind, groups = norm
    self.activated_shortcut = activated_shortcut
    self.activation = layers.ACTIVATIONS[activation]
    self.norm1 = layers.norm(kind, in_features, groups, rngs=rngs)
    self.conv1 = layers.conv(
      in_features,
      features,
      3,
      stride,
      normalization=kind,
      padding=padding,
      rngs=rngs,
    )
    self.norm2 = layers.norm(kind, features, groups, rngs=rngs)
    self.conv2 = _last_conv(features, kind, rngs)
    self.projects = stride != 1 or in_features != features
    if self.projects:
      self.shortcut = layers.conv(
        in_features, features, 1, stride, normalization=kind, rngs=rngs
      )

  def __call__(self, x: jax.Array) -> jax.Array:
    activated = self.activation(self.norm1(x))
    shortcut = x
    if self.projects:
      shortcut = self.shortcut(activated if self.activated_shortcut else x)
    y = self.activation(self.norm2(self.conv1(activated)))
    return self.conv2(y) + shortcut


class ResNet18(nnx.Module):
  """ResNet-18 with a 3x3 stem for 32x32 images.

  Without normalisation, the last convolution of every block is initialised to zero, so
  that every block starts as the identity (Fixup: Zhang et al., 2019).

  Args:
    image_shape: (height, width, channels) of the inputs.
    num_classes: C, number of logits.
    mean: mean per channel for inputs in [0, 1]; standardisation is the first layer.
    std: standard deviation per channel.
    width: channels of the stem; the stages have 1, 2, 4 and 8 times as many.
    activation: one of `layers.ACTIVATIONS`.
    normalization: "none", "group" or "batch".
    norm_groups: number of groups for "group"; must divide `width`.
    preactivation: whether blocks are `PreActBlock`s (PreActResNet-18).
    activated_shortcut: for PreActResNet-18, see `PreActBlock`.
    final_norm: for PreActResNet-18, whether to apply a norm and an activation before
      the pooling.  Some published definitions have neither these nor activated
      shortcuts.
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
    preactivation: bool = False,
    activated_shortcut: bool = True,
    final_norm: bool = True,
    rngs: nnx.Rngs,
  ) -> None:
    layers.check_settings(
      width=width,
      activation=activation,
      normalization=normalization,
      norm_groups=norm_groups,
    )
    norm = (normalization, norm_groups)
    self.standardize = layers.Standardize(mean, std)
    self.activation = layers.ACTIVATIONS[activation]
    self.preactivation = preactivation
    self.stem = layers.conv(
      image_shape[-1], width, 3, normalization=normalization, rngs=rngs
    )
    block: Callable[..., nnx.Module] = BasicBlock
    if preactivation:
      block = functools.partial(PreActBlock, activated_shortcut=activated_shortcut)
    self.blocks = stages_of_blocks(
      block,
      width,
      [width * 2**stage for stage in range(4)],
      (2, 2, 2, 2),
      activation=activation,
      norm=norm,
      rngs=rngs,
    )
    features = 8 * width
    # The norm follows the stem, or precedes the pooling if blocks are pre-activated.
    normed = features if preactivation else width
    self.normed_at_the_end = preactivation and final_norm
    if not preactivation or final_norm:
      self.norm = layers.norm(normalization, normed, norm_groups, rngs=rngs)
    self.logits = nnx.Linear(features, num_classes, rngs=rngs)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """`[B, H, W, C]` in [0, 1] -> logits `[B, num_classes]`."""
    x = self.stem(self.standardize(inputs))
    if not self.preactivation:
      x = self.activation(self.norm(x))
    for block in self.blocks:
      x = block(x)
    if self.normed_at_the_end:
      x = self.activation(self.norm(x))
    return self.logits(x.mean(axis=(1, 2)))


def stages_of_blocks(
  block: Callable[..., nnx.Module],
  in_features: int,
  stage_features: Sequence[int],
  stage_blocks: Sequence[int],
  **settings: Any,
) -> nnx.List:
  """The blocks of a residual network; every stage but the first halves the image.

  Args:
    block: (in_features, features, stride, **settings) -> module.
    in_features: channels before the first stage.
    stage_features: channels of each stage.
    stage_blocks: number of blocks in each stage.
    **settings: further arguments of `block`.
  """
  blocks = []
  stages = zip(stage_features, stage_blocks, strict=True)
  for stage, (features, count) in enumerate(stages):
    for index in range(count):
      stride = 2 if stage > 0 and index == 0 else 1
      blocks.append(block(in_features, features, stride, **settings))
      in_features = features
  return nnx.List(blocks)


def _last_conv(features: int, normalization: str, rngs: nnx.Rngs) -> nnx.Conv:
  zero = nnx.initializers.zeros_init()
  return layers.conv(
    features,
    features,
    3,
    normalization=normalization,
    kernel_init=zero if normalization == "none" else layers.he_normal,
    rngs=rngs,
  )
