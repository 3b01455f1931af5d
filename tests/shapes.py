"""Checks the array shapes in public signatures, whenever a test calls the function.

The annotations are jaxtyping's.  The library does not import jaxtyping at run time, so
their names are resolved here.
"""

from collections.abc import Callable
import functools
import inspect
import sys
from typing import Any

import beartype
import jax
import jaxtyping
import numpy as np

NAMES = {
  "Array": jax.Array | np.ndarray,
  **{name: getattr(jaxtyping, name) for name in ("Bool", "Float", "Int", "PyTree")},
}


def has_shapes(fn: Any) -> bool:
  """Whether a function's annotations name a shape."""
  annotations = getattr(fn, "__annotations__", {}).values()
  return any("[Array, " in str(annotation) for annotation in annotations)


def checked(fn: Callable[..., Any]) -> Callable[..., Any]:
  """The function; after it returns, its arguments and its result are checked.

  After, so that its own errors come first.
  """
  signature = inspect.signature(fn)
  namespace = sys.modules[fn.__module__].__dict__ | NAMES
  annotations = {
    name: eval(annotation, namespace) if isinstance(annotation, str) else annotation
    for name, annotation in fn.__annotations__.items()
    if "[Array, " in str(annotation)
  }
  result_of_call: list[Any] = []
  names = ", ".join(signature.parameters)
  source = f"def check({names}):\n  return result_of_call[-1]"
  scope = {"result_of_call": result_of_call}
  exec(source, scope)
  scope["check"].__annotations__ = annotations
  check = jaxtyping.jaxtyped(scope["check"], typechecker=beartype.beartype)

  @functools.wraps(fn)
  def call(*args, **kwargs):
    result = fn(*args, **kwargs)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    result_of_call.append(result)
    try:
      check(**bound.arguments)
    finally:
      result_of_call.pop()
    return result

  return call
