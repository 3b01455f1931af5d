"""Build what a config describes: data, network, training step and validation."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import chex
from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections
import numpy as np

from ddi_jax import data, models
from ddi_jax.models.pure import Apply
from ddi_jax.training.devices import mesh as meshes
from ddi_jax.training.settings import model, pieces
from ddi_jax.training.settings.pieces import ConfigError
from ddi_jax.training.step import warm_memory
from ddi_jax.training.step.state import (
  Hyperparameters,
  TrainState,
  create_train_state,
)
from ddi_jax.training.step.train_step import (
  StepParts,
  create_parts,
  create_train_step,
  jit_step,
  state_shardings,
)
from ddi_jax.training.step.validation import ValidateFn, create_validate


class Experiment(NamedTuple):
  """The parts of a run.

  Attributes:
    splits: the data.
    total_steps: number of steps.
    evaluate_every: number of steps between validations.
    mesh: mesh of several devices, None for one.
    apply: the network, see `ddi_jax.models.functional`.
    initial_state: the state before the first step, without the memory of the source
      warm.
    start: () -> a copy of the initial state with that memory.  A copy is needed because
      a step donates its input.
    hyperparameters: the run's hyperparameters, an argument of each step.
    parts: the parts of the step, see `training.step.train_step`.
    train_step: (state, batch, hyperparameters) -> (state, metrics), jitted.
    validate: see `training.step.validation`.
  """

  splits: data.Splits
  total_steps: int
  evaluate_every: int
  mesh: Mesh | None
  apply: Apply
  initial_state: TrainState
  start: Callable[[], TrainState]
  hyperparameters: Hyperparameters
  parts: StepParts
  train_step: Any
  validate: ValidateFn


def load_data(config: ml_collections.ConfigDict) -> data.Splits:
  """The data set of the config.

  Raises:
    ConfigError: if the data set is too small for a setting, or has a wrong form.
    DataError: if the data set is not available.

  Example:
    >>> from ddi_jax import training
    >>> len(training.load_data(training.default_config()).train)
    1237
  """
  settings = config.data
  split = {
    "validation_size": settings.validation_size,
    "split_seed": settings.split_seed,
    "limit": settings.limit,
  }
  factory = pieces.find("data.name", settings.name, dict.fromkeys(data.DATASETS))
  try:
    if factory is None:
      return data.load(
        settings.name,
        data_dir=settings.data_dir,
        resolution=settings.resolution,
        streaming=settings.streaming,
        **split,
      )
    arrays = pieces.call(factory, config.data_settings, "data_settings")
    return data.split_arrays(arrays, name=settings.name, **split)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(f"config.{error}") from error


def image_kind(splits: data.Splits) -> model.ImageKind:
  """What the network needs to know about the data."""
  return model.ImageKind(
    splits.train.image_shape, splits.num_classes, splits.mean, splits.std
  )


def create_model(
  config: ml_collections.ConfigDict, splits: data.Splits, *, abstract: bool = False
) -> nnx.Module:
  """Create the config's network for this data, initialised, or only its shapes."""
  return model.create_model(config, image_kind(splits), abstract=abstract)


def _check_logits(
  config: ml_collections.ConfigDict, splits: data.Splits, apply: Callable[..., Any]
) -> None:
  """Raise ConfigError unless a network of the user's has a logit for every class."""
  if model.settings_group(config) != model.OWN_SETTINGS:
    return
  images = jax.ShapeDtypeStruct((2, *splits.train.image_shape), jnp.float32)
  logits, _ = jax.eval_shape(functools.partial(apply, train=False), images)
  if logits.shape != (2, splits.num_classes):
    raise ConfigError(
      f"config.model.name {config.model.name!r} must return logits "
      f"[B, {splits.num_classes}], one for each class of the data, got the shape "
      f"{logits.shape} for 2 images."
    )


def create_experiment(
  config: ml_collections.ConfigDict,
  splits: data.Splits,
  mesh: Mesh | None = None,
  change_parts: Callable[[StepParts, Apply], StepParts] = lambda parts, apply: parts,
) -> Experiment:
  """Create the parts of a run from a checked config.

  Args:
    config: a checked config.
    splits: the config's data.
    mesh: mesh of several devices, or None.
    change_parts: (parts, apply) -> parts.  Replaces some of the step's parts.

  Raises:
    ConfigError: for a network of the user's that does not fit the data.

  Example:
    >>> from ddi_jax import training
    >>> config = training.select_variant(training.default_config(), "debug")
    >>> splits = training.load_data(config)
    >>> experiment = training.create_experiment(config, splits)
    >>> batch = splits.train.read(range(32))
    >>> state, metrics = experiment.train_step(
    ...     experiment.start(), batch, experiment.hyperparameters)
    >>> int(state.step), sorted(metrics)[:3]
    (1, ['direction/cosine', 'direction/gap', 'direction/min_cosine'])
  """
  steps_per_epoch = len(splits.train) // config.batch_size
  total_steps = max(1, round(config.num_epochs * steps_per_epoch))
  apply, params, model_state = models.functional(create_model(config, splits))
  _check_logits(config, splits, functools.partial(apply, params, model_state))
  parts = change_parts(
    create_parts(
      config,
      apply,
      steps_per_epoch=steps_per_epoch,
      total_steps=total_steps,
      max_value=splits.max_value,
      mesh=mesh,
    ),
    apply,
  )
  state = create_train_state(params, model_state, parts.optimizer)
  # Commit the state to its devices, like a restored state.  Otherwise XLA would compile
  # the step twice.
  replicated: Any = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  state_sharding: Any = replicated
  if mesh is not None:
    replicated = meshes.replicated(mesh)
    state_sharding = state_shardings(state, mesh, config.mesh.fsdp)
    state = jax.tree.map(np.asarray, state)  # NumPy arrays are the same on all hosts.
  state = jax.device_put(state, state_sharding)

  @functools.partial(jax.jit, out_shardings=replicated)
  def create_memory() -> chex.ArrayTree:
    images = (len(splits.train), splits.train.image_shape)
    return warm_memory.create_memory(config, *images)

  # One program: compiling one for every shape takes longer.
  @functools.partial(jax.jit, out_shardings=state_sharding)
  def copy(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)

  def start() -> TrainState:
    return copy(state)._replace(memory=create_memory())

  whole_state = state._replace(memory=jax.eval_shape(create_memory))
  return Experiment(
    splits=splits,
    total_steps=total_steps,
    evaluate_every=max(1, round(config.evaluation.every_epochs * steps_per_epoch)),
    mesh=mesh,
    apply=apply,
    initial_state=state,
    start=start,
    hyperparameters=Hyperparameters(config.seed, config.optimizer.learning_rate),
    parts=parts,
    train_step=jit_step(create_train_step(parts), config, whole_state, mesh),
    validate=create_validate(config, apply, splits.max_value, mesh),
  )
