"""`ddi_jax.models.ResNet18` in PyTorch: the same network, with the same parameters."""

from collections.abc import Sequence
import copy
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ddi_jax import losses

ACTIVATIONS = {"relu": functional.relu, "celu": functional.celu}
NORMALIZATIONS = ("none", "group", "batch")
_NAMES = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


class BasicBlock(nn.Module):
  """conv-norm-act-conv-norm, plus shortcut, act (He et al., 2016a)."""

  def __init__(self, in_features, features, stride, activation, norm):
    super().__init__()
    kind, groups = norm
    self.activation = ACTIVATIONS[activation]
    self.conv1 = _conv(in_features, features, 3, stride, kind)
    self.norm1 = _norm(kind, features, groups)
    self.conv2 = _conv(features, features, 3, 1, kind)
    self.norm2 = _norm(kind, features, groups)
    self.projects = stride != 1 or in_features != features
    if self.projects:
      self.shortcut = _conv(in_features, features, 1, stride, kind)
      self.shortcut_norm = _norm(kind, features, groups)

  def forward(self, x):
    y = self.activation(self.norm1(self.conv1(x)))
    y = self.norm2(self.conv2(y))
    shortcut = self.shortcut_norm(self.shortcut(x)) if self.projects else x
    return self.activation(y + shortcut)


class PreActBlock(nn.Module):
  """norm-act-conv-norm-act-conv, plus shortcut (He et al., 2016b)."""

  def __init__(self, in_features, features, stride, activation, norm):
    super().__init__()
    kind, groups = norm
    self.activation = ACTIVATIONS[activation]
    self.norm1 = _norm(kind, in_features, groups)
    self.conv1 = _conv(in_features, features, 3, stride, kind)
    self.norm2 = _norm(kind, features, groups)
    self.conv2 = _conv(features, features, 3, 1, kind)
    self.projects = stride != 1 or in_features != features
    if self.projects:
      self.shortcut = _conv(in_features, features, 1, stride, kind)

  def forward(self, x):
    activated = self.activation(self.norm1(x))
    shortcut = self.shortcut(activated) if self.projects else x
    y = self.activation(self.norm2(self.conv1(activated)))
    return self.conv2(y) + shortcut


class ResNet18(nn.Module):
  """The network of `ddi_jax.models.ResNet18`, to be filled by `load_params`.

  In training mode BatchNorm's running variance differs slightly: PyTorch averages the
  unbiased variance, Flax the biased one.

  Args:
    in_channels: of the inputs.
    num_classes: C, number of logits.
    mean: per channel, of the inputs in [0, 1]; standardisation is the first layer.
    std: per channel.
    width: channels of the stem; the stages have 1, 2, 4 and 8 times as many.
    activation: "relu" or "celu".
    normalization: "none", "group" or "batch".
    norm_groups: number of groups for "group"; must divide `width`.
    preactivation: whether blocks are `PreActBlock`s (PreActResNet-18).
    memory_format: of the parameters; the inputs should have it too.
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
    memory_format: torch.memory_format = torch.channels_last,
  ):
    super().__init__()
    if normalization not in NORMALIZATIONS:
      raise ValueError(
        f"normalization must be one of {', '.join(NORMALIZATIONS)}; got "
        f"{normalization!r}."
      )
    norm = (normalization, norm_groups)
    for name, values in (("mean", mean), ("std", std)):
      tensor = torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)
      self.register_buffer(name, tensor, persistent=False)
    self.activation = ACTIVATIONS[activation]
    self.preactivation = preactivation
    self.stem = _conv(in_channels, width, 3, 1, normalization)
    block = PreActBlock if preactivation else BasicBlock
    self.blocks, features = nn.ModuleList(), width
    for stage in range(4):
      for stride in (1 if stage == 0 else 2, 1):
        out = width * 2**stage
        self.blocks.append(block(features, out, stride, activation, norm))
        features = out
    normed = features if preactivation else width
    self.norm = _norm(normalization, normed, norm_groups)
    self.logits = nn.Linear(features, num_classes)
    self.to(memory_format=memory_format)

  def forward(self, inputs: torch.Tensor) -> torch.Tensor:
    """`[B, C, H, W]` in [0, 1] -> logits `[B, num_classes]`."""
    x = self.stem((inputs - self.mean) / self.std)
    if not self.preactivation:
      x = self.activation(self.norm(x))
    for block in self.blocks:
      x = block(x)
    if self.preactivation:
      x = self.activation(self.norm(x))
    return self.logits(x.mean(dim=(2, 3)))


def load_params(network: nn.Module, params: Any, model_state: Any) -> None:
  """Copies the trees of `ddi_jax.models.functional` into a network.

  Raises:
    ValueError: if the network has parameters that the trees lack, or the reverse.
  """
  tensors = {}
  for tree in (params, model_state):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      *parents, name = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
      tensors[".".join([*parents, _NAMES[name]])] = _to_torch_layout(leaf)
  result = network.load_state_dict(tensors, strict=False)
  missing = [
    key for key in result.missing_keys if not key.endswith("num_batches_tracked")
  ]
  if missing or result.unexpected_keys:
    raise ValueError(
      f"the networks differ: missing {missing}, unexpected {result.unexpected_keys}."
    )


def to_torch(images: Any) -> torch.Tensor:
  """A copy `[B, H, W, C]` -> `[B, C, H, W]`, channels-last in memory."""
  return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)


def relative_difference(ours: Any, theirs: Any) -> float:
  """The greatest difference of two arrays, over the greatest magnitude of the first."""
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
  """Checks a network against ours, in the mode, training or not, that it is in.

  In float64: in float32 a ReLU's argument near zero may fall on either side.

  Args:
    network: with the same parameters.
    apply: see `ddi_jax.models.functional`.
    params: of `apply`.
    model_state: of `apply`.
    images: `[B, H, W, C]` in [0, 1].
    labels: `[B]`.
    tolerance: of the differences, relative to the greatest magnitude.

  Returns:
    The relative difference of the logits, and that of the gradients of the summed
    cross entropy for the images.

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


def _to_torch_layout(leaf):
  array = np.array(leaf)
  if array.ndim == 4:
    array = array.transpose(3, 2, 0, 1)
  elif array.ndim == 2:
    array = array.T
  return torch.from_numpy(array)
