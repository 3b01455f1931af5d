"""Whether a run can fit, told before anything is compiled or allocated."""

from collections.abc import Mapping
import math
from typing import Any

import jax
import ml_collections

from ddi_jax.data import Examples
from ddi_jax.data.host_memory import host_memory
from ddi_jax.training.settings.methods import find_method
from ddi_jax.training.settings.pieces import ConfigError
from ddi_jax.training.settings.sources import num_candidates
from ddi_jax.training.settings.threats import evaluated_radii
from ddi_jax.training.step import warm_memory

_GIB = 2**30


def check_memory(
  config: ml_collections.ConfigDict,
  train: Examples,
  params: Any,
  opt_state: Any,
) -> None:
  """Refuses what surely does not fit into the device's memory, or its share of a mesh.

  Args:
    config: a checked config.
    train: the training images.
    params: the parameters, or their shapes (`jax.ShapeDtypeStruct`).
    opt_state: the same of the optimizer's state.

  Raises:
    ConfigError: if the parts below exceed the memory.  Activations come on top of
      them, so passing is no promise.
  """
  devices = config.mesh.restart * config.mesh.data
  restarts = num_candidates(config)
  image_bytes = 4 * math.prod(train.image_shape)
  own_restarts = -(-restarts // config.mesh.restart)
  kept = min(own_restarts, config.gradients_at_a_time or own_restarts)
  if find_method(config).proximal:
    kept = 1 + min(config.proximal.memory, max(config.proximal.iterations, 1))
  # Whatever `fsdp` splits between steps, a step has the parameters whole.
  holders = devices if config.mesh.fsdp else 1
  candidate_bytes = restarts * config.batch_size * image_bytes
  sizes = {
    "parameters": _num_bytes(params),
    f"{kept} gradient(s) of them": kept * _num_bytes(params),
    "optimizer state": _num_bytes(opt_state) // holders,
    f"{restarts} candidate(s) of the batch": candidate_bytes // devices,
  }
  if remembered := warm_memory.num_bytes(config, len(train), train.image_shape):
    sizes["memory of the source warm"] = remembered
  _check(
    sizes,
    "a training step",
    "config.model.width, config.num_restarts or config.sources (or set "
    "config.gradients_at_a_time; or config.proximal.memory) or config.batch_size",
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
  """Bytes that a device has in all, None if it does not tell."""
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
