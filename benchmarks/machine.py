"""Describe the machine on which a benchmark or experiment runs."""

import importlib.metadata
import os
import platform
import time

import jax


def describe_machine(*packages: str) -> str:
  """The device, the versions of some packages, and the date."""
  return f"{device()}, {versions(*packages)}, {time.strftime('%Y-%m-%d')}"


def device() -> str:
  """The device on which jax computes."""
  return f"{jax.devices()[0].device_kind}, {_num_cores()} cores, {platform.machine()}"


def versions(*packages: str) -> str:
  """The versions of some packages."""
  return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def _num_cores() -> int | None:
  """The number of cores that this process may use; if unknown, all cores."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count()
