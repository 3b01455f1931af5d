"""What every benchmark and experiment says of where it ran."""

import importlib.metadata
import os
import platform
import time

import jax


def describe_machine(*packages: str) -> str:
  """The device, the versions of some packages, and the date."""
  return f"{device()}, {versions(*packages)}, {time.strftime('%Y-%m-%d')}"


def device() -> str:
  """What jax computes on."""
  return f"{jax.devices()[0].device_kind}, {_num_cores()} cores, {platform.machine()}"


def versions(*packages: str) -> str:
  """Of some packages."""
  return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def _num_cores() -> int | None:
  """Those that this process may use, where that is known."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()
