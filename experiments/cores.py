"""Cores for the processes of a sweep, each its own.

XLA computes with as many threads as a process may use cores.  Two processes of two
threads on two cores wait for each other most of the time: steps took three times as
long as on one core each (docs/experiments.md).
"""

import fcntl
import functools
import os
from pathlib import Path

_LOCKS = "cores"


@functools.cache
def take_share(folder: Path, jobs: int) -> None:
  """Binds this process to a `jobs`-th part of the cores that it may use, for good.

  To be called before JAX starts.  Each process of a sweep gets another part, for as
  long as there are at most `jobs` of them; without cores enough, or where a process
  cannot be bound, nothing happens.

  Args:
    folder: of the sweep; a part that is taken is a locked file in it.
    jobs: number of processes.
  """
  if jobs == 1 or not hasattr(os, "sched_getaffinity"):
    return
  cores = sorted(os.sched_getaffinity(0))
  (folder / _LOCKS).mkdir(parents=True, exist_ok=True)
  for number in range(jobs):
    # Open, and so locked, until the process ends.
    lock = os.open(folder / _LOCKS / str(number), os.O_CREAT | os.O_WRONLY)
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      os.close(lock)
      continue
    if share := cores[number::jobs]:
      os.sched_setaffinity(0, share)
    return
