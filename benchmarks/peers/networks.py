"""The networks of `ddi_jax.models` in PyTorch, with published layer names.

They can load the weights of `ddi_jax.models.torch_weights.to_torch_state_dict`.  The
standardisation of the input is their first layer, too, but not part of their state.
"""

from collections.abc import Sequence
import copy
from typing import Any

from flax import nnx as flax_nnx
import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ddi_jax import losses
from ddi_jax.models import torch_weights

ACTIVATIONS = {
  "relu": functional.relu,
  "celu": functional.celu,
  "silu": functional.silu,
}
NORMALIZATIONS = ("none", "group", "batch")


class BasicBlock(nn.Module):
  """conv-norm-act-conv-norm, plus shortcut, act (He et al., 2016a)."""

  def __init__(self, in_features, features, stride, activation, norm):
    super().__init__()
    kind, groups = norm
    self.activation = ACTIVATIONS[activation]
    self.conv1 = _conv(in_features, features, 3, stride, kind)
    self.bn1 = _norm(kind, features, groups)
    self.conv2 = _conv(features, features, 3, 1, kind)
    self.bn2 = _norm(kind, features, groups)
    self.shortcut = nn.Sequential()
    if stride != 1 or in_features != features:
      self.shortcut = nn.Sequential(
        _conv(in_features, features, 1, stride, kind), _norm(kind, features, groups)
      )

  def forward(self, x):
    y = self.activation(self.bn1(self.conv1(x)))
    y = self.bn2(self.conv2(y))
    return self.activation(y + self.shortcut(x))


class PreActBlock(nn.Module):
  """norm-act-conv-norm-act-conv, plus shortcut (He et al., 2016b)."""

  def __init__(
    self, in_features, features, stride, activation, norm, activated_shortcut
  ):
    super().__init__()
    kind, groups = norm
    self.activation = ACTIVATIONS[activation]
    self.activated_shortcut = activated_shortcut
    self.bn1 = _norm(kind, in_features, groups)
    self.conv1 = _conv(in_features, features, 3, stride, kind)
    self.bn2 = _norm(kind, features, groups)
    self.conv2 = _conv(features, features, 3, 1, kind)
    if stride != 1 or in_features != features:
      self.shortcut = nn.Sequential(_conv(in_features, features, 1, stride, kind))

  def forward(self, x):
    activated = self.activation(self.bn1(x))
    shortcut = x
    if hasattr(self, "shortcut"):
      shortcut = self.shortcut(activated if self.activated_shortcut else x)
    return self.conv2(self.activation(self.bn2(self.conv1(activated)))) + shortcut


class _Network(nn.Module):
  """A network that standardises its input.

  Its memory format is channels-last, or `memory_format`.
  """

  def __init__(self, mean, std, normalization):
    super().__init__()
    if normalization not in NORMALIZATIONS:
      raise ValueError(
        f"normalization must be one of {', '.join(NORMALIZATIONS)}; got "
        f"{normalization!r}."
      )
    for name, values in (("input_mean", mean), ("input_std", std)):
      tensor = torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)
      self.register_buffer(name, tensor, persistent=False)

  def forward(self, inputs: torch.Tensor) -> torch.Tensor:
    """`[B, C, H, W]` in [0, 1] -> logits `[B, num_classes]`."""
    return self.logits_of((inputs - self.input_mean) / self.input_std)


class ResNet18(_Network):
  """The network of `ddi_jax.models.ResNet18`, to be filled by `load_params`.

  In training mode BatchNorm's running variance differs slightly: PyTorch averages the
  unbiased variance, Flax the biased one.

  Args:
    in_channels: number of channels of the inputs.
    num_classes: C, number of logits.
    mean: mean per channel for inputs in [0, 1]; standardisation is the first layer.
    std: standard deviation per channel.
    width: channels of the stem; the stages have 1, 2, 4 and 8 times as many.
    activation: one of `ACTIVATIONS`.
    normalization: "none", "group" or "batch".
    norm_groups: number of groups for "group"; must divide `width`.
    preactivation: whether blocks are `PreActBlock`s (PreActResNet-18).
    activated_shortcut: for PreActResNet-18.
    final_norm: for PreActResNet-18.
    memory_format: memory format of the parameters; the inputs should have it too.
  """

  def __init__(
    self,
    in_channels: int,
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
    memory_format: torch.memory_format = torch.channels_last,
  ):
    super().__init__(mean, std, normalization)
    norm = (normalization, norm_groups)
    self.activation = ACTIVATIONS[activation]
    self.preactivation = preactivation
    self.conv1 = _conv(in_channels, width, 3, 1, normalization)
    features = width
    for stage in range(4):
      blocks, out = [], width * 2**stage
      for stride in (1 if stage == 0 else 2, 1):
        settings = (features, out, stride, activation, norm)
        if preactivation:
          blocks.append(PreActBlock(*settings, activated_shortcut))
        else:
          blocks.append(BasicBlock(*settings))
        features = out
      setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
    if not preactivation:
      self.bn1 = _norm(normalization, width, norm_groups)
    elif final_norm:
      self.bn = _norm(normalization, features, norm_groups)
    self.linear = nn.Linear(features, num_classes)
    self.to(memory_format=memory_format)

  def logits_of(self, x):
    """Logits of standardised inputs."""
    x = self.conv1(x)
    if not self.preactivation:
      x = self.activation(self.bn1(x))
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    if hasattr(self, "bn"):
      x = self.activation(self.bn(x))
    return self.linear(x.mean(dim=(2, 3)))


class WideBlock(nn.Module):
  """A block of wide residual networks, with the names of TRADES or of DeepMind."""

  def __init__(self, in_features, features, stride, activation, padding):
    super().__init__()
    self.activation = ACTIVATIONS[activation]
    self.names = ("bn1", "conv1", "bn2", "conv2", "convShortcut")
    pad, self.edges = 1, (0, 0, 0, 0)
    if padding == "same":
      self.names = ("batchnorm_0", "conv_0", "batchnorm_1", "conv_1", "shortcut")
      pad, self.edges = 0, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)
    layers = [
      _norm("batch", in_features, None),
      nn.Conv2d(in_features, features, 3, stride, padding=pad, bias=False),
      _norm("batch", features, None),
      _conv(features, features, 3, 1, "batch"),
    ]
    if in_features != features:
      layers.append(_conv(in_features, features, 1, stride, "batch"))
    for name, layer in zip(self.names, layers, strict=False):
      setattr(self, name, layer)

  def forward(self, x):
    norm1, conv1, norm2, conv2, *shortcut = (
      getattr(self, name, None) for name in self.names
    )
    activated = self.activation(norm1(x))
    y = conv2(self.activation(norm2(conv1(functional.pad(activated, self.edges)))))
    return y + (x if shortcut == [None] else shortcut[0](activated))


class WideResNet(_Network):
  """The network of `ddi_jax.models.WideResNet` with BatchNorm.

  Args:
    in_channels: number of channels of the inputs.
    num_classes: C, number of logits.
    mean: mean per channel for inputs in [0, 1]; standardisation is the first layer.
    std: standard deviation per channel.
    depth: 6 n + 4.
    widening: factor of the stages' widths.
    width: channels of the stem.
    activation: one of `ACTIVATIONS`.
    padding: "symmetric", with TRADES' names, or "same", with DeepMind's.
  """

  def __init__(
    self,
    in_channels: int,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    depth: int = 28,
    widening: int = 10,
    width: int = 16,
    activation: str = "relu",
    padding: str = "symmetric",
  ):
    super().__init__(mean, std, "batch")
    self.activation = ACTIVATIONS[activation]
    stages, features = [], width
    for stage in range(3):
      blocks, out = [], width * widening * 2**stage
      for index in range((depth - 4) // 6):
        stride = 2 if stage > 0 and index == 0 else 1
        blocks.append(WideBlock(features, out, stride, activation, padding))
        features = out
      stages.append(nn.Sequential(*blocks))
    stem = _conv(in_channels, width, 3, 1, "batch")
    norm, logits = _norm("batch", features, None), nn.Linear(features, num_classes)
    if padding == "same":
      self.init_conv, self.batchnorm, self.logits = stem, norm, logits
      self.layer = nn.Sequential(*(nn.ModuleDict({"block": s}) for s in stages))
      for name in ("mean", "std"):
        self.register_buffer(name, getattr(self, f"input_{name}")[0].clone())
    else:
      self.conv1, self.bn1, self.fc = stem, norm, logits
      for index, stage in enumerate(stages):
        setattr(self, f"block{index + 1}", nn.ModuleDict({"layer": stage}))
    self.parts = [[stem], *stages, [norm], [logits]]  # A list registers nothing.

  def logits_of(self, x):
    """Logits of standardised inputs."""
    [stem], *stages, [norm], [logits] = self.parts
    x = stem(x)
    for stage in stages:
      x = stage(x)
    return logits(self.activation(norm(x)).mean(dim=(2, 3)))


class SmallConvNet(_Network):
  """The network of `ddi_jax.models.SmallConvNet`.

  Args:
    image_shape: (height, width, channels) of the inputs.
    num_classes: C, number of logits.
    mean: mean per channel for inputs in [0, 1]; standardisation is the first layer.
    std: standard deviation per channel.
    width: channels of the first convolution.
    hidden: number of units of the hidden dense layer.
    strides: strides of the two convolutions.
    activation: one of `ACTIVATIONS`.
    normalization: "none", "group" or "batch".
    norm_groups: number of groups for "group".
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
  ):
    super().__init__(mean, std, normalization)
    self.activation = ACTIVATIONS[activation]
    height, breadth, channels = image_shape
    self.conv1 = _conv(channels, width, 3, strides[0], normalization)
    self.norm1 = _norm(normalization, width, norm_groups)
    self.conv2 = _conv(width, 2 * width, 3, strides[1], normalization)
    self.norm2 = _norm(normalization, 2 * width, norm_groups)
    for stride in strides:
      height, breadth = -(-height // stride), -(-breadth // stride)
    self.hidden = nn.Linear(height * breadth * 2 * width, hidden)
    self.logits = nn.Linear(hidden, num_classes)

  def logits_of(self, x):
    """Logits of standardised inputs."""
    x = self.activation(self.norm1(self.conv1(x)))
    x = self.activation(self.norm2(self.conv2(x)))
    return self.logits(self.activation(self.hidden(x.flatten(1))))


def load_params(
  network: nn.Module, model: flax_nnx.Module, params: Any, model_state: Any
) -> None:
  """Copy the trees of `ddi_jax.models.functional(model)` into a network."""
  filled = flax_nnx.clone(model)
  flax_nnx.update(filled, params)
  flax_nnx.update(filled, model_state)
  load_weights(network, torch_weights.to_torch_state_dict(filled))


def load_weights(network: nn.Module, state: dict[str, np.ndarray]) -> None:
  """Load the weights of `to_torch_state_dict` into a network."""
  network.load_state_dict({name: torch.tensor(array) for name, array in state.items()})


def to_torch(images: Any) -> torch.Tensor:
  """Copy `[B, H, W, C]` to `[B, C, H, W]`, channels-last in memory."""
  return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)


def relative_difference(ours: Any, theirs: Any) -> float:
  """The greatest difference of two arrays, relative to the first's maximum norm."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def check_agreement(
  network: nn.Module,
  apply: Any,
  params: Any,
  model_state: Any,
  images: np.ndarray,
  labels: np.ndarray,
  tolerance: float = 1e-5,
) -> tuple[float, float]:
  """Check that a PyTorch network and ours agree, in the network's current mode.

  The check is in float64, because in float32 the sign of a ReLU's argument near zero
  may differ.

  Args:
    network: a PyTorch network with the same parameters, in training mode or not.
    apply: see `ddi_jax.models.functional`.
    params: argument of `apply`.
    model_state: argument of `apply`.
    images: `[B, H, W, C]` in [0, 1].
    labels: `[B]`.
    tolerance: upper bound of the differences, relative to the greatest magnitude.

  Returns:
    The relative difference of the logits, and that of the summed cross entropy's
    gradients in the images.

  Raises:
    AssertionError: if one of them is not below the tolerance.
  """
  images = np.asarray(images, np.float64)

  def gradient_of(params, model_state, images):
    def total(images):
      logits, _ = apply(params, model_state, images, train=network.training)
      return losses.cross_entropy(logits, labels).sum(), logits

    return jax.grad(total, has_aux=True)(images)

  with jax.enable_x64(True):
    trees = jax.tree.map(lambda leaf: leaf.astype(np.float64), (params, model_state))
    gradients, logits = jax.tree.map(np.asarray, jax.jit(gradient_of)(*trees, images))
  inputs = to_torch(images).requires_grad_()
  their_logits = copy.deepcopy(network).double()(inputs)
  their_total = functional.cross_entropy(
    their_logits, torch.from_numpy(labels).long(), reduction="sum"
  )
  (their_gradients,) = torch.autograd.grad(their_total, inputs)
  differences = (
    relative_difference(logits, their_logits.detach()),
    relative_difference(gradients, their_gradients.permute(0, 2, 3, 1)),
  )
  for name, difference in zip(("logits", "input gradients"), differences, strict=True):
    if not difference < tolerance:
      raise AssertionError(
        f"the networks' {name} differ by {difference:.2g} of the greatest, more than "
        f"{tolerance:.2g}."
      )
  return differences


def _conv(in_features, features, size, stride, normalization):
  return nn.Conv2d(
    in_features,
    features,
    size,
    stride,
    padding=size // 2,
    bias=normalization == "none",
  )


def _norm(normalization, features, groups):
  if normalization == "none":
    return nn.Identity()
  if normalization == "group":
    return nn.GroupNorm(min(groups, features), features, eps=1e-5)
  return nn.BatchNorm2d(features, eps=1e-5, momentum=0.1)
