"""A decorator that makes equal calls return the same object."""

from collections.abc import Callable
import functools
from typing import Any, TypeVar

_Make = TypeVar("_Make", bound=Callable)
_MOST_KEPT = 256


def reused(make: _Make) -> _Make:
  """Make a function return the same object for the same arguments.

  JAX looks up a compiled program by the identity of the functions in it, so a function
  that is made again would be compiled again.  The closures of the returned object must
  not change.  Arguments that cannot be hashed, such as arrays, make a new object each
  time.
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
