"""Check whether a run fits into memory, before anything is compiled or allocated."""

from collections.abc import Mapping
import math
from typing import Any

import jax
import ml_collections

from ddi_jax.data.host_memory import host_memory
from ddi_jax.training.settings.methods import METHODS, find_method
from ddi_jax.training.settings.model import size_fields
from ddi_jax.training.settings.pieces import ConfigError
from ddi_jax.training.settings.sources import num_candidates
from ddi_jax.training.settings.threats import evaluated_radii
from ddi_jax.training.step import warm_memory

_GIB = 2**30


def check_memory(
  config: ml_collections.ConfigDict,
  image_shape: tuple[int, int, int],
  num_images: int,
  params: Any,
  opt_state: Any,
) -> None:
  """Refuse a run that is certain not to fit into the memory of its devices.

  Args:
    config: a checked config.
    image_shape: (height, width, channels).
    num_images: size of the training set, or a lower bound of it.
    params: the parameters, or their shapes (`jax.ShapeDtypeStruct`).
    opt_state: the optimiser's state, or its shapes.

  Raises:
    ConfigError: if the parts that are computed here exceed the memory.  A run also
      needs memory for activations, so a run that passes may still not fit.
  """
  method = find_method(config)
  devices = config.mesh.restart * config.mesh.data
  restarts = num_candidates(config)
  image_bytes = 4 * math.prod(image_shape)
  own_restarts = -(-restarts // config.mesh.restart)
  kept = min(own_restarts, config.gradients_at_a_time or own_restarts)
  if method.proximal:
    kept = 1 + min(config.proximal.memory, max(config.proximal.iterations, 1))
  # `fsdp` splits the parameters between steps, but a step needs them whole.
  holders = devices if config.mesh.fsdp else 1
  candidate_bytes = restarts * config.batch_size * image_bytes
  sizes = {
    "parameters": _num_bytes(params),
    f"{kept} gradient(s) of them": kept * _num_bytes(params),
    "optimizer state": _num_bytes(opt_state) // holders,
    f"{restarts} candidate(s) of the batch": candidate_bytes // devices,
  }
  if config.method in METHODS and not (method.proximal or method.select_worst):
    # For each pair of gradients: the product, the cosine and its index.
    sizes["inner products of gradients"] = 12 * restarts**2
  if config.data.pad:
    height, width, channels = image_shape
    padded = (height + 2 * config.data.pad) * (width + 2 * config.data.pad) * channels
    sizes["padded images"] = config.batch_size * padded // devices
  if remembered := warm_memory.num_bytes(config, num_images, image_shape):
    sizes["memory of the source warm"] = remembered
  of_model = ", ".join(f"config.{field}" for field in size_fields(config))
  _check(
    sizes,
    "a training step",
    f"{of_model}, config.num_restarts or config.sources (or set "
    "config.gradients_at_a_time; or config.proximal.memory), config.batch_size or "
    "config.data.pad",
  )
  evaluated = config.evaluation.restarts * config.evaluation.batch_size
  evaluated *= len(evaluated_radii(config))
  _check(
    {
      "parameters": sizes["parameters"],
      "attacked images": evaluated * image_bytes // devices,
    },
    "evaluation",
    "config.evaluation.batch_size or config.evaluation.restarts",
  )


def _memory_limit(device: jax.Device) -> int | None:
  """The total memory of a device in bytes, None if it is unknown."""
  if device.platform == "cpu":
    return host_memory()
  return (device.memory_stats() or {}).get("bytes_limit")


def _check(sizes: Mapping[str, int], purpose: str, settings: str) -> None:
  device = jax.local_devices()[0]
  limit, total = _memory_limit(device), sum(sizes.values())
  if limit is None or total <= limit:
    return
  parts = ", ".join(f"{name} {_gib(size)}" for name, size in sizes.items())
  raise ConfigError(
    f"{purpose} needs at least {_gib(total)} of memory ({parts}; activations come on "
    f"top), and {device.device_kind} has {_gib(limit)}: reduce {settings}."
  )


def _num_bytes(tree: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _gib(size: int) -> str:
  return f"{size / _GIB:.3g} GiB"
