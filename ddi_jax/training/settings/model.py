"""The network that a config names."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flax import nnx
import ml_collections

from ddi_jax import models
from ddi_jax.checks import keyword_parameters
from ddi_jax.data import DATASETS, image_shape
from ddi_jax.training.settings import pieces

OWN_SETTINGS = "model_settings"
FIELDS = (
  *("width", "activation", "normalization", "norm_groups", "hidden", "strides"),
  *("layers", "depth", "widening"),
)

_SIZES = ("width", "hidden", "layers", "depth", "widening")


class ImageKind(NamedTuple):
  """What a network needs to know about a data set.

  Attributes:
    image_shape: (height, width, channels).
    num_classes: labels are in [0, num_classes).
    mean: mean per channel of the images in [0, 1].
    std: standard deviation per channel.
  """

  image_shape: tuple[int, int, int]
  num_classes: int
  mean: Sequence[float]
  std: Sequence[float]


def known_images(config: ml_collections.ConfigDict) -> ImageKind | None:
  """What is known without reading the data; None for the user's own data set.

  Raises:
    ConfigError: for an impossible resolution.
  """
  description = DATASETS.get(config.data.name)
  if description is None:
    return None
  try:
    shape = image_shape(config.data.name, config.data.resolution)
  except ValueError as error:
    raise pieces.ConfigError(f"config.{error}") from error
  return ImageKind(shape, description.num_classes, description.mean, description.std)


def find_model(config: ml_collections.ConfigDict) -> Callable[..., nnx.Module]:
  """The config's network, as a class or function that makes it.

  Raises:
    ConfigError: if there is no network of this name.
  """
  factory = pieces.find("model.name", config.model.name, models.MODELS)
  pieces.check_positional(factory, "model.name", "image shape", "number of classes")
  return factory


def used_fields(config: ml_collections.ConfigDict) -> set[str]:
  """The dotted names of the settings that the network uses."""
  if settings_group(config) == OWN_SETTINGS:
    return {OWN_SETTINGS}
  return {
    f"model.{name}" for name in FIELDS if pieces.accepts(find_model(config), name)
  }


def size_fields(config: ml_collections.ConfigDict) -> list[str]:
  """The settings in `used_fields` that determine the number of parameters."""
  return [
    field
    for field in sorted(used_fields(config))
    if field == OWN_SETTINGS or field.split(".")[-1] in _SIZES
  ]


def settings_group(config: ml_collections.ConfigDict) -> str:
  """The config group that holds the network's settings."""
  own = pieces.is_own(config.model.name, models.MODELS)
  return OWN_SETTINGS if own else "model"


def model_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The network's keyword arguments, except those that have their defaults (None)."""
  return {
    name: value
    for name, value in config[settings_group(config)].items()
    if name != "name" and value is not None
  }


def create_model(
  config: ml_collections.ConfigDict, images: ImageKind, *, abstract: bool = False
) -> nnx.Module:
  """Create the config's network, freshly initialised, or only its shapes.

  Raises:
    ConfigError: for a setting that the network does not have or refuses.
  """
  factory, settings = find_model(config), model_settings(config)
  group = settings_group(config)

  def create(**settings: Any) -> nnx.Module:
    return models.create_model(
      factory,
      **images._asdict(),
      settings=settings,
      seed=config.seed,
      abstract=abstract,
    )

  pieces.check_arguments(factory, settings, group)
  return pieces.call(create, settings, group)


def width(config: ml_collections.ConfigDict) -> int | None:
  """The network's width, from the config or its default; None if it has none."""
  if settings_group(config) == OWN_SETTINGS or not pieces.accepts(
    find_model(config), "width"
  ):
    return None
  return config.model.width or keyword_parameters(find_model(config))["width"].default
