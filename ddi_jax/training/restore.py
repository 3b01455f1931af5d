"""The network of a run, from its folder alone."""

import contextlib
import json
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import ml_collections

from ddi_jax import models
from ddi_jax.data import DATASETS, image_shape
from ddi_jax.training.checkpoints import Checkpoints
from ddi_jax.training.config import (
  ConfigError,
  check_config,
  default_config,
  model_settings,
)
from ddi_jax.training.step import create_optimizer, create_schedule, create_train_state
from ddi_jax.training.workdir import CONFIG_FILE

CHECKPOINTS = ("best", "last")


def load_config(workdir: Path | str) -> ml_collections.ConfigDict:
  """The config that a run was made with.

  Raises:
    ConfigError: if the folder holds no run, or one of another version's settings.
  """
  path = Path(workdir) / CONFIG_FILE
  if not path.is_file():
    raise ConfigError(f"{workdir} holds no run: there is no {CONFIG_FILE} in it.")
  config = default_config()
  try:
    _update(config, json.loads(path.read_text()))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ConfigError(f"{path} is not a config of this version: {error}.") from error
  check_config(config)
  return config


def load_model(workdir: Path | str, checkpoint: str = "best") -> nnx.Module:
  """The trained network of a run, in evaluation mode; the data are not needed.

  Args:
    workdir: the run's folder, finished or not.
    checkpoint: "best" by validation robust accuracy, or "last".

  Returns:
    A module: images `[B, H, W, C]` in [0, 1] -> logits `[B, num_classes]`.

  Raises:
    ConfigError: if the folder holds no run, or there is no such checkpoint.
    CheckpointError: if the checkpoint is not as it was saved.
  """
  return restore_model(load_config(workdir), Path(workdir), checkpoint)[0]


def restore_model(
  config: ml_collections.ConfigDict, workdir: Path, checkpoint: str
) -> tuple[nnx.Module, int]:
  """As `load_model`, of a run whose config is known; and the checkpoint's step."""
  if checkpoint not in CHECKPOINTS:
    raise ConfigError(
      f"checkpoint must be one of {', '.join(CHECKPOINTS)}; got {checkpoint!r}."
    )
  description = DATASETS[config.data.name]
  model = models.create_model(
    config.model.name,
    image_shape=image_shape(config.data.name, config.data.resolution),
    num_classes=description.num_classes,
    mean=description.mean,
    std=description.std,
    settings=model_settings(config),
    seed=config.seed,
  )
  _, params, model_state = models.functional(model)
  # The schedule's length leaves no trace in a state.
  optimizer = create_optimizer(config, create_schedule(config, 1))
  like = jax.eval_shape(
    lambda params, model_state: create_train_state(params, model_state, optimizer),
    params,
    model_state,
  )
  # Wherever it was trained.
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), like
  )
  with contextlib.closing(Checkpoints(workdir)) as checkpoints:
    latest, best = checkpoints.latest_step, checkpoints.best_step
    step = best if checkpoint == "best" else latest
    if step is None:
      hint = "" if latest is None else f"; the last is of step {latest}"
      raise ConfigError(f"{workdir} holds no {checkpoint} checkpoint yet{hint}.")
    state, _ = checkpoints.restore(step, like)
  nnx.update(model, state.params)
  nnx.update(model, state.model_state)
  model.eval()
  return model, step


def _update(config: ml_collections.ConfigDict, stored: dict[str, Any]) -> None:
  """Sets every field; JSON knows lists only, where a config has tuples."""
  for name, value in stored.items():
    if isinstance(value, dict):
      _update(config[name], value)
    else:
      config[name] = tuple(value) if isinstance(value, list) else value
