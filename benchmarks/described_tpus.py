"""Compile the training step for TPUs that are described and need not exist.

`pip install libtpu` provides the compiler.  Nothing is allocated, because state and
batch are only shapes.
"""

import math
import os
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_collections
import numpy as np

from ddi_jax import models
from ddi_jax.training.devices import mesh as meshes
from ddi_jax.training.settings.model import create_model, known_images
from ddi_jax.training.step import train_step, warm_memory
from ddi_jax.training.step.state import Hyperparameters, create_train_state

# Size of the training set, for settings that count epochs and the memory of `warm`.
_TRAINING_IMAGES = 50_000


def describe(topology: str) -> list[Any]:
  """The devices of a topology, for example "v5e:2x2".

  Raises:
    RuntimeError: if libtpu is missing or does not know the topology.
  """
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # There is no TPU to ask.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  return list(topologies.get_topology_desc(topology, platform="tpu").devices)


def lower(config: ml_collections.ConfigDict, devices: list[Any]) -> tuple[Any, Any]:
  """Lower the step of a config for `config.mesh` of these devices.

  Args:
    config: a checked config of a known data set.
    devices: from `describe`, at least as many as the mesh has.

  Returns:
    (the result of `jax.jit(...).lower`, the shapes of the `TrainState`).
  """
  shape = (config.mesh.data, config.mesh.restart)
  mesh = Mesh(np.array(devices[: math.prod(shape)]).reshape(shape), meshes.ALL)
  images = known_images(config)
  network = create_model(config, images, abstract=True)
  apply, params, model_state = models.functional(network)
  steps_per_epoch = max(1, _TRAINING_IMAGES // config.batch_size)
  parts = train_step.create_parts(
    config,
    apply,
    steps_per_epoch=steps_per_epoch,
    total_steps=max(1, round(config.num_epochs * steps_per_epoch)),
    max_value=255,
    mesh=mesh,
  )

  def create_state(*trees: Any) -> Any:
    memory = warm_memory.create_memory(config, _TRAINING_IMAGES, images.image_shape)
    return create_train_state(*trees, parts.optimizer)._replace(memory=memory)

  state = jax.eval_shape(create_state, params, model_state)
  step = train_step.jit_step(train_step.create_train_step(parts), config, state, mesh)
  lowered = step.lower(
    jax.tree.map(
      _described, state, train_step.state_shardings(state, mesh, config.mesh.fsdp)
    ),
    _batch(config.batch_size, images.image_shape, mesh),
    Hyperparameters(config.seed, config.optimizer.learning_rate),
  )
  return lowered, state


def _batch(size: int, image_shape: tuple[int, ...], mesh: Mesh) -> dict[str, Any]:
  by_example = NamedSharding(mesh, PartitionSpec(meshes.DATA))
  arrays = {
    "image": jax.ShapeDtypeStruct((size, *image_shape), np.uint8),
    "label": jax.ShapeDtypeStruct((size,), np.int32),
    "index": jax.ShapeDtypeStruct((size,), np.int32),
  }
  return {name: _described(array, by_example) for name, array in arrays.items()}


def _described(array: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
