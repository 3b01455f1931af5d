"""Pieces that a config names: the library's, or a user's own as `module:name`.

A piece is a method, a source, a model, a data set, an optimiser or a schedule.
"""

from collections.abc import Callable, Iterable, Mapping
import importlib
import inspect
import re
import types
from typing import Any, get_args

import ml_collections
from ml_collections import config_dict

from ddi_jax.checks import check_not_passed, keyword_parameters


class ConfigError(ValueError):
  """A setting is impossible; the message names it, its value and what is allowed."""


def find(field: str, name: str, known: Mapping[str, Any]) -> Any:
  """Find the piece that `config.FIELD` names.

  Args:
    field: name of the setting, for messages.
    name: one of the `known` names, or "module:name" for anything that Python can
      import.
    known: the library's own pieces by name.

  Raises:
    ConfigError: if there is no such piece.
  """
  if name in known:
    return known[name]
  module, separator, attribute = str(name).partition(":")
  if not (separator and module and attribute):
    raise ConfigError(
      f"config.{field} must be one of {', '.join(known)}, or module:name for your own; "
      f"got {name!r}."
    )
  try:
    piece = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise ConfigError(
      f"config.{field} is {name!r}, which cannot be imported ({error}): the module "
      "must be in the current folder or in PYTHONPATH."
    ) from error
  if not callable(piece):
    raise ConfigError(
      f"config.{field} must name a function or a class, got {name!r}, a "
      f"{type(piece).__name__}."
    )
  return piece


def is_own(name: str, known: Iterable[str]) -> bool:
  """Whether the name refers to a user's own piece, "module:name"."""
  return name not in known and ":" in str(name)


def accepts(factory: Callable[..., Any], name: str) -> bool:
  """Whether a factory takes the keyword argument `name`."""
  return name in keyword_parameters(factory)


def group(
  *factories: Callable[..., Any], names: Iterable[str], own_defaults: bool = False
) -> ml_collections.ConfigDict:
  """A config group whose fields are keyword arguments of factories.

  Args:
    *factories: functions with keyword arguments.  The type and default of a field are
      those of the first function that has it.
    names: names of the fields.
    own_defaults: whether all defaults are None, which stands for each factory's own
      default.

  Returns:
    The group.  A field that may be None is a placeholder of the annotated type.
  """
  config = ml_collections.ConfigDict()
  for name in names:
    parameter = next(
      known[name] for known in map(keyword_parameters, factories) if name in known
    )
    default = parameter.default
    if own_defaults or default in (None, inspect.Parameter.empty):
      kind = type(default) if own_defaults else _annotated_type(parameter.annotation)
      config[name] = config_dict.placeholder(kind)
    else:
      config[name] = default
  return config


def check_arguments(
  factory: Callable[..., Any], settings: Iterable[str], group_path: str
) -> None:
  """Check that a factory takes these keyword arguments.

  Raises:
    ConfigError: if it does not; the message names the first such argument, and those
      that it takes.
  """
  unknown = sorted(set(settings) - set(keyword_parameters(factory)))
  if unknown and not _takes_any(factory):
    known = ", ".join(keyword_parameters(factory)) or "nothing"
    raise ConfigError(
      f"config.{group_path}.{unknown[0]} is not a setting of "
      f"{_name_of(factory)}, which takes {known}."
    )


def call(
  factory: Callable[..., Any], settings: Mapping[str, Any], group_path: str, *args: Any
) -> Any:
  """Call `factory(*args, **settings)`, and turn its ValueError into a ConfigError.

  Args:
    factory: a function whose messages begin with the name of the wrong argument.
    settings: the factory's keyword arguments.
    group_path: name of the config group that holds them, for example "danskin".
    *args: the factory's positional arguments.

  Raises:
    ConfigError: if the factory raises ValueError.  The message is the factory's,
      preceded by the path in the config.
  """
  check_arguments(factory, settings, group_path)
  _check_complete(factory, settings, group_path, len(args))
  check_positional(factory, group_path, *args)
  try:
    check_not_passed(factory, settings, len(args))
    return factory(*args, **settings)
  except ConfigError:
    raise
  except ValueError as error:
    # The factory's own messages begin with the name of the wrong setting.
    if re.match(r"[\w.\[\]']+ (must|cannot|needs|and)\b", str(error)):
      raise ConfigError(f"config.{group_path}.{error}") from error
    raise ConfigError(
      f"{_name_of(factory)}, of config.{group_path}, raised ValueError: {error}"
    ) from error


def check_positional(factory: Callable[..., Any], path: str, *args: Any) -> None:
  """Raise ConfigError unless a factory takes `args` as positional arguments."""
  function: Any = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
  own = (None,) if isinstance(factory, type) else ()
  try:
    inspect.signature(function).bind_partial(*own, *args)
  except TypeError as error:
    raise ConfigError(
      f"config.{path}: {_name_of(factory)} must take {len(args)} positional "
      f"argument(s): {error}."
    ) from error


def _check_complete(
  factory: Callable[..., Any],
  settings: Mapping[str, Any],
  group_path: str,
  num_positional: int,
) -> None:
  """Raise ConfigError if an argument without a default is not given."""
  required = [
    name
    for name, parameter in list(keyword_parameters(factory).items())[num_positional:]
    if parameter.default is inspect.Parameter.empty and name not in settings
  ]
  if required:
    raise ConfigError(
      f"config.{group_path}.{required[0]} must be set: {_name_of(factory)} has no "
      "default for it."
    )


def _name_of(factory: Callable[..., Any]) -> str:
  return getattr(factory, "__name__", repr(factory))


def _takes_any(factory: Callable[..., Any]) -> bool:
  function: Any = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
  return any(
    parameter.kind is inspect.Parameter.VAR_KEYWORD
    for parameter in inspect.signature(function).parameters.values()
  )


def _annotated_type(annotation: Any) -> type:
  """The plain type of an annotation such as `float | None`, which may be a string."""
  plain = {"float": float, "int": int, "str": str, "bool": bool}
  if isinstance(annotation, str):
    return plain[annotation.split("|")[0].strip()]
  options = (
    get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
  )
  return next(option for option in options if option in plain.values())
