"""Checks of arguments that many functions share, and of functions' signatures."""

from collections.abc import Callable, Iterable
import functools
import importlib.util
import inspect
import numbers
from typing import Any

import jax
from jax.experimental import checkify
import jax.numpy as jnp
import numpy as np

ARRAYS = (np.ndarray, np.generic, jax.Array)


def missing_extra(extra: str, error: ModuleNotFoundError) -> ImportError:
  """An error that names the extra of this package that holds a missing module."""
  return ImportError(
    f"{error.name} is not installed: pip install 'ddi_jax[{extra}]' (in a clone of the "
    f"repository: pip install -e '.[{extra}]')."
  )


def check_installed(*modules: str) -> None:
  """Raise ModuleNotFoundError for a missing module, without importing any."""
  for name in modules:
    if importlib.util.find_spec(name) is None:
      raise ModuleNotFoundError(name=name)


def check_known(name: str, value: Any) -> None:
  """Raise ValueError for a tracer, for a setting that a program is built from."""
  if not is_concrete(value):
    raise ValueError(
      f"{name} must be a number that is known when the program is traced, got a traced "
      "value: pass a Python number."
    )


def is_concrete(value: Any) -> bool:
  """Whether the value is known now, that is, not a tracer (of `jax.jit`, say)."""
  return not isinstance(value, jax.core.Tracer)


def check_positive_int(name: str, value: Any, *, optional: bool = False) -> None:
  """Raise ValueError unless the value is an integer >= 1 (or None, if optional)."""
  if not (optional and value is None):
    _check_int(name, value, 1, "None or an integer" if optional else "an integer")


def check_non_negative_int(name: str, value: Any) -> None:
  """Raise ValueError unless the value is an integer >= 0."""
  _check_int(name, value, 0, "an integer")


def _check_int(name: str, value: Any, least: int, kind: str) -> None:
  is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not is_int or value < least:
    advice = "  Pass int(...) of a jax array." if isinstance(value, jax.Array) else ""
    raise ValueError(f"{name} must be {kind} >= {least}, got {value!r}.{advice}")


def check_number(
  name: str, value: Any, interval: str, *, optional: bool = False
) -> None:
  """Raise ValueError unless the value is a real number in the interval.

  Args:
    name: the argument's name, for the message.
    value: a Python number, or a numpy or jax scalar.  A tracer passes, because its
      value is not known yet.
    interval: the allowed values: "[0, 1)", "(0, inf)" and so on.
    optional: whether None passes too.
  """
  if not is_concrete(value) or (optional and value is None):
    return
  low, high = (float(end) for end in interval[1:-1].split(","))
  number = _real_number(value)
  above = number >= low if interval[0] == "[" else number > low
  below = number <= high if interval[-1] == "]" else number < high
  if not (above and below):
    allowed = f"in {interval}"
    if high == float("inf"):
      kind = "a number" if interval[-1] == "]" else "a finite number"
      allowed = f"{kind} {'>=' if interval[0] == '[' else '>'} {low:g}"
    allowed = f"None or {allowed}" if optional else allowed
    raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def _real_number(value: Any) -> float:
  """The value as a float, or NaN (which is in no interval) if it is not real."""
  if isinstance(value, ARRAYS):
    kinds = (jnp.integer, jnp.floating)
    is_real = any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    return float(value) if is_real and value.ndim == 0 else float("nan")
  if not isinstance(value, numbers.Real) or isinstance(value, bool):
    return float("nan")
  try:
    return float(value)
  except OverflowError:
    return float("inf")


def check_positive(name: str, value: Any) -> None:
  """Raise ValueError unless the value is a finite number > 0; a tracer passes."""
  check_number(name, value, "(0, inf)")


def check_array(name: str, value: Any) -> None:
  """Raise ValueError unless the value is an array of numpy or jax, or a tracer."""
  if not isinstance(value, ARRAYS):
    raise ValueError(
      f"{name} must be an array of jax or numpy, got {type(value).__name__}; "
      "jnp.asarray(...) makes one."
    )


def check_choice(name: str, value: Any, allowed: Any) -> None:
  """Raise ValueError unless the value is one of the allowed strings."""
  if value not in tuple(allowed):
    raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")


def check_bounds(bounds: Any) -> None:
  """Raise ValueError unless bounds are None or (low, high) with low < high."""
  if bounds is None:
    return
  is_pair = isinstance(bounds, (tuple, list)) and len(bounds) == 2
  if is_pair and not all(is_concrete(end) for end in bounds):
    return
  if not is_pair or not _real_number(bounds[0]) < _real_number(bounds[1]):
    raise ValueError(
      f"bounds must be None or two numbers (low, high) with low < high, got {bounds!r}."
    )


def check_key(key: Any, *, single: bool = True) -> None:
  """Raise ValueError unless `key` is a `jax.random` key (or keys, if not `single`)."""
  dtype = getattr(key, "dtype", None)
  is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
  is_raw = dtype == jnp.uint32 and key.ndim >= 1
  if not is_typed and not is_raw:
    raise ValueError(f"key must be a key such as jax.random.key(0), got {key!r}.")
  shape = key.shape if is_typed else key.shape[:-1]
  if single and shape:
    raise ValueError(f"key must be a single key, got keys of shape {shape}.")


def takes(function: Callable[..., Any], *arguments: str) -> bool:
  """Whether a function can be called with these positional arguments."""
  try:
    inspect.signature(function).bind(*arguments)
  except TypeError:
    return False
  except ValueError:  # Some functions written in C have no signature.
    return True
  return True


def _is_readable(array: Any) -> bool:
  """Whether the array is not empty and this process knows all its values."""
  if not is_concrete(array):
    return False
  return getattr(array, "is_fully_addressable", True) and np.size(array) > 0


def check_inside(inputs: Any, bounds: Any) -> None:
  """Raise ValueError for inputs outside the box, or not finite; tracers pass."""
  if not _is_readable(inputs):
    return
  values = np.asarray(inputs)
  least, greatest = float(values.min()), float(values.max())
  if not (np.isfinite(least) and np.isfinite(greatest)):
    raise ValueError(
      f"inputs must be finite, got values from {least:g} to {greatest:g}."
    )
  if bounds is None or not all(is_concrete(end) for end in bounds):
    return
  low, high = (float(end) for end in bounds)
  if least < low or greatest > high:
    raise ValueError(
      f"inputs must lie inside bounds = ({low:g}, {high:g}), got values from {least:g} "
      f"to {greatest:g}.  Scale them (images in 0..255 by 1 / 255), or pass the bounds "
      "of your inputs."
    )


ONE_LOGIT = (
  "  Where one logit z [B, 1] decides between two classes, return "
  "jnp.concatenate([jnp.zeros_like(z), z], axis=1)."
)


def check_labels(labels: Any, num_classes: int) -> None:
  """Raise ValueError for class labels outside [0, num_classes); tracers pass."""
  if not _is_readable(labels):
    return
  values = np.asarray(labels)
  least, greatest = int(values.min()), int(values.max())
  if least < 0 or greatest >= num_classes:
    raise ValueError(
      f"labels must be in [0, {num_classes}), one class per logit, got values from "
      f"{least} to {greatest}." + (ONE_LOGIT if num_classes == 1 else "")
    )


def check_examples(
  inputs: jax.Array,
  labels: jax.Array | None = None,
  *,
  bounds: tuple[float, float] | None = (0.0, 1.0),
  num_classes: int | None = None,
) -> None:
  """Check a batch's values: finite inputs in the box, labels that name a class.

  Outside `jax.jit`, attacks and losses make these checks themselves.  Under `jax.jit`
  the values are unknown while the program is traced, so a wrong batch would pass
  silently.  Either call this function on each batch before the jitted step, or call it
  inside the step and transform the step with `jax.experimental.checkify.checkify`.

  Args:
    inputs: `[B, ...]`.
    labels: integers `[B]`, or None.
    bounds: the box `(low, high)` of the inputs, or None.
    num_classes: C, or None to leave the labels unchecked.

  Raises:
    ValueError: if a value is out of range.  In a jitted function that `checkify`
      transforms, the error that `checkify` returns reports it instead.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> from jax.experimental import checkify
    >>> ddi_jax.check_examples(jnp.array([[0.0, 255.0]]))
    Traceback (most recent call last):
    ...
    ValueError: inputs must lie inside bounds = (0, 1), got values from 0 to 255.  ...
    >>> @jax.jit
    ... def step(inputs):
    ...   ddi_jax.check_examples(inputs)
    ...   return inputs.sum()
    >>> error, total = checkify.checkify(step)(jnp.array([[0.0, 255.0]]))
    >>> error.get() is None
    False
  """
  check_bounds(bounds)
  check_positive_int("num_classes", num_classes, optional=True)
  check_array("inputs", inputs)
  check_inside(inputs, bounds)
  if not is_concrete(inputs) and inputs.size:
    low, high = (-jnp.inf, jnp.inf) if bounds is None else bounds
    inside = jnp.isfinite(inputs) & (inputs >= low) & (inputs <= high)
    checkify.check(
      jnp.all(inside),
      "inputs must be finite and lie inside bounds = ({low}, {high}), got values from "
      "{least} to {greatest}.",
      low=jnp.asarray(low),
      high=jnp.asarray(high),
      least=jnp.min(inputs),
      greatest=jnp.max(inputs),
    )
  if labels is None or num_classes is None:
    return
  check_array("labels", labels)
  is_integer = jnp.issubdtype(labels.dtype, jnp.integer)
  if not is_integer or labels.shape != inputs.shape[:1]:
    raise ValueError(
      f"labels must be integers of shape {inputs.shape[:1]}, a class per example, got "
      f"{labels.dtype} of shape {labels.shape}."
    )
  check_labels(labels, num_classes)
  if not is_concrete(labels) and labels.size:
    checkify.check(
      jnp.all((labels >= 0) & (labels < num_classes)),
      f"labels must be in [0, {num_classes}), got values from {{least}} to "
      "{greatest}.",
      least=jnp.min(labels),
      greatest=jnp.max(labels),
    )


def check_not_passed(
  factory: Callable[..., Any],
  settings: Iterable[str],
  num_positional: int,
  named: Iterable[str] = (),
) -> None:
  """Raise ValueError for a user's setting that ddi_jax passes to a factory itself.

  Args:
    factory: a function or a class.
    settings: names of the keyword arguments that the user gives.
    num_positional: number of positional arguments that ddi_jax passes.
    named: names of the keyword arguments that ddi_jax passes.
  """
  function: Any = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
  parameters = inspect.signature(function).parameters.values()
  own = [parameter for parameter in parameters if parameter.name != "self"]
  taken = {p.name for p in own[:num_positional] if p.kind is p.POSITIONAL_OR_KEYWORD}
  for name in settings:
    if name in taken.union(named):
      raise ValueError(
        f"{name} cannot be set: ddi_jax passes it to "
        f"{getattr(factory, '__name__', repr(factory))} itself; leave it out."
      )


def keyword_parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """The keyword arguments that a function or a class takes, by name.

  For a `functools.partial`, only those that it has not set.
  """
  if isinstance(factory, functools.partial):
    parameters = keyword_parameters(factory.func)
    return {name: p for name, p in parameters.items() if name not in factory.keywords}
  # The signature of the class itself would be that of its metaclass' __call__, which
  # flax modules have.
  function: Any = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
  kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
  return {
    name: parameter
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind in kinds and name != "self"
  }
