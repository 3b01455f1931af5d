"""The settings of a run: their defaults and their meaning."""

from typing import Any

import ml_collections
from ml_collections import config_dict

import ddi_jax
from ddi_jax import candidates, models
from ddi_jax.training.settings import model, optimizers, pieces
from ddi_jax.training.settings.pieces import ConfigError


def default_config() -> ml_collections.ConfigDict:
  """Return all settings with their defaults; a config file changes some of them.

  A group that feeds a function of the library has that function's arguments and
  defaults.  A setting that is changed and that nothing chosen uses is an error.

  Example:
    >>> from ddi_jax import training
    >>> config = training.default_config()
    >>> config.method, config.attack.epsilon, config.danskin.solver
    ('danskin', 0.1, 'active_set')
  """
  config = ml_collections.ConfigDict()
  config.seed = 0  # of initial parameters, batches, augmentation and attacks
  # A name of ddi_jax/training/settings/methods.py, or your own: "module:name".
  config.method = "danskin"
  config.method_settings = ml_collections.ConfigDict()  # of your own method
  config.num_restarts = 4  # K, of all methods but standard and pgd
  # Where the candidates come from, in place of num_restarts restarts of config.attack:
  # names of ddi_jax/training/settings/sources.py with their numbers,
  # ("uniform:2", "spatial"), or your own, ("module:name:2",).
  config.sources = ()
  config.source_settings = ml_collections.ConfigDict()  # of your own sources
  config.unit_norm = False  # scale the direction to norm 1, with any method
  config.batch_size = 128
  config.num_epochs = 10.0
  _add_methods(config)
  _add_sources(config)
  _add_data(config)
  _add_model(config)
  _add_attack(config)
  _add_optimizer(config)
  _add_evaluation(config)
  _add_devices(config)
  config.lock()  # A misspelt field is an error.
  for group in ("method", "source", "model", "data"):
    config[f"{group}_settings"].unlock()
  return config


def _add_methods(config: ml_collections.ConfigDict) -> None:
  config.danskin = pieces.group(
    ddi_jax.danskin_direction,
    names=("bundle_step", "loss_tolerance", "solver", "tolerance", "max_iterations"),
  )
  config.proximal = pieces.group(  # step None: the learning rate
    ddi_jax.proximal_danskin_gradient,
    names=("step", "per", "iterations", "tolerance", "memory"),
  )
  config.mgda = pieces.group(ddi_jax.mgda_direction, names=("normalization",))
  config.cagrad = pieces.group(ddi_jax.cagrad_direction, names=("radius",))


def _add_sources(config: ml_collections.ConfigDict) -> None:
  config.radii = ml_collections.ConfigDict()  # of the sources linf, l2, l1 and msd
  config.radii.linf = 0.1
  config.radii.l2 = 1.0
  config.radii.l1 = 5.0
  config.spatial = pieces.group(
    candidates.spatial, names=("max_degrees", "max_shift", "tries")
  )
  config.warm = ml_collections.ConfigDict()
  config.warm.steps = config_dict.placeholder(int)  # None: config.attack.steps
  config.warm.reset_epochs = config_dict.placeholder(int)  # forgets so often; None: not


def _add_data(config: ml_collections.ConfigDict) -> None:
  config.data = ml_collections.ConfigDict()
  config.data.name = "digits"  # or your own, "module:name"
  config.data.data_dir = config_dict.placeholder(str)  # None: TFDS' own
  config.data.validation_size = 200  # held out of the training set
  config.data.split_seed = 0  # of the choice of the validation images
  config.data.limit = config_dict.placeholder(int)  # images per split; None: all
  # Height and width, of data sets whose images differ in size (imagenet2012).
  config.data.resolution = config_dict.placeholder(int)
  config.data.streaming = "auto"  # or "always", "never": read images when needed
  config.data.pad = 0  # pixels of padding before a random crop
  config.data.flip = False  # mirror at random
  config.data_settings = ml_collections.ConfigDict()  # of your own data set


def _add_model(config: ml_collections.ConfigDict) -> None:
  config.model = pieces.group(
    *models.MODELS.values(), names=model.FIELDS, own_defaults=True
  )
  config.model.name = "small"  # or your own, "module:name"
  config.model_settings = ml_collections.ConfigDict()  # of your own model


def _add_attack(config: ml_collections.ConfigDict) -> None:
  config.attack = pieces.group(
    ddi_jax.pgd, names=("random_start", "iterate", "stop_below")
  )
  config.attack.norm = "linf"
  config.attack.epsilon = 0.1  # radius; images are in [0, 1]
  config.attack.warmup_epochs = 0.0  # the radius grows linearly from 0 over these
  config.attack.steps = 7
  config.attack.step_size = config_dict.placeholder(float)  # None: 2.5 epsilon / steps
  config.attack.dtype = "float32"  # of the network under attack; or "bfloat16"
  config.attack.batch_norm = "train"  # BatchNorm's mode during the attack
  config.gradient = ml_collections.ConfigDict()
  config.gradient.batch_norm = "train"  # its mode in the gradient for the parameters
  # What the network draws there (Dropout): "per_candidate", or "shared" by all K.
  config.gradient.loss_keys = "per_candidate"


def _add_optimizer(config: ml_collections.ConfigDict) -> None:
  factories = (optimizers.sgd, optimizers.adam, optimizers.step)
  names = ("momentum", "weight_decay", "milestones", "decay")
  config.optimizer = pieces.group(*factories, names=names)
  config.optimizer.name = "sgd"
  config.optimizer.learning_rate = 0.1
  config.optimizer.schedule = "constant"


def _add_evaluation(config: ml_collections.ConfigDict) -> None:
  config.evaluation = ml_collections.ConfigDict()
  config.evaluation.every_epochs = 1.0
  config.evaluation.batch_size = 256
  config.evaluation.steps = 20  # of the PGD attack that evaluates
  config.evaluation.step_size = config_dict.placeholder(float)  # as attack.step_size
  config.evaluation.restarts = 1  # worst case per example
  # The threat models whose union is evaluated, with config.radii; (): config.attack's.
  config.evaluation.norms = ()
  config.evaluation.validation_limit = config_dict.placeholder(int)  # images; None: all
  config.evaluation.test_limit = config_dict.placeholder(int)


def _add_devices(config: ml_collections.ConfigDict) -> None:
  config.mesh = ml_collections.ConfigDict()  # of devices, see docs/scaling.md
  config.mesh.restart = 1  # over so many devices the K restarts are split
  config.mesh.data = 1  # and each restart's batch over so many
  config.mesh.fsdp = False  # parameters are split over all of them between steps
  # Restarts attacked and differentiated at once, at most; None: see
  # ddi_jax.restart_candidates.
  config.restarts_at_a_time = config_dict.placeholder(int)
  # Gradients kept in memory at once; None: all K.  Fewer are recomputed when needed.
  config.gradients_at_a_time = config_dict.placeholder(int)


def flatten(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
  """All settings by dotted name."""
  flat: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def select_variant(
  config: ml_collections.ConfigDict, variant: str
) -> ml_collections.ConfigDict:
  """Return the experiment itself, or a minute of it: the last line of a config file.

  Args:
    config: the experiment, changed in place.
    variant: "full", or "debug" for two short epochs on a few images.

  Returns:
    `config`.

  Raises:
    ConfigError: for another variant.

  Example:
    >>> from ddi_jax import training
    >>> config = training.select_variant(training.default_config(), "debug")
    >>> config.num_epochs
    2.0
  """
  if variant not in ("full", "debug"):
    raise ConfigError(f"the config's variant must be full or debug, got {variant!r}.")
  if variant == "debug":
    config.batch_size = 32
    config.num_epochs = 2.0
    config.attack.steps = 2
    config.data.limit = 128
    config.evaluation.batch_size = 64
    config.evaluation.steps = 4
  return config
