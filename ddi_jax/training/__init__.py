"""The training program: from a config to a trained, evaluated network."""

from ddi_jax.checks import check_installed, missing_extra

try:
  from ddi_jax.training.audit.plan import AuditSettings
  from ddi_jax.training.audit.program import audit_run
  from ddi_jax.training.devices.processes import OtherProcessError
  from ddi_jax.training.run.experiment import Experiment, create_experiment, load_data
  from ddi_jax.training.run.loop import TrainingError
  from ddi_jax.training.run.program import train
  from ddi_jax.training.run.restore import load_config, load_model
  from ddi_jax.training.settings.check import check_config, drop_unused
  from ddi_jax.training.settings.config import default_config, select_variant
  from ddi_jax.training.settings.pieces import ConfigError
  from ddi_jax.training.storage.checkpoints import CheckpointError

  check_installed("matplotlib", "orbax.checkpoint")
except ModuleNotFoundError as error:
  raise missing_extra("training", error) from error

__all__ = [
  "AuditSettings",
  "CheckpointError",
  "ConfigError",
  "Experiment",
  "OtherProcessError",
  "TrainingError",
  "audit_run",
  "check_config",
  "create_experiment",
  "default_config",
  "drop_unused",
  "load_config",
  "load_data",
  "load_model",
  "select_variant",
  "train",
]
