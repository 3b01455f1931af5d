"""What XLA is told for convolutions, where its own choice is slow."""

import functools

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddi_jax.numerics import platform

_WIDE = 64
# XLA's own choice but for LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION: YNNPACK runs
# large convolutions on one core, and wide ones slower than Eigen (docs/benchmarks.md).
_WITHOUT_YNNPACK_CONVOLUTIONS = {
  "xla_cpu_experimental_ynn_fusion_type": (
    "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
  )
}
# Else the convolution of a kernel's gradient is cut into pieces, of which partial sums
# are passed round a ring (docs/scaling.md).
_ONE_SUM_OVER_CHIPS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def compiler_options(
  width: int | None, mesh: Mesh | None = None
) -> dict[str, str] | None:
  """The `compiler_options` of `jax.jit` for a network of this many channels.

  Something for wide networks on a CPU and for several TPUs, else nothing.

  Args:
    width: of the network, None if it has none.
    mesh: of the devices that the program is for; None for one device.
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
  """Whether this version of the compiler has the options, which are experimental."""
  where = None if mesh is None else NamedSharding(mesh, PartitionSpec())
  try:
    jax.jit(
      lambda: 0, out_shardings=where, compiler_options=dict(options)
    ).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True
