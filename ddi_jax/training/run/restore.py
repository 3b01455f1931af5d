"""Load a run's config and network from its folder."""

import contextlib
from pathlib import Path
from typing import Any

from flax import nnx
import jax
import ml_collections

from ddi_jax import models
from ddi_jax.training.run.experiment import image_kind, load_data
from ddi_jax.training.settings.check import check_config, own_pieces
from ddi_jax.training.settings.config import default_config
from ddi_jax.training.settings.model import create_model, known_images
from ddi_jax.training.settings.pieces import ConfigError
from ddi_jax.training.step.state import create_train_state
from ddi_jax.training.step.train_step import create_optimizer
from ddi_jax.training.storage import files
from ddi_jax.training.storage.checkpoints import Checkpoints
from ddi_jax.training.storage.workdir import CONFIG_FILE, absolute

CHECKPOINTS = ("best", "last")


def load_config(
  workdir: Path | str, *, trusted: bool = False
) -> ml_collections.ConfigDict:
  """Read the config with which a run was made.

  Args:
    workdir: the run's folder.
    trusted: whether pieces that the config names as `module:name` may be imported and
      called.  They can do anything, so set this only for a folder that you trust.

  Raises:
    ConfigError: if the folder holds no run, the run's settings are not those of this
      version, or its config names a `module:name` and `trusted` is False.

  Example:
    >>> import tempfile
    >>> from pathlib import Path
    >>> from ddi_jax import training
    >>> from ddi_jax.training.storage.workdir import claim_workdir
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   with claim_workdir(Path(folder) / "run", training.default_config()):
    ...     training.load_config(Path(folder) / "run").method
    'danskin'
  """
  path = absolute(workdir) / CONFIG_FILE
  if not path.is_file():
    raise ConfigError(f"{workdir} holds no run: there is no {CONFIG_FILE} in it.")
  config = default_config()
  try:
    _update(config, files.read_json(path))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ConfigError(f"{path} is not a config of this version: {error}.") from error
  own = own_pieces(config)
  if own and not trusted:
    raise ConfigError(
      f"{path} names {', '.join(own)}, which would be imported and called: give "
      "trusted=True if you trust this folder."
    )
  check_config(config)
  return config


def load_model(
  workdir: Path | str, checkpoint: str = "best", *, trusted: bool = False
) -> nnx.Module:
  """Load the trained network of a run, in evaluation mode.

  The data are not needed.

  Args:
    workdir: the run's folder; the run need not be finished.
    checkpoint: "best" by validation robust accuracy, or "last".
    trusted: see `load_config`.

  Returns:
    A module: images `[B, H, W, C]` in [0, 1] -> logits `[B, num_classes]`.

  Raises:
    ConfigError: if the folder holds no run, or there is no such checkpoint.
    CheckpointError: if the checkpoint is not as it was saved.

  Example:
    >>> import contextlib, io, tempfile
    >>> from pathlib import Path
    >>> from ddi_jax import training
    >>> config = training.select_variant(training.default_config(), "debug")
    >>> config.num_epochs, config.model.name = 0.5, "mlp"
    >>> folder = tempfile.TemporaryDirectory()
    >>> workdir = Path(folder.name) / "run"
    >>> with contextlib.redirect_stdout(io.StringIO()):
    ...   summary = training.train(config, workdir)
    >>> import jax.numpy as jnp
    >>> training.load_model(workdir)(jnp.zeros((4, 8, 8, 1))).shape
    (4, 10)
    >>> folder.cleanup()
  """
  config = load_config(workdir, trusted=trusted)
  return restore_model(config, absolute(workdir), checkpoint)[0]


def restore_model(
  config: ml_collections.ConfigDict, workdir: Path, checkpoint: str
) -> tuple[nnx.Module, int]:
  """Load the network and step of a checkpoint, with a known config.

  See `load_model`.
  """
  if checkpoint not in CHECKPOINTS:
    raise ConfigError(
      f"checkpoint must be one of {', '.join(CHECKPOINTS)}; got {checkpoint!r}."
    )
  model = create_model(config, known_images(config) or image_kind(load_data(config)))
  _, params, model_state = models.functional(model)
  optimizer = create_optimizer(config)
  like = jax.eval_shape(
    lambda params, model_state: create_train_state(params, model_state, optimizer),
    params,
    model_state,
  )
  # Load onto this device, wherever the network was trained.
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
  """Set every field; convert lists to tuples, which JSON does not have."""
  for name, value in stored.items():
    if isinstance(value, dict):
      _update(config[name], value)
    else:
      config[name] = tuple(value) if isinstance(value, list) else value
