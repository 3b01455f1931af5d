"""The settings of a run: their defaults, meaning and allowed values."""

from collections.abc import Callable
import math
from typing import Any

import ml_collections
from ml_collections import config_dict

from ddi_jax import models
from ddi_jax.aggregators import NORMALIZATIONS
from ddi_jax.data import DATASETS, STREAMING, Examples
from ddi_jax.min_norm import SOLVERS
from ddi_jax.proximal import PER
from ddi_jax.training import sources
from ddi_jax.training.methods import METHODS
from ddi_jax.training.threats import NORMS

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "step", "cosine")
ATTACK_DTYPES = ("float32", "bfloat16")
BATCH_NORM_MODES = ("train", "eval")


class ConfigError(ValueError):
  """A setting is impossible; the message names it, its value and what is allowed."""


def default_config() -> ml_collections.ConfigDict:
  """All settings with their defaults; a config file changes some of them."""
  config = ml_collections.ConfigDict()
  config.seed = 0  # of initial parameters, batches, augmentation and attacks
  config.method = "danskin"  # see ddi_jax/training/methods.py
  config.num_restarts = 4  # K, of all methods but standard and pgd
  # Where the candidates come from, in place of num_restarts restarts of config.attack:
  # names of ddi_jax/training/sources.py, with their numbers: ("uniform:2", "spatial").
  config.sources = ()
  config.unit_norm = False  # scale the direction to norm 1, with any method
  config.batch_size = 128
  config.num_epochs = 10.0

  config.danskin = ml_collections.ConfigDict()  # of method danskin: danskin_direction's
  config.danskin.bundle_step = config_dict.placeholder(float)  # None: not that form
  config.danskin.loss_tolerance = config_dict.placeholder(float)  # None: not that form
  config.danskin.method = "active_set"  # the min-norm solver

  config.proximal = ml_collections.ConfigDict()  # of proximal_danskin_gradient
  config.proximal.step = config_dict.placeholder(float)  # None: the learning rate
  config.proximal.per = "example"  # or "batch"
  config.proximal.iterations = 8  # at most
  config.proximal.tolerance = 0.01  # of the gap, relative
  config.proximal.memory = 4  # vertices kept

  config.radii = ml_collections.ConfigDict()  # of the sources linf, l2, l1 and msd
  config.radii.linf = 0.1
  config.radii.l2 = 1.0
  config.radii.l1 = 5.0

  config.spatial = ml_collections.ConfigDict()  # of the source spatial
  config.spatial.max_degrees = 30.0
  config.spatial.max_shift = 0.1  # as a fraction of a side
  config.spatial.tries = 1  # the worst of so many

  config.warm = ml_collections.ConfigDict()  # of the source warm
  config.warm.steps = config_dict.placeholder(int)  # None: config.attack.steps
  config.warm.reset_epochs = config_dict.placeholder(int)  # forgets so often; None: not

  config.mgda = ml_collections.ConfigDict()  # of method mgda
  config.mgda.normalization = "l2"  # or "loss", "loss+"

  config.cagrad = ml_collections.ConfigDict()  # of method cagrad
  config.cagrad.radius = 0.5  # in [0, 1)

  config.data = ml_collections.ConfigDict()
  config.data.name = "digits"
  config.data.data_dir = config_dict.placeholder(str)  # None: TFDS' own
  config.data.validation_size = 200  # held out of the training set
  config.data.split_seed = 0  # of the choice of the validation images
  config.data.limit = config_dict.placeholder(int)  # images per split; None: all
  # Height and width, of data sets whose images differ in size (imagenet2012).
  config.data.resolution = config_dict.placeholder(int)
  config.data.streaming = "auto"  # or "always", "never": read images when needed
  config.data.pad = 0  # pixels of padding before a random crop
  config.data.flip = False  # mirror at random

  config.model = ml_collections.ConfigDict()
  config.model.name = "small"
  config.model.width = 16  # channels of the first convolution
  config.model.activation = "relu"
  config.model.normalization = "none"
  config.model.norm_groups = 8  # of normalization "group"
  config.model.hidden = 64  # units of the dense layer (small)
  config.model.strides = (1, 2)  # of the two convolutions (small)
  config.model.layers = (256, 128)  # units of the hidden layers (mlp)
  config.model.depth = 28  # 6 n + 4 (wide_resnet)
  config.model.widening = 10  # of the stages, over the stem's width (wide_resnet)

  config.attack = ml_collections.ConfigDict()
  config.attack.norm = "linf"
  config.attack.epsilon = 0.1  # radius; images are in [0, 1]
  config.attack.warmup_epochs = 0.0  # the radius grows linearly from 0 over these
  config.attack.steps = 7
  config.attack.step_size = config_dict.placeholder(float)  # None: 2.5 epsilon / steps
  config.attack.random_start = True
  config.attack.iterate = "last"  # or "best"
  # An example's share of pixels: the attack ends once no step moves more; None: never.
  config.attack.stop_below = config_dict.placeholder(float)
  config.attack.dtype = "float32"  # of the network under attack; or "bfloat16"
  config.attack.batch_norm = "train"  # BatchNorm's mode during the attack

  config.gradient = ml_collections.ConfigDict()
  config.gradient.batch_norm = "train"  # its mode in the gradient for the parameters

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = "sgd"
  config.optimizer.learning_rate = 0.1
  config.optimizer.momentum = 0.9  # of sgd
  config.optimizer.weight_decay = 0.0
  config.optimizer.schedule = "constant"
  config.optimizer.milestones = (0.5, 0.75)  # of "step": fractions of the run
  config.optimizer.decay = 0.1  # of "step": factor at each milestone

  config.evaluation = ml_collections.ConfigDict()
  config.evaluation.every_epochs = 1.0
  config.evaluation.batch_size = 256
  config.evaluation.steps = 20  # of the PGD attack that judges
  config.evaluation.step_size = config_dict.placeholder(float)  # as attack.step_size
  config.evaluation.restarts = 1  # worst case per example
  # Of the threat models whose union judges, with config.radii; (): config.attack's.
  config.evaluation.norms = ()
  config.evaluation.validation_limit = config_dict.placeholder(int)  # images; None: all
  config.evaluation.test_limit = config_dict.placeholder(int)

  config.loops = ml_collections.ConfigDict()  # see docs/benchmarks.md
  config.loops.gradients = "auto"  # over the K gradients
  config.loops.restarts = "auto"  # over the K attacks
  config.loops.steps = "auto"  # over the steps of an attack
  config.mesh = ml_collections.ConfigDict()  # of devices, see docs/scaling.md
  config.mesh.restart = 1  # over so many devices the K restarts are split
  config.mesh.data = 1  # and each restart's batch over so many
  config.mesh.fsdp = False  # parameters and optimizer state are split over all of them
  # Restarts attacked and differentiated at once, at most; None: as the loop form likes.
  config.restarts_at_a_time = config_dict.placeholder(int)
  # Gradients kept in memory at once; None: all K.  Fewer are recomputed when needed.
  config.gradients_at_a_time = config_dict.placeholder(int)
  return config.lock()  # A misspelt field is an error.


def select_variant(
  config: ml_collections.ConfigDict, variant: str
) -> ml_collections.ConfigDict:
  """The last line of a config file: the experiment itself, or a minute of it.

  Args:
    config: the experiment, changed in place.
    variant: "full", or "debug" for two short epochs on a few images.

  Returns:
    `config`.

  Raises:
    ConfigError: for another variant.
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


def step_size(attack: ml_collections.ConfigDict, epsilon: float) -> float:
  """A PGD step's length: as set, else 2.5 epsilon / steps."""
  if attack.step_size is not None:
    return attack.step_size
  return 2.5 * epsilon / attack.steps


def model_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The keyword arguments of the chosen model."""
  if config.model.name == "mlp":
    return {name: config.model[name] for name in ("layers", "activation")}
  names = ["width", "activation", "normalization", "norm_groups"]
  if config.model.name == "small":
    names += ["hidden", "strides"]
  if config.model.name == "wide_resnet":
    names += ["depth", "widening"]
  return {name: config.model[name] for name in names}


def check_config(config: ml_collections.ConfigDict) -> None:
  """Checks every setting that can be judged without the data.

  Raises:
    ConfigError: for the first impossible one.
  """

  def check(field: str, allowed: str, is_allowed: Callable[[Any], bool]) -> None:
    value = config
    for part in field.split("."):
      value = value[part]
    try:
      fine = is_allowed(value)
    except TypeError:
      fine = False
    if not fine:
      raise ConfigError(f"config.{field} must be {allowed}, got {value!r}.")

  def one_of(field: str, names: Any) -> None:
    check(field, f"one of {', '.join(names)}", lambda value: value in tuple(names))

  def positive_int(field: str, optional: bool = False) -> None:
    allowed = "an integer >= 1" + (" or None" if optional else "")
    check(field, allowed, lambda value: (value is None and optional) or value >= 1)

  def positive(field: str, optional: bool = False) -> None:
    allowed = "a finite number > 0" + (" or None" if optional else "")
    check(
      field,
      allowed,
      lambda value: (value is None and optional) or 0 < value < math.inf,
    )

  def non_negative(field: str) -> None:
    check(field, "a finite number >= 0", lambda value: 0 <= value < math.inf)

  check("seed", "an integer in [0, 2**31)", lambda value: 0 <= value < 2**31)
  one_of("method", METHODS)
  positive_int("num_restarts")
  positive_int("gradients_at_a_time", optional=True)
  check(
    "gradients_at_a_time",
    "None with method proximal, which keeps config.proximal.memory + 1",
    lambda value: value is None or not METHODS[config.method].proximal,
  )
  positive_int("batch_size")
  positive("num_epochs")

  positive("danskin.bundle_step", optional=True)
  check(
    "danskin.loss_tolerance",
    "a finite number >= 0 or None, and None where danskin.bundle_step is set",
    lambda value: (
      value is None or (0 <= value < math.inf and config.danskin.bundle_step is None)
    ),
  )
  one_of("danskin.method", SOLVERS)
  one_of("data.name", DATASETS)
  _check_sources(config, check)
  for norm in NORMS:
    positive(f"radii.{norm}")
  check("spatial.max_degrees", "in [0, 180]", lambda value: 0 <= value <= 180)
  check("spatial.max_shift", "in [0, 1]", lambda value: 0 <= value <= 1)
  positive_int("spatial.tries")
  positive_int("warm.steps", optional=True)
  positive_int("warm.reset_epochs", optional=True)

  positive("proximal.step", optional=True)
  one_of("proximal.per", PER)
  check("proximal.iterations", "an integer >= 0", lambda value: value >= 0)
  non_negative("proximal.tolerance")
  positive_int("proximal.memory")
  one_of("mgda.normalization", NORMALIZATIONS)
  check("cagrad.radius", "a number in [0, 1)", lambda value: 0 <= value < 1)

  positive_int("data.validation_size")
  check("data.split_seed", "an integer >= 0", lambda value: value >= 0)
  positive_int("data.limit", optional=True)
  positive_int("data.resolution", optional=True)
  one_of("data.streaming", STREAMING)
  check("data.pad", "an integer >= 0", lambda value: value >= 0)

  one_of("model.name", models.MODELS)
  one_of("model.activation", models.ACTIVATIONS)
  one_of("model.normalization", models.NORMALIZATIONS)
  check(
    "model.normalization",
    "'none' with config.model.name 'mlp'",
    lambda value: value == "none" or config.model.name != "mlp",
  )
  positive_int("model.width")
  positive_int("model.norm_groups")
  positive_int("model.hidden")
  check(
    "model.strides",
    "two integers >= 1",
    lambda value: len(value) == 2 and all(stride >= 1 for stride in value),
  )
  check(
    "model.layers",
    "a tuple of integers >= 1",
    lambda value: not isinstance(value, str) and all(units >= 1 for units in value),
  )
  check("model.depth", "6 n + 4, n >= 1", lambda value: value >= 10 and value % 6 == 4)
  positive_int("model.widening")
  if config.model.normalization == "group":
    width = config.model.width
    check(
      "model.norm_groups",
      f"a divisor of config.model.width ({width}) with normalization 'group'",
      lambda value: width % value == 0,
    )

  one_of("attack.norm", NORMS)
  non_negative("attack.epsilon")
  non_negative("attack.warmup_epochs")
  positive_int("attack.steps")
  positive("attack.step_size", optional=True)
  one_of("attack.iterate", ("last", "best"))
  check(
    "attack.stop_below",
    "in [0, 1), or None; only None with config.loops.steps 'unroll'",
    lambda value: value is None or (0 <= value < 1 and config.loops.steps != "unroll"),
  )
  one_of("attack.dtype", ATTACK_DTYPES)
  one_of("attack.batch_norm", BATCH_NORM_MODES)
  one_of("gradient.batch_norm", BATCH_NORM_MODES)

  num_restarts = sources.num_candidates(config)
  check(
    "attack.random_start",
    f"True with {num_restarts} restarts, which would all be the same",
    lambda value: value or num_restarts == 1,
  )
  one_of("optimizer.name", OPTIMIZERS)
  positive("optimizer.learning_rate")
  check("optimizer.momentum", "in [0, 1)", lambda value: 0 <= value < 1)
  non_negative("optimizer.weight_decay")
  one_of("optimizer.schedule", SCHEDULES)
  check(
    "optimizer.milestones",
    "increasing fractions in (0, 1)",
    lambda value: list(value) == sorted(set(value)) and all(0 < v < 1 for v in value),
  )
  check("optimizer.decay", "in (0, 1]", lambda value: 0 < value <= 1)

  positive("evaluation.every_epochs")
  positive_int("evaluation.batch_size")
  positive_int("evaluation.steps")
  positive("evaluation.step_size", optional=True)
  check(
    "evaluation.norms",
    f"a tuple without repetition of {', '.join(NORMS)}; with it, "
    "config.evaluation.step_size must be None",
    lambda value: (
      not isinstance(value, str)
      and all(norm in NORMS for norm in value)
      and len(set(value)) == len(value)
      and not (value and config.evaluation.step_size is not None)
    ),
  )
  positive_int("evaluation.restarts")
  positive_int("evaluation.validation_limit", optional=True)
  positive_int("evaluation.test_limit", optional=True)

  one_of("loops.gradients", ("auto", "unroll", "loop", "vmap"))
  one_of("loops.restarts", ("auto", "unroll", "loop", "vmap", "merge"))
  one_of("loops.steps", ("auto", "unroll", "loop"))
  positive_int("restarts_at_a_time", optional=True)
  check(
    "restarts_at_a_time",
    'None with a loop form "unroll", where XLA decides',
    lambda value: (
      value is None or "unroll" not in (config.loops.restarts, config.loops.gradients)
    ),
  )
  check(
    "loops.restarts",
    "other than merge where BatchNorm is in training mode during the attack, since "
    "merging would change its statistics",
    lambda value: (
      value != "merge"
      or config.model.normalization != "batch"
      or config.attack.batch_norm == "eval"
    ),
  )
  _check_mesh(config, check, num_restarts)


def _check_mesh(
  config: ml_collections.ConfigDict, check: Callable[..., None], num_restarts: int
) -> None:
  restart, data_size = config.mesh.restart, config.mesh.data
  check(
    "mesh.restart",
    "1 with config.sources or method proximal; config.mesh.data may be more",
    lambda value: value == 1 or not (config.sources or METHODS[config.method].proximal),
  )
  check(
    "mesh.restart",
    f"a divisor of {num_restarts}, the number of attacks in a step of config.method "
    f"{config.method!r}",
    lambda value: value >= 1 and num_restarts % value == 0,
  )
  check(
    "mesh.data",
    f"a divisor of config.batch_size ({config.batch_size})",
    lambda value: value >= 1 and config.batch_size % value == 0,
  )
  check("mesh.fsdp", "True or False", lambda value: isinstance(value, bool))
  size = restart * data_size
  several = f"with config.mesh.restart * config.mesh.data = {restart} * {data_size}"
  check(
    "evaluation.batch_size",
    f"a multiple of {size} {several}",
    lambda value: value % size == 0,
  )
  check(
    "gradients_at_a_time",
    f"None {several}, which divides the gradients' memory already",
    lambda value: value is None or size == 1,
  )
  check(
    "loops.restarts",
    f"other than merge {several}, which would draw other random numbers; vmap does "
    "the same",
    lambda value: value != "merge" or size == 1,
  )


def _check_sources(
  config: ml_collections.ConfigDict, check: Callable[..., None]
) -> None:
  def well_formed(entries):
    try:
      return not isinstance(entries, str) and sources.entries(config) is not None
    except (ValueError, AttributeError):
      return False

  check(
    "sources",
    "a tuple of NAME or NAME:K with K >= 1, NAME one of " + ", ".join(sources.SOURCES),
    well_formed,
  )
  entries = sources.entries(config)
  names = [name for name, _ in entries]
  check(
    "sources",
    f"such that K of trajectory:K divides config.attack.steps ({config.attack.steps})",
    lambda _: (
      not any(
        name == "trajectory" and config.attack.steps % count for name, count in entries
      )
    ),
  )
  classes = DATASETS[config.data.name].num_classes
  check(
    "sources",
    f"such that K of targeted:K is less than the number of classes ({classes})",
    lambda _: all(name != "targeted" or count < classes for name, count in entries),
  )
  check(
    "sources",
    "such that msd makes one candidate",
    lambda _: "msd" not in names or ("msd", 1) in entries,
  )
  check(
    "sources",
    f"with warm at most once, and without it for config.data.name {config.data.name}, "
    "whose images are cropped at random when they are read",
    lambda _: (
      names.count(sources.WARM) <= (DATASETS[config.data.name].image_shape is not None)
    ),
  )
  check(
    "sources",
    "without r_fgsm and n_fgsm where config.attack.norm is not linf",
    lambda _: config.attack.norm == "linf" or not {"r_fgsm", "n_fgsm"} & set(names),
  )
  check(
    "sources",
    "without trajectory, msd, r_fgsm and n_fgsm, which end where they end, where "
    "config.attack.iterate is not last or config.attack.stop_below not None",
    lambda _: (
      (config.attack.iterate == "last" and config.attack.stop_below is None)
      or not {"trajectory", "msd", "r_fgsm", "n_fgsm"} & set(names)
    ),
  )
  method = METHODS[config.method]
  check(
    "sources",
    f"{'one candidate' if method.attacked else '()'} with method {config.method}",
    lambda entries: (
      not entries
      or method.restarts
      or (method.attacked and sources.num_candidates(config) == 1)
    ),
  )
  check(
    "sources",
    "() where config.attack.random_start is False or config.loops.restarts is merge",
    lambda entries: (
      not entries or (config.attack.random_start and config.loops.restarts != "merge")
    ),
  )


def check_against_data(config: ml_collections.ConfigDict, train: Examples) -> None:
  """Checks the settings that depend on the data.

  Raises:
    ConfigError: if a batch is larger than the training set, or there are more
      orthogonal starts than an image has coordinates.
  """
  if config.batch_size > len(train):
    raise ConfigError(
      f"config.batch_size must be in [1, {len(train)}], the number of training images "
      f"of {config.data.name}, got {config.batch_size}."
    )
  coordinates = math.prod(train.image_shape)
  if any(n == "orthogonal" and k > coordinates for n, k in sources.entries(config)):
    raise ConfigError(
      "config.sources must be such that K of orthogonal:K is at most the number of an "
      f"image's coordinates ({coordinates}), got {config.sources}."
    )
