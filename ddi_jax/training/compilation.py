"""How programs are compiled, and where they are kept for a resumed run."""

from collections.abc import Iterator, Mapping
import contextlib
import functools
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
import ml_collections

FOLDER = "compilation_cache"
_WORTH_KEEPING_SECONDS = 0.1
_WIDE = 64
# XLA's own choice but for LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION: YNNPACK runs
# large convolutions on one core, and wide ones slower than Eigen (docs/benchmarks.md).
_WITHOUT_YNNPACK_CONVOLUTIONS = {
  "xla_cpu_experimental_ynn_fusion_type": (
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
  )
}


def compiler_options(config: ml_collections.ConfigDict) -> dict[str, str] | None:
  """What `jax.jit` is to tell XLA: something for wide models on a CPU, else nothing."""
  if jax.default_backend() != "cpu" or config.model.width < _WIDE:
    return None
  return _WITHOUT_YNNPACK_CONVOLUTIONS if _is_known_option() else None


@functools.cache
def _is_known_option() -> bool:
  """Whether this version of XLA has the option, which is an experimental one."""
  try:
    jax.jit(lambda: 0, compiler_options=_WITHOUT_YNNPACK_CONVOLUTIONS).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


@contextlib.contextmanager
def compilation_cache_in(workdir: Path) -> Iterator[None]:
  """Reads and writes compiled programs in the workdir while the `with` block runs.

  Where the user has set a cache of their own (JAX_COMPILATION_CACHE_DIR), that stays.
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
  compilation_cache.reset_cache()  # jax opens a cache once only.
