"""Compiler options for convolutions where XLA's own choice is slow."""

import functools

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddi_jax.numerics import platform

_WIDE = 64
# XLA's default without LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION.  YNNPACK runs large
# convolutions on one core, and wide ones slower than Eigen does (docs/benchmarks.md).
_WITHOUT_YNNPACK_CONVOLUTIONS = {
  "xla_cpu_experimental_ynn_fusion_type": (
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
  )
}
# Without this, XLA cuts the convolution of a kernel's gradient into pieces and passes
# partial sums round a ring of chips (docs/scaling.md).
_ONE_SUM_OVER_CHIPS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def compiler_options(
  width: int | None, mesh: Mesh | None = None
) -> dict[str, str] | None:
  """The `compiler_options` of `jax.jit` for a network with this many channels.

  There are options for wide networks on a CPU, and for several TPUs.  In all other
  cases the result is None.

  Args:
    width: width of the network, None if it has none.
    mesh: mesh of the devices that run the program; None for one device.
  """
  target = platform.target(mesh)
  if target == "tpu" and mesh is not None:
    options = _ONE_SUM_OVER_CHIPS
  elif target == "cpu" and (width or 0) >= _WIDE:
    options = _WITHOUT_YNNPACK_CONVOLUTIONS
  else:
    return None
  return options if _are_known(tuple(options.items()), mesh) else None


@functools.cache
def _are_known(options: tuple[tuple[str, str], ...], mesh: Mesh | None) -> bool:
  """Whether this version of the compiler has these experimental options."""
  where = None if mesh is None else NamedSharding(mesh, PartitionSpec())
  try:
    jax.jit(
      lambda: 0, out_shardings=where, compiler_options=dict(options)
    ).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True
