"""Image networks in Flax NNX."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax

from ddi_jax.checks import check_not_passed, keyword_parameters, missing_extra

try:
  from flax import nnx
except ModuleNotFoundError as error:
  raise missing_extra("training", error) from error

from ddi_jax.models.convolution import conv_general_dilated
from ddi_jax.models.layers import ACTIVATIONS, NORMALIZATIONS, Standardize
from ddi_jax.models.mlp import MLP
from ddi_jax.models.pure import FunctionalModule, functional, in_bfloat16, mean_state
from ddi_jax.models.resnet import ResNet18
from ddi_jax.models.resnet50 import ResNet50
from ddi_jax.models.small import SmallConvNet
from ddi_jax.models.wide_resnet import WideResNet

# Each is called as factory(image_shape, num_classes, mean=, std=, rngs=, **settings).
MODELS: dict[str, Callable[..., nnx.Module]] = {
  "small": SmallConvNet,
  "mlp": MLP,
  "resnet18": ResNet18,
  "preact_resnet18": functools.partial(ResNet18, preactivation=True),
  "resnet50": ResNet50,
  "wide_resnet": WideResNet,
}


def create_model(
  model: str | Callable[..., nnx.Module],
  *,
  image_shape: tuple[int, int, int],
  num_classes: int,
  mean: Sequence[float],
  std: Sequence[float],
  settings: Mapping[str, Any],
  seed: int,
  abstract: bool = False,
) -> nnx.Module:
  """Create a freshly initialised model.

  Do not call this inside a jax transformation.

  Args:
    model: a name in `MODELS`, or a callable: a module's class, a function that makes a
      module, or a function that returns `functional(...)` of another library's module.
      It is called as `model(image_shape, num_classes, *, rngs, **settings)`, with
      `mean` and `std` as well if it has arguments of these names.
    image_shape: (height, width, channels).
    num_classes: number of logits.
    mean: mean per channel of the images in [0, 1].
    std: standard deviation per channel.
    settings: the model's own keyword arguments, see `SmallConvNet`, `MLP`, `ResNet18`,
      `ResNet50` and `WideResNet`.
    seed: seed for the initial parameters.
    abstract: whether to compute only shapes and dtypes.  All arrays are then
      `jax.ShapeDtypeStruct`s.

  Returns:
    A module: images `[B, H, W, C]` in [0, 1] -> logits `[B, num_classes]`.

  Raises:
    ValueError: for a setting that the model refuses, or if `model` makes no module.

  Example:
    >>> import jax.numpy as jnp
    >>> from ddi_jax import models
    >>> model = models.create_model(
    ...     "mlp", image_shape=(8, 8, 1), num_classes=10, mean=(0.5,), std=(0.3,),
    ...     settings={"layers": (16,)}, seed=0)
    >>> model(jnp.zeros((4, 8, 8, 1))).shape
    (4, 10)
  """
  factory = MODELS[model] if isinstance(model, str) else model
  arguments = dict(settings)
  moments = {"mean": tuple(mean), "std": tuple(std)}
  accepted = keyword_parameters(factory)
  moments = {name: value for name, value in moments.items() if name in accepted}
  check_not_passed(factory, settings, 2, ("rngs", *moments))
  arguments |= moments

  def build() -> nnx.Module:
    # Dropout uses the default stream; `functional` gives it a key whenever it draws.
    rngs = nnx.Rngs(params=seed, default=seed)
    made = factory(image_shape, num_classes, rngs=rngs, **arguments)
    if isinstance(made, tuple) and len(made) == 3:
      return FunctionalModule(*made)
    if not isinstance(made, nnx.Module):
      raise ValueError(
        "model must make an nnx.Module, or what ddi_jax.models.functional returns for "
        f"another library's module; got {type(made).__name__}."
      )
    return made

  if abstract:
    return nnx.eval_shape(build)
  graphs: list[Any] = []  # `jax.jit` returns arrays only.

  def initialize() -> nnx.State:
    graph, state = nnx.split(build())
    graphs.append(graph)
    return state

  # `initialize` runs once.  One unoptimised program compiles many times faster than an
  # optimised program for each random draw.
  options = {"xla_backend_optimization_level": 0}
  state = jax.jit(initialize, compiler_options=options)()
  return nnx.merge(graphs[0], state)


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
  "mean_state",
]
