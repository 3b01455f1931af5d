"""Records of the settings behind a result, to compare with another call's."""

from collections.abc import Iterator, Mapping
import functools
import hashlib
from types import CellType, CodeType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import jax
import numpy as np

from ddi_jax.checks import ARRAYS

Record = dict[str, Any]

_PLAIN = (str, int, float, NoneType)


def record_of(settings: Mapping[str, Any]) -> Record:
  """Settings as a flat dictionary that can be compared and written as JSON.

  Settings may be of any kind.  A function is recorded by its name and by the variables
  that it holds (closure, defaults, arguments of a `functools.partial`, attributes of an
  object).  A user's function is also recorded by its code and by the global numbers,
  strings and arrays that it uses.  Arrays are recorded by a digest of their values, or,
  if they lie on several hosts, by dtype and shape.

  Args:
    settings: values by name.

  Returns:
    A dictionary from dotted names to strings, numbers, booleans and None.

  Example:
    >>> from ddi_jax.records import differences, record_of
    >>> def scale(factor):
    ...   return lambda x: factor * x
    >>> differences(record_of({"map": scale(2)}), record_of({"map": scale(3)}))
    ['map.factor is 3 there and 2 here']
  """
  return dict(_entries("", settings, ()))


def differences(ours: Record, theirs: Record, prefix: str = "") -> list[str]:
  """The entries in which two records differ, as one phrase each."""
  return [
    f"{prefix}{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
    for name in dict.fromkeys([*ours, *theirs])
    if ours.get(name) != theirs.get(name)
  ]


def _entries(
  name: str, value: Any, holders: tuple[int, ...]
) -> Iterator[tuple[str, Any]]:
  """Yield (name, recorded value) for a value and for everything that it holds."""
  if isinstance(value, ARRAYS):
    yield name, _of_array(value)
  elif isinstance(value, _PLAIN):
    yield name, value
  elif id(value) not in holders:
    parts: Mapping[Any, Any]
    if isinstance(value, Mapping):
      parts = value
    elif isinstance(value, tuple | list):
      parts = value._asdict() if hasattr(value, "_asdict") else dict(enumerate(value))
    else:
      yield name, _name_of(value)
      parts = _parts(value)
    for part, held in parts.items():
      inner = f"{name}.{part}" if name and part != "" else name or str(part)
      yield from _entries(inner, held, (*holders, id(value)))


def _of_array(array: Any) -> Any:
  if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
    numbers = np.asarray(jax.random.key_data(array)).tolist()
    return f"{jax.random.key_impl(array)} {numbers}"
  if not getattr(array, "is_fully_addressable", True):  # Part of it is on other hosts.
    return f"{array.dtype}{list(array.shape)}"
  array = np.ascontiguousarray(array)
  if array.size == 1:
    return array.item()
  value = hashlib.sha256(array.tobytes()).hexdigest()[:16]
  return f"{array.dtype}{list(array.shape)} {value}"


def _name_of(value: Any) -> str:
  named = value if hasattr(value, "__qualname__") else type(value)
  name = f"{getattr(named, '__module__', '')}.{named.__qualname__}"
  is_of_user = isinstance(value, FunctionType) and not _is_of_library(value)
  return f"{name} {_digest_of_code(value.__code__)}" if is_of_user else name


def _is_of_library(value: Any) -> bool:
  return str(getattr(value, "__module__", "")).split(".")[0] in ("ddi_jax", "jax")


def _parts(value: Any) -> Mapping[str, Any]:
  """The values that a function or an object holds, by name."""
  if isinstance(value, functools.partial):
    arguments = dict(enumerate(value.args)) | value.keywords
    return {"": value.func} | {str(name): part for name, part in arguments.items()}
  if isinstance(value, MethodType):
    return {"": value.__func__, "self": value.__self__}
  if isinstance(value, FunctionType):
    cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
    variables = {n: cell.cell_contents for n, cell in cells if cell != CellType()}
    defaults = dict(enumerate(value.__defaults__ or ())) | (value.__kwdefaults__ or {})
    variables |= {f"default {name}": part for name, part in defaults.items()}
    if not _is_of_library(value):
      found = {n: value.__globals__.get(n) for n in value.__code__.co_names}
      plain = (*ARRAYS, str, int, float)
      variables |= {n: part for n, part in found.items() if isinstance(part, plain)}
    return variables
  if hasattr(value, "__wrapped__"):  # Made by jax.jit.
    return {"": value.__wrapped__}
  return {} if isinstance(value, type | ModuleType) else getattr(value, "__dict__", {})


def _digest_of_code(code: CodeType) -> str:
  def texts(code: CodeType) -> Iterator[str]:
    yield f"{code.co_code!r} {code.co_names}"
    for constant in code.co_consts:
      if isinstance(constant, CodeType):
        yield from texts(constant)
      elif isinstance(constant, frozenset):  # Its order changes with the process.
        yield str(sorted(map(repr, constant)))
      else:
        yield repr(constant)

  return hashlib.sha256("\n".join(texts(code)).encode()).hexdigest()[:16]
