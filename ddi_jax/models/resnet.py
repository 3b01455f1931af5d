"""ResNet-18 for 32x32 images, with post- or pre-activation blocks."""

from collections.abc import Sequence

from flax import nnx
import jax

from ddi_jax.models import layers


class BasicBlock(nnx.Module):
  """conv-norm-act-conv-norm, plus shortcut, act (He et al., 2016a)."""

  def __init__(self, in_features, features, stride, activation, norm, rngs):
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

  def __call__(self, x):
    y = self.activation(self.norm1(self.conv1(x)))
    y = self.norm2(self.conv2(y))
    shortcut = self.shortcut_norm(self.shortcut(x)) if self.projects else x
    return self.activation(y + shortcut)


class PreActBlock(nnx.Module):
  """norm-act-conv-norm-act-conv, plus shortcut (He et al., 2016b)."""

  def __init__(self, in_features, features, stride, activation, norm, rngs):
    kind, groups = norm
    self.activation = layers.ACTIVATIONS[activation]
    self.norm1 = layers.norm(kind, in_features, groups, rngs=rngs)
    self.conv1 = layers.conv(
      in_features, features, 3, stride, normalization=kind, rngs=rngs
    )
    self.norm2 = layers.norm(kind, features, groups, rngs=rngs)
    self.conv2 = _last_conv(features, kind, rngs)
    self.projects = stride != 1 or in_features != features
    if self.projects:
      self.shortcut = layers.conv(
        in_features, features, 1, stride, normalization=kind, rngs=rngs
      )

  def __call__(self, x):
    activated = self.activation(self.norm1(x))
    shortcut = self.shortcut(activated) if self.projects else x
    y = self.activation(self.norm2(self.conv1(activated)))
    return self.conv2(y) + shortcut


class ResNet18(nnx.Module):
  """ResNet-18 with a 3x3 stem for 32x32 images.

  Without normalisation the last convolution of every block starts at zero, so that
  the network starts as a stack of identities (Fixup: Zhang et al., 2019).

  Args:
    image_shape: (height, width, channels) of the inputs.
    num_classes: C, number of logits.
    mean: per channel, of the inputs in [0, 1]; standardisation is the first layer.
    std: per channel.
    width: channels of the stem; the stages have 1, 2, 4 and 8 times as many.
    activation: one of `layers.ACTIVATIONS`.
    normalization: "none", "group" or "batch".
    norm_groups: number of groups for "group"; must divide `width`.
    preactivation: whether blocks are `PreActBlock`s (PreActResNet-18).
    rngs: with a "params" stream.
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
    rngs: nnx.Rngs,
  ):
    norm = (normalization, norm_groups)
    self.standardize = layers.Standardize(mean, std)
    self.activation = layers.ACTIVATIONS[activation]
    self.preactivation = preactivation
    self.stem = layers.conv(
      image_shape[-1], width, 3, normalization=normalization, rngs=rngs
    )
    block = PreActBlock if preactivation else BasicBlock
    blocks, features = [], width
    for stage in range(4):
      for stride in (1 if stage == 0 else 2, 1):
        out = width * 2**stage
        blocks.append(block(features, out, stride, activation, norm, rngs))
        features = out
    self.blocks = nnx.List(blocks)
    # After the stem, or where blocks are pre-activated, before the pooling.
    normed = features if preactivation else width
    self.norm = layers.norm(normalization, normed, norm_groups, rngs=rngs)
    self.logits = nnx.Linear(features, num_classes, rngs=rngs)

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """`[B, H, W, C]` in [0, 1] -> logits `[B, num_classes]`."""
    x = self.stem(self.standardize(inputs))
    if not self.preactivation:
      x = self.activation(self.norm(x))
    for block in self.blocks:
      x = block(x)
    if self.preactivation:
      x = self.activation(self.norm(x))
    return self.logits(x.mean(axis=(1, 2)))


def _last_conv(features, normalization, rngs):
  zero = nnx.initializers.zeros_init()
  return layers.conv(
    features,
    features,
    3,
    normalization=normalization,
    kernel_init=zero if normalization == "none" else layers.he_normal,
    rngs=rngs,
  )
