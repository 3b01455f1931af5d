"""Objects that are made once for the same arguments."""

from collections.abc import Callable
import functools
from typing import Any, TypeVar

_Make = TypeVar("_Make", bound=Callable)
_MOST_KEPT = 256


def reused(make: _Make) -> _Make:
  """The same function, which returns the same object for the same arguments.

  JAX finds a compiled program by the functions that it is made of.  What this returns
  is found again; its closures must not change.  Arguments that cannot be hashed, such
  as arrays, make a new object each time.
  """
  kept = functools.lru_cache(maxsize=_MOST_KEPT, typed=True)(make)

  @functools.wraps(make)
  def find_or_make(*args: Any, **settings: Any) -> Any:
    try:
      hash((args, *settings.values()))
    except TypeError:
      return make(*args, **settings)
    return kept(*args, **settings)

  return find_or_make  # type: ignore[return-value]
