"""Image networks in Flax NNX."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

from flax import nnx
import jax

from ddi_jax.models.convolution import conv_general_dilated
from ddi_jax.models.functional import functional, in_bfloat16
from ddi_jax.models.layers import ACTIVATIONS, NORMALIZATIONS, Standardize
from ddi_jax.models.mlp import MLP
from ddi_jax.models.resnet import ResNet18
from ddi_jax.models.resnet50 import ResNet50
from ddi_jax.models.small import SmallConvNet
from ddi_jax.models.wide_resnet import WideResNet

MODELS = ("small", "mlp", "resnet18", "preact_resnet18", "resnet50", "wide_resnet")


def create_model(
  name: str,
  *,
  image_shape: tuple[int, int, int],
  num_classes: int,
  mean: Sequence[float],
  std: Sequence[float],
  settings: Mapping[str, Any],
  seed: int,
  abstract: bool = False,
) -> nnx.Module:
  """A freshly initialised model.  Not to be called under a jax transformation.

  Args:
    name: one of `MODELS`.
    image_shape: (height, width, channels).
    num_classes: number of logits.
    mean: per channel, of the images in [0, 1].
    std: per channel.
    settings: the model's own keyword arguments, see `SmallConvNet`, `MLP`, `ResNet18`,
      `ResNet50` and `WideResNet`.
    seed: of the initial parameters.
    abstract: whether to compute nothing; all arrays are then `jax.ShapeDtypeStruct`s.

  Returns:
    A module: images `[B, H, W, C]` in [0, 1] -> logits `[B, num_classes]`.
  """

  def build() -> nnx.Module:
    rngs = nnx.Rngs(params=seed)
    kinds: dict[str, Callable[..., nnx.Module]] = {
      "small": SmallConvNet,
      "mlp": MLP,
      "resnet18": ResNet18,
      "preact_resnet18": functools.partial(ResNet18, preactivation=True),
      "resnet50": ResNet50,
      "wide_resnet": WideResNet,
    }
    return kinds[name](image_shape, num_classes, mean, std, rngs=rngs, **settings)

  if abstract:
    return nnx.eval_shape(build)
  # Runs once: one unoptimised program compiles many times faster than the optimised
  # programs of each random draw.
  initialize = jax.jit(
    lambda: nnx.state(build()),
    compiler_options={"xla_backend_optimization_level": 0},
  )
  graph, _ = nnx.split(nnx.eval_shape(build))
  return nnx.merge(graph, initialize())


__all__ = [
  "ACTIVATIONS",
  "MLP",
  "MODELS",
  "NORMALIZATIONS",
  "ResNet18",
  "ResNet50",
  "SmallConvNet",
  "Standardize",
  "WideResNet",
  "conv_general_dilated",
  "create_model",
  "functional",
  "in_bfloat16",
]
