"""The platform for which a program is compiled."""

import jax
from jax.sharding import Mesh


def target(mesh: Mesh | None = None) -> str:
  """The platform of the program that is being traced: "cpu", "gpu" or "tpu".

  It is the platform of the mesh's devices if `jax.set_mesh` has set a mesh.  Otherwise
  it is that of `jax.default_device` if the user has set it, and else jax's default.  A
  program can therefore be compiled for devices that this machine does not have
  (`jax.experimental.topologies`).  jax traces a function again if the mesh or the
  default device changes.

  Args:
    mesh: the mesh to use instead of the one that is set, for decisions outside a trace.
  """
  if mesh is not None:
    return mesh.devices.flat[0].platform
  in_mesh = jax.sharding.get_abstract_mesh().abstract_device
  if hasattr(in_mesh, "platform"):  # Not in jax 0.8.
    return in_mesh.platform
  device = jax.config.jax_default_device  # type: ignore[attr-defined]
  if device is None:
    return jax.default_backend()
  return device if isinstance(device, str) else device.platform
