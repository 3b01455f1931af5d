"""Several processes, on one host or many, that train one network together."""

from collections.abc import Callable, Iterator
import contextlib
import os
import re
import signal
import sys
import threading
import time
import traceback
from typing import TypeVar

import jax
from jax.experimental import multihost_utils
import numpy as np

from ddi_jax.training.settings.pieces import ConfigError

_Result = TypeVar("_Result")
# A process that sends no heartbeat for this long counts as lost, and all others end.
_HEARTBEAT_TIMEOUT = 30  # seconds
_GRACE = 2.0  # seconds


class OtherProcessError(RuntimeError):
  """Another process failed or was lost; its own message, if any, says why."""


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Connect this process to the others.

  Call this before jax computes anything.  Without arguments, the settings are read from
  the environment: SLURM, Open MPI, Kubernetes (with `pip install 'jax[k8s]'`) or Cloud
  TPU (see `jax.distributed.initialize`).

  Args:
    coordinator: "host:port" of process 0.
    num_processes: number of processes.
    process_id: index of this process, in [0, num_processes).

  Raises:
    ConfigError: if only some arguments are given, if one is impossible, if the
      environment is unknown and there are no arguments, or if the other processes
      cannot be reached.
  """
  given = {
    "coordinator": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
  }
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if 0 < len(missing) < len(given):
    raise ConfigError(
      "--coordinator, --num_processes and --process_id go together; without "
      f"{' and '.join(missing)}, omit all of them to read them from the environment."
    )
  if num_processes is not None and process_id is not None:
    if num_processes < 1 or not 0 <= process_id < num_processes:
      raise ConfigError(
        f"--process_id must be in [0, num_processes), got {process_id} of "
        f"{num_processes}."
      )
  if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
    raise ConfigError(f"--coordinator must be HOST:PORT, got {coordinator!r}.")
  method = None if missing else "deactivate"  # Ignore the environment.
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      cluster_detection_method=method,
      heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
    )
  except (RuntimeError, ValueError, TypeError) as error:
    raise ConfigError(
      f"the processes could not be joined ({' '.join(str(error).split())}).  Outside "
      "of SLURM, Open MPI, Kubernetes and Cloud TPU, give --coordinator=HOST:PORT, "
      "--num_processes and --process_id."
    ) from error
  if threading.current_thread() is threading.main_thread():
    # jax has installed its own handler, which ignores the signal.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
  """With several processes, end this one at once if the block raises an exception.

  On a normal exit, jax waits minutes for the other processes, which may be waiting for
  this one.  Ending at once closes the connection, which tells them.
  """
  try:
    yield
  except BaseException as error:
    if not jax.distributed.is_initialized():
      raise
    status = 1
    if isinstance(error, SystemExit) and isinstance(error.code, int):
      status = error.code
    elif isinstance(error, SystemExit):
      print(error.code, file=sys.stderr)
    else:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
      # Give the others time to print: without the coordinator they are aborted.
      time.sleep(_GRACE)
    os._exit(status)


@contextlib.contextmanager
def connection_errors() -> Iterator[None]:
  """With several processes, turn jax's runtime errors into `OtherProcessError`.

  Raises:
    OtherProcessError: for a runtime error, which a lost process causes.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
      raise
    raise OtherProcessError(
      "this process cannot continue, most likely because another process has ended "
      f"({' '.join(str(error).split())[:200]}).  The same command, with any number of "
      "processes, resumes from the last checkpoint."
    ) from error


def is_writer() -> bool:
  """Whether this process writes logs and results.

  All processes write checkpoints together.
  """
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """Whether `flag` is true on any process.

  All processes must call this function equally often.
  """
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def agreed(ask: Callable[[], bool]) -> Callable[[], bool]:
  """A function that is true on all processes if `ask` is true on any."""
  return lambda: any_process(ask())


def together(fn: Callable[[], _Result]) -> _Result:
  """Call `fn()` on every process; if it fails on one, raise an error on all.

  Raises:
    OtherProcessError: if `fn` failed only on other processes.  If it failed on this
      one, its own error is raised.
  """
  results, failure = [], None
  try:
    results.append(fn())
  except Exception as error:  # Raised below, after the others have been told.
    failure = error
  failed = any_process(failure is not None)
  if failure is not None:
    raise failure
  if failed:
    raise OtherProcessError("another process has stopped; see its message.")
  return results[0]
