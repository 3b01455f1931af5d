"""What every benchmark says of where it ran."""

import importlib.metadata
import os
import platform
import time

import jax


def describe_machine(*packages: str) -> str:
  """The device, the versions of some packages, and the date."""
  versions = ", ".join(
    f"{name} {importlib.metadata.version(name)}" for name in packages
  )
  return (
    f"{jax.devices()[0].device_kind}, {_num_cores()} cores, {platform.machine()}, "
    f"{versions}, {time.strftime('%Y-%m-%d')}"
  )


def _num_cores() -> int | None:
  """Those that this process may use, where that is known."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()
