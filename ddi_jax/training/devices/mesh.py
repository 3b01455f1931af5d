"""Shard arrays over several devices; XLA splits the program accordingly.

The training step is the same as on a single device.  Its batch is split over the mesh's
axis `data`, and XLA's partitioner does the rest.  The step makes three decisions
explicitly.  It splits the K restarts over the axis `restart`.  It splits the
coordinates of the K gradients over all devices, so that their inner products are sums
of partial products.  It gathers parameters that are stored split.  docs/scaling.md
counts the bytes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_collections
import numpy as np

from ddi_jax.training.settings.pieces import ConfigError

RESTART, DATA = "restart", "data"
# The restarts of one part of the batch are on neighbouring devices, and on one host if
# they fit.
ALL = (DATA, RESTART)


def create_mesh(config: ml_collections.ConfigDict) -> Mesh | None:
  """The mesh of the config's devices, data by restart; None for one device.

  Raises:
    ConfigError: if there are fewer devices than the config needs; with several
      processes, if there are more or fewer, or if the processes would need unequal
      parts of a batch.
  """
  restart, data_size = config.mesh.restart, config.mesh.data
  wanted, present = restart * data_size, jax.device_count()
  several = jax.process_count() > 1
  if wanted > present or (several and wanted != present):
    allowed = f"{present}, the number of devices of all {jax.process_count()} processes"
    if not several:
      allowed = f"at most {present}, the number of {jax.default_backend()} devices"
    raise ConfigError(
      f"config.mesh.restart * config.mesh.data must be {allowed}, got "
      f"{restart} * {data_size}."
    )
  local = jax.local_device_count()
  if several and restart % local and local % restart:
    raise ConfigError(
      "config.mesh.restart must be a divisor or a multiple of "
      f"{local}, the number of devices of a process, got {restart}."
    )
  if wanted == 1:
    return None
  devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  return Mesh(np.array(devices[:wanted]).reshape(data_size, restart), ALL)


class InMesh:
  """A jitted function that is traced and run with `mesh` as jax's current mesh.

  The convolution for CPUs uses the current mesh to decide whether XLA splits the
  program.
  """

  def __init__(self, compiled: Any, mesh: Mesh):
    self._compiled, self._mesh = compiled, mesh

  def __call__(self, *args: Any) -> Any:
    with jax.set_mesh(self._mesh):
      return self._compiled(*args)

  def lower(self, *args: Any) -> Any:
    """The same as `jax.jit(...).lower`."""
    with jax.set_mesh(self._mesh):
      return self._compiled.lower(*args)

  def _cache_size(self) -> int:
    return self._compiled._cache_size()


def split_restarts(
  fn: Callable[..., Any], mesh: Mesh, count: int | None = None
) -> Callable[..., Any]:
  """`fn` with the leading axis of its first argument split over `restart`.

  Every device along that axis runs `fn` on its part of the K restarts.  The other
  arguments are replicated over `restart`.  XLA partitions the batch.

  Args:
    fn: (leaves `[K', ...]`, *others) -> a tree of leaves `[K', ...]`.
    mesh: from `create_mesh`.
    count: K; None if it is known to be a multiple of the axis' size.
  """
  size = mesh.shape[RESTART]
  if size == 1 or (count is not None and count % size):
    return fn

  def split(first: Any, *others: Any) -> Any:
    return jax.shard_map(
      fn,
      mesh=mesh,
      in_specs=(PartitionSpec(RESTART), *(PartitionSpec() for _ in others)),
      out_specs=PartitionSpec(RESTART),
      axis_names={RESTART},
      check_vma=False,
    )(first, *others)

  return split


def split_coordinates(gradients: chex.ArrayTree, mesh: Mesh) -> chex.ArrayTree:
  """Split the coordinates of K gradients, leaves `[K, *param]`, over all devices.

  Each device has all K values of its coordinates.
  """
  return jax.tree.map(
    lambda leaf: jax.lax.with_sharding_constraint(leaf, _split(leaf.shape, 1, mesh)),
    gradients,
  )


def gathered(tree: chex.ArrayTree, mesh: Mesh) -> chex.ArrayTree:
  """Replicate all leaves on every device, however they were sharded before."""
  return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that is replicated on every device."""
  return NamedSharding(mesh, PartitionSpec())


def shardings(tree: chex.ArrayTree, mesh: Mesh, *, split: bool) -> chex.ArrayTree:
  """The leaves' shardings: split over all devices in one dimension, or replicated."""

  def sharding(leaf: Any) -> NamedSharding:
    return _split(leaf.shape, 0, mesh) if split else replicated(mesh)

  return jax.tree.map(sharding, tree)


def _split(shape: tuple[int, ...], first: int, mesh: Mesh) -> NamedSharding:
  """Split an array in its longest dimension that the number of devices divides.

  Of several dimensions of equal length, the last is split.  Dimensions before `first`
  are not split.  If no dimension can be split, the array is replicated.
  """
  divisible = [
    index
    for index, size in enumerate(shape)
    if index >= first and size and size % mesh.size == 0
  ]
  if not divisible:
    return replicated(mesh)
  dimension = max(divisible, key=lambda index: (shape[index], index))
  # Written in XLA's form, so that a step's result has exactly its argument's sharding.
  axes = tuple(name for name in ALL if mesh.shape[name] > 1)
  return NamedSharding(mesh, PartitionSpec(*(None,) * dimension, axes))


def host_share(mesh: Mesh | None, axes: Any, batch_size: int) -> tuple[int, int]:
  """The part of every batch that this process reads: (part, number of parts).

  Args:
    mesh: from `create_mesh`.
    axes: the mesh axes over which the batch is split.
    batch_size: size of the whole batch, a multiple of these axes' sizes.
  """
  if mesh is None:
    return 0, 1
  sharding = NamedSharding(mesh, PartitionSpec(axes))
  all_needed = sharding.devices_indices_map((batch_size,))
  needed = [all_needed[device][0] for device in sharding.addressable_devices]
  bounds = [part.indices(batch_size) for part in needed]
  start, stop = min(part[0] for part in bounds), max(part[1] for part in bounds)
  size = stop - start
  return start // size, batch_size // size


def to_devices(
  mesh: Mesh | None, axes: Any, batch: Mapping[str, np.ndarray]
) -> Mapping[str, Any]:
  """Put a batch on the mesh's devices; this process supplies its `host_share`."""
  if mesh is None:
    return batch
  sharding = NamedSharding(mesh, PartitionSpec(axes))
  return {
    name: jax.make_array_from_process_local_data(sharding, array)
    for name, array in batch.items()
  }
