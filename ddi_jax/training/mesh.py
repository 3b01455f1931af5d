"""The training step on several devices: restarts and batch split, K gradients too.

Every device attacks its share of the batch from its share of the restarts and takes the
gradients there.  Two exchanges, a reduce-scatter and an all-to-all, leave each device
with one part of the coordinates of all K gradients of the whole batch; inner products
are summed from the parts, and each device combines its own.  docs/scaling.md counts the
bytes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_collections
import numpy as np
import optax

import ddi_jax
from ddi_jax.training.config import ConfigError
from ddi_jax.training.packing import Packing, split_dimension

RESTART, DATA = "restart", "data"
# The restarts of one share of the batch are neighbours: on one host, where they fit.
ALL = (DATA, RESTART)


def create_mesh(config: ml_collections.ConfigDict) -> Mesh | None:
  """The mesh of the config's devices, data by restart; None for one device.

  Raises:
    ConfigError: if there are fewer devices, or, with several processes, others, or the
      processes would need unequal parts of a batch.
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


def batch_axis(mesh: Mesh | None) -> str | None:
  """The mesh axis over which a training batch is split."""
  return None if mesh is None else DATA


def restarts_per_device(mesh: Mesh | None, num_restarts: int) -> int:
  """How many of the restarts one device attacks from."""
  return num_restarts if mesh is None else num_restarts // mesh.shape[RESTART]


def split_gradients(
  gradients_of: Callable[..., tuple[Any, ...]],
  mesh: Mesh,
  *,
  one_candidate: bool,
  one_key: bool,
) -> Callable[..., tuple[Any, ...]]:
  """`gradients_of` with its work split over the mesh.

  Args:
    gradients_of: (params, model_state, inputs, labels, keys, scalars, moves) ->
      (gradients `[K, *param]`, losses `[K, B]`, correct `[K, B]`, model states
      `[K, ...]`, metrics that are the same on all devices, moves), of the inputs,
      labels, keys and moves (leaves `[B, ...]`) it is given; called on each device with
      its share of them, inside `jax.shard_map`.
    mesh: from `create_mesh`.
    one_candidate: whether there is one gradient whatever the number of keys, and every
      device of the restart axis computes the same.
    one_key: whether all devices are given the same key, not each its share of several.

  Returns:
    A function of the same arguments and results, except that the gradients come as
    `[K, n, m]`, see `Packing`, with n split over all devices.
  """

  def share(params, *args):
    gradients, *rest = gradients_of(params, *args)
    rows = Packing(params, mesh.size).pack(gradients)
    return _exchange(rows, mesh, one_candidate), *rest

  restarts = None if one_candidate else RESTART
  of_example = PartitionSpec(restarts, DATA)
  everywhere, batch = PartitionSpec(), PartitionSpec(DATA)
  return jax.shard_map(
    share,
    mesh=mesh,
    in_specs=(
      everywhere,
      everywhere,
      batch,
      batch,
      everywhere if one_key else PartitionSpec(RESTART),
      everywhere,
      batch,
    ),
    out_specs=(
      PartitionSpec(None, ALL),
      of_example,
      of_example,
      PartitionSpec(restarts),
      everywhere,
      batch,
    ),
    check_vma=False,
  )


def _exchange(rows, mesh, one_candidate):
  """`[K here, n, m]` of a share of the batch -> `[K, 1, m]` of the whole batch."""
  rows = jax.lax.psum_scatter(rows, DATA, scatter_dimension=1, tiled=True)
  rows = rows / mesh.shape[DATA]
  if one_candidate:
    return jax.lax.dynamic_slice_in_dim(rows, jax.lax.axis_index(RESTART), 1, axis=1)
  return jax.lax.all_to_all(rows, RESTART, split_axis=1, concat_axis=0, tiled=True)


def worst_over_restarts(
  candidates: jax.Array, losses: jax.Array, mesh: Mesh | None
) -> jax.Array:
  """`ddi_jax.worst_candidate` among all restarts, those on other devices too."""
  worst = ddi_jax.worst_candidate(candidates, losses)
  if mesh is None:
    return worst
  gathered = jax.lax.all_gather((worst, losses.max(axis=0)), RESTART)
  return ddi_jax.worst_candidate(*gathered)


def split_direction(
  direction: optax.GradientTransformationExtraArgs, mesh: Mesh, *, fsdp: bool
) -> optax.GradientTransformationExtraArgs:
  """A direction of what `split_gradients` gives; out come ordinary leaves.

  Each device combines its part of the coordinates.  The result, one direction, is then
  gathered on every device; or with `fsdp` it stays split as the parameters are.
  """

  def update(updates, state, params=None, *, losses=None, key=None, **extra_args):
    del extra_args

    def combine(rows, state, losses, key):
      gradients = ddi_jax.KeptGradients(rows, axis_name=ALL)
      return direction.update(gradients, state, losses=losses, key=key)

    everywhere = PartitionSpec()
    combined, state = jax.shard_map(
      combine,
      mesh=mesh,
      in_specs=(PartitionSpec(None, ALL), everywhere, everywhere, everywhere),
      out_specs=(PartitionSpec(ALL), everywhere),
      check_vma=False,
    )(updates, state, losses, key)
    if not fsdp:
      combined = jax.lax.with_sharding_constraint(combined, replicated(mesh))
    out = Packing(params, mesh.size).unpack(combined)
    return constrain(out, shardings(out, mesh, split=fsdp)), state

  return optax.GradientTransformationExtraArgs(direction.init, update)


def split_sums(
  sums_of: Callable[..., Any], mesh: Mesh, num_batched: int
) -> Callable[..., Any]:
  """A function that sums over a batch, with the batch split over all devices.

  Args:
    sums_of: (params, model_state, batched arrays `[B, ...]`, key) -> a tree of sums;
      called on each device, inside `jax.shard_map`.
    mesh: from `create_mesh`.
    num_batched: number of batched arrays.
  """
  everywhere = PartitionSpec()
  return jax.shard_map(
    lambda *args: jax.lax.psum(sums_of(*args), ALL),
    mesh=mesh,
    in_specs=(
      everywhere,
      everywhere,
      *(PartitionSpec(ALL),) * num_batched,
      everywhere,
    ),
    out_specs=everywhere,
    check_vma=False,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def shardings(tree: chex.ArrayTree, mesh: Mesh, *, split: bool) -> chex.ArrayTree:
  """How leaves lie: split over all devices along `split_dimension`, else replicated."""
  # As XLA writes it, that a step's result has the very sharding of its argument.
  axes = tuple(name for name in ALL if mesh.shape[name] > 1)

  def sharding(leaf):
    dimension = split_dimension(leaf.shape, mesh.size) if split else None
    if dimension is None:
      return replicated(mesh)
    return NamedSharding(mesh, PartitionSpec(*(None,) * dimension, axes))

  return jax.tree.map(sharding, tree)


def constrain(tree: chex.ArrayTree, tree_shardings: chex.ArrayTree) -> chex.ArrayTree:
  """`jax.lax.with_sharding_constraint`, leaf by leaf."""
  return jax.tree.map(jax.lax.with_sharding_constraint, tree, tree_shardings)


def host_share(mesh: Mesh | None, axes: Any, batch_size: int) -> tuple[int, int]:
  """Which part of every batch this process's devices need: (part, number of parts).

  Args:
    mesh: from `create_mesh`.
    axes: the mesh axes that the batch is split over.
    batch_size: of the whole batch, a multiple of these axes' sizes.
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
  """A batch, of which this process has the part `host_share`, on the mesh's devices."""
  if mesh is None:
    return batch
  sharding = NamedSharding(mesh, PartitionSpec(axes))
  return {
    name: jax.make_array_from_process_local_data(sharding, array)
    for name, array in batch.items()
  }
