"""The settings of a run, with their defaults and their meaning."""

from typing import Any

import ml_collections
from ml_collections import config_dict

import ddi_jax
from ddi_jax import candidates, models
from ddi_jax.training.settings import model, optimizers, pieces
from ddi_jax.training.settings.pieces import ConfigError


def default_config() -> ml_collections.ConfigDict:
  """Return all settings with their defaults; a config file changes some of them.

  Some groups hold arguments of a function of the library, with that function's
  defaults.  It is an error to change a setting that the run does not use, for example
  one of a method that is not chosen.

  Example:
    >>> from ddi_jax import training
    >>> config = training.default_config()
    >>> config.method, config.attack.epsilon, config.danskin.solver
    ('danskin', 0.1, 'active_set')
  """
  config = ml_collections.ConfigDict()
  # Seed for initial parameters, batches, augmentation and attacks.
  config.seed = 0
  # A name from ddi_jax/training/settings/methods.py, or your own, "module:name".
  config.method = "danskin"
  config.method_settings = ml_collections.ConfigDict()  # Arguments of your own method.
  # Number of restarts K, for all methods except standard and pgd.
  config.num_restarts = 4
  # The sources of the candidates.  (): num_restarts restarts of config.attack.
  # Otherwise names from ddi_jax/training/settings/sources.py with the numbers of their
  # candidates, ("uniform:2", "spatial"), or your own sources, ("module:name:2",).
  config.sources = ()
  config.source_settings = ml_collections.ConfigDict()  # Arguments of your own sources.
  # Whether to scale the direction to norm 1, with any method.
  config.unit_norm = False
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
  config.lock()  # A misspelt setting is then an error.
  for group in ("method", "source", "model", "data"):
    config[f"{group}_settings"].unlock()
  return config


def _add_methods(config: ml_collections.ConfigDict) -> None:
  config.danskin = pieces.group(
    ddi_jax.danskin_direction,
    names=("bundle_step", "loss_tolerance", "solver", "tolerance", "max_iterations"),
  )
  config.proximal = pieces.group(  # If step is None, it is the learning rate.
    ddi_jax.proximal_danskin_gradient,
    names=("step", "per", "iterations", "tolerance", "memory"),
  )
  config.mgda = pieces.group(ddi_jax.mgda_direction, names=("normalization",))
  config.cagrad = pieces.group(ddi_jax.cagrad_direction, names=("radius",))


def _add_sources(config: ml_collections.ConfigDict) -> None:
  # Radii of the sources linf, l2, l1 and msd, and of config.evaluation.norms.
  config.radii = ml_collections.ConfigDict()
  config.radii.linf = 0.1
  config.radii.l2 = 1.0
  config.radii.l1 = 5.0
  config.spatial = pieces.group(
    candidates.spatial, names=("max_degrees", "max_shift", "tries")
  )
  config.warm = ml_collections.ConfigDict()
  config.warm.steps = config_dict.placeholder(int)  # None: config.attack.steps.
  # Perturbations are reset every so many epochs.  None: never.
  config.warm.reset_epochs = config_dict.placeholder(int)


def _add_data(config: ml_collections.ConfigDict) -> None:
  config.data = ml_collections.ConfigDict()
  config.data.name = "digits"  # See ddi_jax.data.DATASETS, or your own, "module:name".
  config.data.data_dir = config_dict.placeholder(str)  # None: the default of TFDS.
  config.data.validation_size = 200  # Images held out of the training set.
  config.data.split_seed = 0  # Seed for the choice of the validation images.
  config.data.limit = config_dict.placeholder(int)  # Images per split.  None: all.
  # Height and width, only for data sets whose images differ in size (imagenet2012).
  config.data.resolution = config_dict.placeholder(int)
  # Whether to read images when they are needed: "auto", "always" or "never".
  config.data.streaming = "auto"
  config.data.pad = 0  # Pixels of padding before a random crop.
  config.data.flip = False  # Whether to mirror images at random.
  config.data_settings = ml_collections.ConfigDict()  # Arguments of your own data set.


def _add_model(config: ml_collections.ConfigDict) -> None:
  config.model = pieces.group(
    *models.MODELS.values(), names=model.FIELDS, own_defaults=True
  )
  config.model.name = "small"  # See ddi_jax.models.MODELS, or your own, "module:name".
  config.model_settings = ml_collections.ConfigDict()  # Arguments of your own model.


def _add_attack(config: ml_collections.ConfigDict) -> None:
  config.attack = pieces.group(
    ddi_jax.pgd, names=("random_start", "iterate", "stop_below")
  )
  config.attack.norm = "linf"
  config.attack.epsilon = 0.1  # The radius, for images in [0, 1].
  # Number of epochs in which the radius grows linearly from 0.
  config.attack.warmup_epochs = 0.0
  config.attack.steps = 7
  config.attack.step_size = config_dict.placeholder(float)  # None: 2.5 epsilon / steps.
  # Precision of the network during the attack: "float32" or "bfloat16".
  config.attack.dtype = "float32"
  # Mode of BatchNorm during the attack: "train" or "eval".
  config.attack.batch_norm = "train"
  config.gradient = ml_collections.ConfigDict()
  # Mode of BatchNorm in the gradient of the parameters: "train" or "eval".
  config.gradient.batch_norm = "train"
  # Random numbers of the network in that gradient (Dropout): "per_candidate", or
  # "shared" by all K candidates.
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
  config.evaluation.every_epochs = 1.0  # Epochs between validations.
  config.evaluation.batch_size = 256
  config.evaluation.steps = 20  # Steps of the PGD attack for validation and test.
  # None: 2.5 epsilon / evaluation.steps.
  config.evaluation.step_size = config_dict.placeholder(float)
  # Number of restarts; the worst one counts for each example.
  config.evaluation.restarts = 1
  # Norms of the threat models whose union is evaluated, with the radii in config.radii.
  # (): the threat model of config.attack.
  config.evaluation.norms = ()
  # Number of validation and test images.  None: all.
  config.evaluation.validation_limit = config_dict.placeholder(int)
  config.evaluation.test_limit = config_dict.placeholder(int)


def _add_devices(config: ml_collections.ConfigDict) -> None:
  config.mesh = ml_collections.ConfigDict()  # The mesh of devices, see docs/scaling.md.
  config.mesh.restart = 1  # Number of devices over which the K restarts are split.
  config.mesh.data = 1  # Number of devices over which each restart's batch is split.
  # Whether to split the parameters over all these devices between steps.
  config.mesh.fsdp = False
  # Maximum number of restarts that are attacked and differentiated at once.  None: see
  # ddi_jax.restart_candidates.
  config.restarts_at_a_time = config_dict.placeholder(int)
  # Number of gradients kept in memory at once.  None: all K.  With fewer, gradients are
  # recomputed when they are needed.
  config.gradients_at_a_time = config_dict.placeholder(int)


def flatten(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
  """All settings by their dotted names."""
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
  """Return the full experiment, or a short version that takes about a minute.

  A config file ends with this call.

  Args:
    config: the experiment's config, changed in place.
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
