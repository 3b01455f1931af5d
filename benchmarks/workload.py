"""Shared by benchmarks of a training step: its flags, its parts and its timing."""

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
from progress import progress

from ddi_jax import data, models, training
from ddi_jax.models import layers
from ddi_jax.models.pure import Apply
from ddi_jax.training.devices import mesh as meshes
from ddi_jax.training.run.experiment import create_model
from ddi_jax.training.settings.values import ATTACK_DTYPES
from ddi_jax.training.step.state import TrainState

_MODEL = flags.DEFINE_enum("model", "resnet18", models.MODELS, "Network.")
_WIDTH = flags.DEFINE_integer("width", 16, "Channels of the first convolution.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images, 32x32x3.")
_NUM_RESTARTS = flags.DEFINE_integer("num_restarts", 4, "Number of restarts, K.")
_STEPS = flags.DEFINE_integer("steps", 7, "Steps of the attack.")
_ATTACK_DTYPE = flags.DEFINE_enum(
  "attack_dtype", "float32", ATTACK_DTYPES, "Dtype of the network under attack."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed rounds, after a warm-up round.")
_CONVOLUTION = flags.DEFINE_enum("convolution", "ddi_jax", ["ddi_jax", "lax"], "Whose.")
_NUM_CLASSES = 10
_NORM_GROUPS = 8  # The networks' default.


class Workload(NamedTuple):
  """A training step of the program, and a batch for it.

  Attributes:
    config: a checked config.
    experiment: the parts of the run, including `experiment.train_step`.
    state: the initial state.  A step donates it; `experiment.start()` makes new ones.
    batch: "image", uint8 `[B, 32, 32, 3]`, "label" and "index", `[B]`.  It is on the
      mesh's devices if there is a mesh.
  """

  config: ml_collections.ConfigDict
  experiment: training.Experiment
  state: TrainState
  batch: Mapping[str, Any]

  @property
  def apply(self) -> Apply:
    """The network as a pure function."""
    return self.experiment.apply

  @property
  def model(self) -> nnx.Module:
    """The network as a new module with the same parameters."""
    return create_model(self.config, self.experiment.splits)

  @property
  def train_step(self) -> Any:
    """(state, batch, hyperparameters) -> (state, metrics), as the program runs it."""
    return self.experiment.train_step

  @property
  def images(self) -> Any:
    """The images, uint8 `[B, 32, 32, 3]`."""
    return self.batch["image"]

  @property
  def labels(self) -> Any:
    """The labels, integers `[B]`."""
    return self.batch["label"]

  def lower(self) -> Any:
    """Lower the training step for this state and batch."""
    return self.train_step.lower(
      self.state, self.batch, self.experiment.hyperparameters
    )


def create(method: str, changes: Mapping[str, Any] | None = None) -> Workload:
  """Create a method's training step on random images, as the flags say.

  Flags that the method or the network does not use are ignored.

  Args:
    method: a value of `config.method`.
    changes: other settings by dotted name.  A setting that nothing uses is an error.
  """
  changes = changes or {}
  config = create_config(method, changes)
  if _CONVOLUTION.value == "lax":
    layers.conv_general_dilated = jax.lax.conv_general_dilated
  mesh = meshes.create_mesh(config)
  images = _random_images(config.batch_size)
  splits = data.Splits(
    train=images,
    validation=images,
    test=images,
    max_value=255,
    num_classes=_NUM_CLASSES,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
  )
  experiment = training.create_experiment(config, splits, mesh)
  batch = {
    "image": images.images,
    "label": images.labels,
    "index": np.arange(config.batch_size),
  }
  return Workload(
    config=config,
    experiment=experiment,
    state=experiment.start(),
    batch=meshes.to_devices(mesh, meshes.DATA, batch),
  )


def create_config(method: str, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """The config of `create`, checked."""
  config = training.default_config()
  config.method = method
  config.data.name = "cifar10"  # Only its shape is used; the images are random.
  config.num_restarts = _NUM_RESTARTS.value
  config.batch_size = _BATCH_SIZE.value
  config.model.name = _MODEL.value
  config.model.width = _WIDTH.value
  config.model.activation = "celu"
  config.model.normalization = "group"
  if _WIDTH.value < _NORM_GROUPS:
    config.model.norm_groups = _WIDTH.value
  config.attack.epsilon = 0.031
  config.attack.steps = _STEPS.value
  config.attack.dtype = _ATTACK_DTYPE.value
  config.update_from_flattened_dict(changes)
  config = training.drop_unused(config, keep=changes)
  training.check_config(config)
  return config


def _random_images(count: int) -> data.Dataset:
  rng = np.random.default_rng(0)
  return data.Dataset(
    rng.integers(0, 256, (count, 32, 32, 3), np.uint8),
    rng.integers(0, _NUM_CLASSES, count).astype(np.int32),
  )


class CompiledStep:
  """A compiled training step that keeps its own state between calls.

  Attributes:
    compile_seconds: the time that compilation took.
    bytes: XLA's plan of arguments, results and temporaries.
    temporary_bytes: XLA's plan of temporaries alone.
  """

  def __init__(self, work: Workload):
    began = time.perf_counter()
    self._step = work.lower().compile()
    self.compile_seconds = time.perf_counter() - began
    self._state, self._batch = work.experiment.start(), work.batch
    self._hyperparameters = work.experiment.hyperparameters
    memory = self._step.memory_analysis()
    self.temporary_bytes = memory.temp_size_in_bytes
    self.bytes = (
      memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      + memory.temp_size_in_bytes
      - memory.alias_size_in_bytes
    )

  def __call__(self) -> Any:
    self._state, metrics = self._step(self._state, self._batch, self._hyperparameters)
    return self._state, metrics


def describe() -> str:
  """A description of the flags' settings, the machine and the versions."""
  return (
    f"{_MODEL.value} (CELU, GroupNorm), width {_WIDTH.value}, batch "
    f"{_BATCH_SIZE.value}, K = {_NUM_RESTARTS.value}, PGD-{_STEPS.value} in "
    f"{_ATTACK_DTYPE.value}, "
    f"{_CONVOLUTION.value} convolution; {describe_machine('jax', 'jaxlib')}; median of "
    f"{_REPEATS.value}."
  )


def median_seconds(calls: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
  """Time calls in turn, round after round, so that a busy machine slows all."""
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in progress(range(_REPEATS.value + 1)):
    for name, call in calls.items():
      began = time.perf_counter()
      jax.block_until_ready(call())
      seconds[name].append(time.perf_counter() - began)
  return {name: statistics.median(values[1:]) for name, values in seconds.items()}
