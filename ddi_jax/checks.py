"""Arguments: checks that many functions share, and what a factory takes."""

from collections.abc import Callable
import functools
import inspect
from typing import Any

import jax


def missing_extra(extra: str, error: ModuleNotFoundError) -> ImportError:
  """The error that says which extra of this package holds a missing module."""
  return ImportError(
    f"{error.name} is not installed: pip install 'ddi_jax[{extra}]' (in a clone of the "
    f"repository: pip install -e '.[{extra}]')."
  )


def check_positive_int(name: str, value: Any, *, optional: bool = False) -> None:
  """Raise ValueError unless the value is an integer >= 1 (or None, if optional)."""
  if optional and value is None:
    return
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    allowed = "None or an integer >= 1" if optional else "an integer >= 1"
    raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def check_non_negative_int(name: str, value: Any) -> None:
  """Raise ValueError unless the value is an integer >= 0."""
  if not isinstance(value, int) or isinstance(value, bool) or value < 0:
    raise ValueError(f"{name} must be an integer >= 0, got {value!r}.")


def check_positive(name: str, value: Any) -> None:
  """Raise ValueError unless the value is a finite number > 0; a tracer passes."""
  if not isinstance(value, jax.core.Tracer) and not 0 < value < float("inf"):
    raise ValueError(f"{name} must be a finite number > 0, got {value!r}.")


def check_choice(name: str, value: Any, allowed: Any) -> None:
  """Raise ValueError unless the value is one of the allowed strings."""
  if value not in tuple(allowed):
    raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")


def check_bounds(bounds: Any) -> None:
  """Raise ValueError unless bounds are None or (low, high) with low < high."""
  if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
    raise ValueError(f"bounds must be (low, high) with low < high, got {bounds!r}.")


def keyword_parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """The keyword arguments that a function or a class takes, by name.

  Of a `functools.partial`, those that it has not set.
  """
  if isinstance(factory, functools.partial):
    parameters = keyword_parameters(factory.func)
    return {name: p for name, p in parameters.items() if name not in factory.keywords}
  # Not of a metaclass' __call__, which flax modules have.
  function: Any = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
  kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
  return {
    name: parameter
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind in kinds and name != "self"
  }
