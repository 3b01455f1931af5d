"""A cache of compiled programs, for resumed runs."""

from collections.abc import Iterator, Mapping
import contextlib
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

FOLDER = "compilation_cache"
_WORTH_KEEPING_SECONDS = 0.1


@contextlib.contextmanager
def compilation_cache_in(workdir: Path) -> Iterator[None]:
  """Cache compiled programs in the workdir while the `with` block runs.

  If the user has set a cache (JAX_COMPILATION_CACHE_DIR), that one is used instead.
  """
  if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
    yield
    return
  settings = {
    "jax_compilation_cache_dir": str((workdir / FOLDER).absolute()),
    "jax_persistent_cache_min_compile_time_secs": _WORTH_KEEPING_SECONDS,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  _open_cache(settings)
  try:
    yield
  finally:
    _open_cache(before)


def _open_cache(settings: Mapping[str, Any]) -> None:
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()  # Without this, jax keeps the cache it has opened.
