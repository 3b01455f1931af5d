"""Check a config, before a run starts and before anything is written.

The library's functions check their own arguments.  This module checks ranges that only
the training program knows.  It also refuses settings that none of the chosen pieces
(method, sources, data set, model, optimiser, schedule) uses.
"""

from collections.abc import Callable, Collection
from typing import Any

import ml_collections

import ddi_jax
from ddi_jax.checks import keyword_parameters
from ddi_jax.data import DATASETS, Examples
from ddi_jax.directions import proximal
from ddi_jax.models import MODELS
from ddi_jax.training.settings import model, pieces, sources, values
from ddi_jax.training.settings.config import default_config, flatten
from ddi_jax.training.settings.methods import METHODS, create_direction, find_method
from ddi_jax.training.settings.optimizers import (
  OPTIMIZERS,
  SCHEDULES,
  create_rule,
  create_schedule,
)
from ddi_jax.training.settings.pieces import ConfigError
from ddi_jax.training.settings.sources import SOURCES
from ddi_jax.training.settings.threats import (
  THREAT_MODELS,
  evaluated_radii,
  step_size,
)

# The settings that choose a piece by name.
CHOICES = (
  "method",
  "sources",
  "data.name",
  "model.name",
  "optimizer.name",
  "optimizer.schedule",
  "evaluation.norms",
)


def check_config(config: ml_collections.ConfigDict) -> None:
  """Check every setting that can be checked without the data.

  Raises:
    ConfigError: for the first setting that is impossible, or that none of the chosen
      pieces uses.

  Example:
    >>> from ddi_jax import training
    >>> config = training.default_config()
    >>> config.attack.steps = 0
    >>> try:
    ...   training.check_config(config)
    ... except training.ConfigError as error:
    ...   print(error)
    config.attack.steps must be an integer >= 1, got 0.
  """
  check = values.Checker(config)
  values.check_plain_values(check)
  values.check_choices(check)
  values.check_types(check)
  values.check_loops(check)
  _check_sources(config, check)
  _check_unused(config)
  _check_pieces(config)
  _check_attack(config, check)
  _check_mesh(config, check)


def check_against_data(config: ml_collections.ConfigDict, train: Examples) -> None:
  """Check the settings that depend on the data.

  Raises:
    ConfigError: if a batch is larger than the training set, or there are too many steps
      for an int32.
  """
  if config.batch_size > len(train):
    raise ConfigError(
      f"config.batch_size must be in [1, {len(train)}], the number of training images "
      f"of {config.data.name}, got {config.batch_size}."
    )
  steps_per_epoch = len(train) // config.batch_size
  most = values.INT_END / steps_per_epoch
  check = values.Checker(config)
  for field in values.EPOCHS:
    check(
      field,
      f"< {most:g}, for less than 2**31 steps ({steps_per_epoch} an epoch)",
      lambda value: value < most,
    )


def drop_unused(
  config: ml_collections.ConfigDict, keep: Collection[str] = ()
) -> ml_collections.ConfigDict:
  """Return a copy in which settings that nothing uses are reset to their defaults.

  Use this after replacing a piece of an experiment.  It resets the settings that only
  the former piece used.

  Args:
    config: a config, not yet checked.
    keep: dotted names of settings that are not reset, so that `check_config` refuses
      them if nothing uses them.

  Example:
    >>> from ddi_jax import training
    >>> config = training.default_config()
    >>> config.num_restarts, config.method = 8, "pgd"
    >>> training.drop_unused(config).num_restarts
    4

  Raises:
    ConfigError: if a piece does not exist.
  """
  values.check_choices(values.Checker(config))
  result = config.copy_and_resolve_references()
  defaults = flatten(default_config())
  for field in unused_fields(config):
    if field in keep:
      continue
    group, _, name = field.rpartition(".")
    section = result[group] if group else result
    if field in defaults:
      with section.ignore_type():
        section[name] = defaults[field]
    else:
      del section[name]
  return result


def _check_pieces(config: ml_collections.ConfigDict) -> None:
  """Make every piece once, so that the pieces check their own settings."""
  pieces.find("data.name", config.data.name, DATASETS)
  method = find_method(config)
  if method.proximal:
    _check_proximal(config)
  else:
    create_direction(config)
  create_rule(config)
  create_schedule(config, total=1)
  _check_model(config)
  epsilon = config.attack.epsilon
  pieces.call(THREAT_MODELS[config.attack.norm], {"epsilon": epsilon}, "attack")
  ball = THREAT_MODELS[config.attack.norm](epsilon)
  attack = sources.pgd_settings(config, 1.0)
  attack["step_size"] = attack["step_size"] or 1.0  # The step size is 0 at radius 0.
  attack["random_start"] = config.attack.random_start
  pieces.call(ddi_jax.pgd, attack, "attack", ball)
  for radius in evaluated_radii(config).values():
    length = step_size(config.evaluation, radius) or 1.0
    settings = {"steps": config.evaluation.steps, "step_size": length}
    pieces.call(ddi_jax.pgd, settings, "evaluation", ball)
  for name, count in sources.entries(config):
    kind = sources.find_source(name)
    if name == "spatial" or pieces.is_own(name, sources.SOURCES):
      kind.create(config, sources.SourceContext(count, 1.0))


def _check_proximal(config: ml_collections.ConfigDict) -> None:
  settings = dict(config.proximal)
  settings["step"] = settings["step"] or 1.0
  pieces.call(proximal.check_settings, settings, "proximal")


def _check_model(config: ml_collections.ConfigDict) -> None:
  """Compute the network's shapes, if the shape of the images is already known."""
  model.find_model(config)
  images = model.known_images(config)
  if images is not None:
    model.create_model(config, images, abstract=True)


def _check_attack(config: ml_collections.ConfigDict, check: values.Checker) -> None:
  num_candidates = sources.num_candidates(config)
  check(
    "attack.random_start",
    f"True with {num_candidates} restarts, which would all be the same",
    lambda value: value or num_candidates == 1,
  )


def _check_mesh(config: ml_collections.ConfigDict, check: values.Checker) -> None:
  restart, data_size = config.mesh.restart, config.mesh.data
  method, num_restarts = find_method(config), sources.num_candidates(config)
  check(
    "mesh.restart",
    "1 with config.sources or method proximal; config.mesh.data may be more",
    lambda value: value == 1 or not (config.sources or method.proximal),
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


def _check_sources(config: ml_collections.ConfigDict, check: values.Checker) -> None:
  entries = sources.entries(config)
  names = [name for name, _ in entries]
  for name in names:
    sources.find_source(name)
  description = DATASETS.get(config.data.name)
  if description is not None:
    classes = description.num_classes
    check(
      "sources",
      f"such that K of targeted:K is less than the number of classes ({classes})",
      lambda _: all(name != "targeted" or count < classes for name, count in entries),
    )
    check(
      "sources",
      f"without warm for config.data.name {config.data.name}, whose images are cropped "
      "at random when they are read",
      lambda _: sources.WARM not in names or description.image_shape is not None,
    )
  check(
    "sources",
    "such that msd makes one candidate",
    lambda _: "msd" not in names or ("msd", 1) in entries,
  )
  check(
    "sources",
    "such that warm is there at most once",
    lambda _: names.count(sources.WARM) <= 1,
  )
  check(
    "sources",
    "without r_fgsm where config.attack.norm is not linf",
    lambda _: config.attack.norm == "linf" or "r_fgsm" not in names,
  )
  method = find_method(config)
  check(
    "sources",
    f"{'one candidate' if method.attacked else '()'} with method {config.method}",
    lambda entries: (
      not entries
      or method.restarts
      or (method.attacked and sources.num_candidates(config) == 1)
    ),
  )


def _check_unused(config: ml_collections.ConfigDict) -> None:
  unused = unused_fields(config)
  if not unused:
    return
  field = min(unused)
  value = flatten(config)[field]
  chooser, name, takes = _owner(config, field)
  listed = ", ".join(sorted(takes)) or "no setting of its own"
  raise ConfigError(
    f"config.{field} is {value!r}, but config.{chooser} {name!r} does not use it; it "
    f"takes {listed}.  Leave it at its default, or choose a piece that uses it."
  )


def unused_fields(config: ml_collections.ConfigDict) -> set[str]:
  """The settings that differ from their defaults but that no chosen piece uses."""
  defaults = flatten(default_config())
  used = used_fields(config)
  return {
    field
    for field, value in flatten(config).items()
    if (field not in defaults or value != defaults[field])
    and field not in used
    and field.split(".", maxsplit=1)[0] not in used
    and field.split(".", maxsplit=1)[0] not in _foreign_groups(config)
  }


def used_fields(config: ml_collections.ConfigDict) -> set[str]:
  """The dotted names of the settings that the chosen pieces use.

  The name of a group stands for all settings in it.
  """
  return (
    {*CHOICES, "seed", "batch_size", "num_epochs", "mesh", "gradient.batch_norm"}
    | {"restarts_at_a_time", "optimizer.learning_rate"}
    | _method_fields(config)
    | _source_fields(config)
    | _data_fields(config)
    | model.used_fields(config)
    | _optimizer_fields(config)
    | _evaluation_fields(config)
  )


def _method_fields(config: ml_collections.ConfigDict) -> set[str]:
  method = find_method(config)
  fields = {"sources"} if method.attacked else set()
  if method.can_normalize:
    fields.add("unit_norm")
  if method.group is not None:
    fields.add(method.group)
  if method.restarts and not config.sources:
    fields.add("num_restarts")
  if method.restarts and not method.proximal and not method.select_worst:
    fields |= {"gradients_at_a_time", "gradient.loss_keys"}
  if method.attacked:
    fields |= {"attack.warmup_epochs", "attack.dtype", "attack.batch_norm"}
    if not config.sources:
      fields |= {"attack.random_start", *sources.SOURCES["uniform"].fields}
  return fields


def _source_fields(config: ml_collections.ConfigDict) -> set[str]:
  return sources.used_fields(config)


def _data_fields(config: ml_collections.ConfigDict) -> set[str]:
  fields = {f"data.{name}" for name in ("validation_size", "split_seed", "limit")}
  fields |= {"data.pad", "data.flip"}
  if pieces.is_own(config.data.name, DATASETS):
    return fields | {"data_settings"}
  # scikit-learn includes the digits.  Their reader itself refuses streaming "always".
  fields |= {"data.streaming", "data.resolution"}
  return fields if config.data.name == "digits" else fields | {"data.data_dir"}


def _optimizer_fields(config: ml_collections.ConfigDict) -> set[str]:
  factories = (
    OPTIMIZERS[config.optimizer.name],
    SCHEDULES[config.optimizer.schedule],
  )
  return {
    f"optimizer.{name}" for factory in factories for name in keyword_parameters(factory)
  }


def _evaluation_fields(config: ml_collections.ConfigDict) -> set[str]:
  fields = {f"evaluation.{name}" for name in config.evaluation}
  if config.evaluation.norms:
    fields |= {f"radii.{norm}" for norm in config.evaluation.norms}
    return fields - {"evaluation.step_size"}  # Each norm has its own step size.
  return fields | {"attack.norm", "attack.epsilon"}


def _owner(
  config: ml_collections.ConfigDict, field: str
) -> tuple[str, Any, Collection[str]]:
  """For a field: (the setting that chooses its piece, the piece, what it uses)."""
  group = field.split(".", maxsplit=1)[0]
  by_group: dict[str, tuple[str, Callable[..., Collection[str]]]] = {
    "data": ("data.name", _data_fields),
    "data_settings": ("data.name", _data_fields),
    "model": ("model.name", model.used_fields),
    "model_settings": ("model.name", model.used_fields),
    "optimizer": ("optimizer.name", _optimizer_fields),
    "evaluation": ("evaluation.norms", _evaluation_fields),
    **dict.fromkeys(
      ("radii", "spatial", "warm", sources.OWN_SETTINGS), ("sources", _source_fields)
    ),
  }
  chooser, fields_of = by_group.get(group, ("method", _method_fields))
  if chooser == "method" and config.sources and group in ("attack", "num_restarts"):
    chooser, fields_of = "sources", _source_fields
  value = config
  for part in chooser.split("."):
    value = value[part]
  return chooser, value, fields_of(config)


def _foreign_groups(config: ml_collections.ConfigDict) -> set[str]:
  """Groups that a caller of `train` added to a config for its own purposes."""
  return set(config) - set(default_config())


def own_pieces(config: ml_collections.ConfigDict) -> list[str]:
  """The pieces that a config names as `module:name`, without importing them."""
  own = [
    name
    for name, known in (
      (config.method, METHODS),
      (config.model.name, MODELS),
      (config.data.name, DATASETS),
    )
    if pieces.is_own(name, known)
  ]
  return own + [entry for entry in config.sources if entry.split(":")[0] not in SOURCES]
