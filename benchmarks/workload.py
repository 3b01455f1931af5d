"""What the benchmarks of a training step share: its flags, its parts, its clock."""

from collections.abc import Callable, Mapping
import statistics
import time
from typing import Any, NamedTuple

from absl import flags
from flax import nnx
import jax
from machine import describe_machine
import ml_collections
import numpy as np
import optax

from ddi_jax import models, training
from ddi_jax.models import layers
from ddi_jax.models.functional import Apply
from ddi_jax.training import mesh as meshes
from ddi_jax.training import step as step_lib
from ddi_jax.training.config import ATTACK_DTYPES, model_settings

_MODEL = flags.DEFINE_enum("model", "resnet18", models.MODELS, "Network.")
_WIDTH = flags.DEFINE_integer("width", 16, "Channels of its first convolution.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images, 32x32x3.")
_NUM_RESTARTS = flags.DEFINE_integer("num_restarts", 4, "K.")
_STEPS = flags.DEFINE_integer("steps", 7, "Steps of the attack.")
_ATTACK_DTYPE = flags.DEFINE_enum(
  "attack_dtype", "float32", ATTACK_DTYPES, "Of the network under attack."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed rounds after one of warm-up.")
_CONVOLUTION = flags.DEFINE_enum("convolution", "ddi_jax", ["ddi_jax", "lax"], "Whose.")


class Workload(NamedTuple):
  """A training step and what it is made of."""

  config: ml_collections.ConfigDict
  model: nnx.Module
  apply: Apply
  optimizer: optax.GradientTransformationExtraArgs
  state: step_lib.TrainState
  train_step: step_lib.StepFn
  images: Any  # [B, 32, 32, 3], uint8
  labels: Any  # [B]


def create(
  method: str, loops: Mapping[str, str], changes: Mapping[str, Any] | None = None
) -> Workload:
  """The step of a method as the flags say, with loop forms and other settings.

  With `mesh.restart` or `mesh.data` among these, for that mesh: the state and the batch
  are then placed on it.
  """
  config = training.default_config()
  config.method = method
  config.num_restarts = _NUM_RESTARTS.value
  config.batch_size = _BATCH_SIZE.value
  config.model.name = _MODEL.value
  config.model.width = _WIDTH.value
  config.model.activation = "celu"
  config.model.normalization = "group"
  config.attack.epsilon = 0.031
  config.attack.steps = _STEPS.value
  config.attack.dtype = _ATTACK_DTYPE.value
  config.loops.update(loops)
  config.update_from_flattened_dict(changes or {})
  if _CONVOLUTION.value == "lax":
    layers.conv_general_dilated = jax.lax.conv_general_dilated
  rng = np.random.default_rng(0)
  model = models.create_model(
    config.model.name,
    image_shape=(32, 32, 3),
    num_classes=10,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    settings=model_settings(config),
    seed=0,
  )
  mesh = meshes.create_mesh(config)
  apply, params, model_state = models.functional(
    model, batch_axis=meshes.batch_axis(mesh)
  )
  schedule = step_lib.create_schedule(config, 1000)
  optimizer = step_lib.create_optimizer(config, schedule, mesh)
  state = step_lib.create_train_state(params, model_state, optimizer)
  batch = {
    "image": rng.integers(0, 256, (config.batch_size, 32, 32, 3), np.uint8),
    "label": rng.integers(0, 10, config.batch_size).astype(np.int32),
  }
  if mesh is not None:
    where = step_lib.state_shardings(state, mesh, config.mesh.fsdp)
    state = jax.device_put(state, where)
  batch = meshes.to_devices(mesh, meshes.DATA, batch)
  return Workload(
    config=config,
    model=model,
    apply=apply,
    optimizer=optimizer,
    state=state,
    train_step=step_lib.create_train_step(
      config, apply, optimizer, schedule, steps_per_epoch=1, max_value=255, mesh=mesh
    ),
    images=batch["image"],
    labels=batch["label"],
  )


class CompiledStep:
  """A workload's training step, compiled, that goes on from its own state when called.

  Attributes:
    compile_seconds: how long that took.
    bytes: XLA's plan of arguments, results and temporaries.
  """

  def __init__(self, work: Workload):
    self._state, self._batch = work.state, (work.images, work.labels)
    began = time.perf_counter()
    self._step = work.train_step.lower(self._state, *self._batch).compile()
    self.compile_seconds = time.perf_counter() - began
    memory = self._step.memory_analysis()
    self.bytes = (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      + memory.temp_size_in_bytes
      - memory.alias_size_in_bytes
    )

  def __call__(self) -> Any:
    self._state, metrics = self._step(self._state, *self._batch)
    return self._state, metrics


def describe() -> str:
  """What the flags ask for, on which machine, with which versions."""
  return (
    f"{_MODEL.value} (CELU, GroupNorm), width {_WIDTH.value}, batch "
    f"{_BATCH_SIZE.value}, K = {_NUM_RESTARTS.value}, PGD-{_STEPS.value} in "
    f"{_ATTACK_DTYPE.value}, "
    f"{_CONVOLUTION.value} convolution; {describe_machine('jax', 'jaxlib')}; median of "
    f"{_REPEATS.value}."
  )


def median_seconds(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
  """Times calls in turn, round after round, so that a busy machine slows all."""
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(_REPEATS.value + 1):
    for name, call in calls.items():
      began = time.perf_counter()
      jax.block_until_ready(call())
      seconds[name].append(time.perf_counter() - began)
  return {name: statistics.median(values[1:]) for name, values in seconds.items()}
