"""What XLA's CPU backend is told for wide convolutions."""

import functools

import jax
from jax.sharding import Mesh

from ddi_jax.numerics import platform

_WIDE = 64
# XLA's own choice but for LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION: YNNPACK runs
# large convolutions on one core, and wide ones slower than Eigen (docs/benchmarks.md).
_WITHOUT_YNNPACK_CONVOLUTIONS = {
  "xla_cpu_experimental_ynn_fusion_type": (
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
  )
}


def compiler_options(
  width: int | None, mesh: Mesh | None = None
) -> dict[str, str] | None:
  """The `compiler_options` of `jax.jit` for a network of this many channels.

  Something for wide networks on a CPU, else nothing.

  Args:
    width: of the network, None if it has none.
    mesh: of the devices that the program is for; None for one device.
  """
  if platform.target(mesh) != "cpu" or (width or 0) < _WIDE:
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
