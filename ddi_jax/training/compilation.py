"""Compiled programs kept in a folder, so that a resumed run starts at once."""

from collections.abc import Iterator
import contextlib
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

FOLDER = "compilation_cache"


@contextlib.contextmanager
def compilation_cache_in(workdir: Path) -> Iterator[None]:
  """Reads and writes compiled programs in the workdir while the `with` block runs.

  Where the user has set a cache of their own (JAX_COMPILATION_CACHE_DIR), that stays.
  """
  if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
    yield
    return
  jax.config.update("jax_compilation_cache_dir", str((workdir / FOLDER).absolute()))
  compilation_cache.reset_cache()  # jax opens a cache once only.
  try:
    yield
  finally:
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
