"""The training program: from a config to a trained, evaluated network."""

from ddi_jax.training.checkpoints import CheckpointError
from ddi_jax.training.config import ConfigError, default_config, select_variant
from ddi_jax.training.distributed import OtherProcessError
from ddi_jax.training.judge import judge
from ddi_jax.training.judging_plan import JudgingSettings
from ddi_jax.training.restore import load_config, load_model
from ddi_jax.training.train import TrainingError, train

__all__ = [
  "CheckpointError",
  "ConfigError",
  "JudgingSettings",
  "OtherProcessError",
  "TrainingError",
  "default_config",
  "judge",
  "load_config",
  "load_model",
  "select_variant",
  "train",
]
