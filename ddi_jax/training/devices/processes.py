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
# Without a sign of life for so long, a process counts as lost and all others end.
_HEARTBEAT_TIMEOUT = 30  # seconds
_GRACE = 2.0  # seconds


class OtherProcessError(RuntimeError):
  """Another process failed or is lost; its own message, if any, says why."""


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins this process to the others; before jax computes anything.

  Without arguments they are found in the environment: SLURM, Open MPI, Kubernetes
  (with `pip install 'jax[k8s]'`) and Cloud TPU (see `jax.distributed.initialize`).

  Args:
    coordinator: "host:port" of process 0.
    num_processes: number of processes.
    process_id: of this one, in [0, num_processes).

  Raises:
    ConfigError: if only some arguments are given, one is impossible, or without any
      the environment is unknown or the others cannot be reached.
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
      f"{' and '.join(missing)}, leave out all of them where the environment tells."
    )
  if num_processes is not None and process_id is not None:
    if num_processes < 1 or not 0 <= process_id < num_processes:
      raise ConfigError(
        f"--process_id must be in [0, num_processes), got {process_id} of "
        f"{num_processes}."
      )
  if coordinator is not None and not re.fullmatch(r".+:\d+", coordinator):
    raise ConfigError(f"--coordinator must be HOST:PORT, got {coordinator!r}.")
  method = None if missing else "deactivate"  # The environment is not looked at.
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
    # jax has taken it to itself, and does nothing upon it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
  """With several processes, an exception in the block ends this one there and then.

  jax's own way out waits minutes for the others, who may be waiting for this one; a
  closed connection tells them.
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
      time.sleep(_GRACE)  # Without the coordinator the others are aborted in mid-word.
    os._exit(status)


@contextlib.contextmanager
def connection_errors() -> Iterator[None]:
  """Names what a failure of jax means where there are several processes.

  Raises:
    OtherProcessError: for an error of the runtime, which a lost process causes.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
      raise
    raise OtherProcessError(
      "this process cannot go on, most likely because another process has ended "
      f"({' '.join(str(error).split())[:200]}).  The same command, with as many "
      "processes or others, resumes from the last checkpoint."
    ) from error


def is_writer() -> bool:
  """Whether this process writes logs and results; checkpoints are written together."""
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """Whether `flag` is true on any process; all must call this equally often."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def agreed(ask: Callable[[], bool]) -> Callable[[], bool]:
  """`ask`, answered alike on all processes: whether it is true on any."""
  return lambda: any_process(ask())


def together(fn: Callable[[], _Result]) -> _Result:
  """`fn()` on every process; if it fails on one, it fails on all.

  Raises:
    OtherProcessError: if it failed elsewhere only; a process's own error as it is.
  """
  results, failure = [], None
  try:
    results.append(fn())
  except Exception as error:  # Raised below, when the others know.
    failure = error
  failed = any_process(failure is not None)
  if failure is not None:
    raise failure
  if failed:
    raise OtherProcessError("another process has stopped; see its message.")
  return results[0]
