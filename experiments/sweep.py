"""Make many runs, each in its own folder; keep finished ones, report failures.

`joblib` makes the runs, one after another or in several processes.  A run resumes by
itself (`ddi_jax.training`), so the same command continues an interrupted sweep.  All
runs share one compilation cache.
"""

from collections.abc import Callable, Iterable, Mapping
import contextlib
import datetime
import functools
import json
import os
from pathlib import Path
import subprocess
import sys
import time
import traceback
from typing import Any, NamedTuple

from absl import logging
import joblib
import ml_collections

from benchmarks import machine
from ddi_jax.training.devices.compilation import compilation_cache_in
from ddi_jax.training.storage import files, workdir

Task = Callable[[ml_collections.ConfigDict, Path], Mapping[str, Any] | None]
PROVENANCE_FILE = "provenance.json"
_LOGS = "logs"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "ddi_jax")


class Run(NamedTuple):
  """One run of a sweep.

  Attributes:
    setting: a name for what is trained, for example the data set and the network.
    config: the run's config.
  """

  setting: str
  config: ml_collections.ConfigDict


Runs = Mapping[str, Run]  # Runs by the names of their folders.


def named(runs: Iterable[Run]) -> Runs:
  """Runs by the names of their folders, which are unique to their configs."""
  return {workdir.default_workdir(run.config, run.setting).name: run for run in runs}


def run_all(task: Task, runs: Runs, folder: Path, *, jobs: int = 1) -> dict[str, str]:
  """Make all runs that are not finished yet.

  Args:
    task: (config, folder of the run) -> the content of its summary.json, or None if it
      was interrupted.  If `jobs` > 1, it must be a function of a module.
    runs: all runs, finished or not.
    folder: folder of all runs.  The output of a run is written to `logs/NAME.txt` in
      it.
    jobs: number of processes.

  Returns:
    The reasons of failures by the names of the runs.  All other runs have finished.

  Raises:
    KeyboardInterrupt: if a run was interrupted; the same call resumes.
  """
  waiting = unfinished(runs, folder)
  print(f"{len(runs)} runs in {folder}, {len(runs) - len(waiting)} finished before.")
  (folder / _LOGS).mkdir(parents=True, exist_ok=True)
  provenance = describe_provenance()
  outcomes = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(
    joblib.delayed(_run_one)(task, name, runs[name].config, folder, provenance)
    for name in waiting
  )
  failures = {}
  began = time.monotonic()
  for number, (name, seconds, reason) in enumerate(outcomes, 1):
    outcome = f"FAILED: {reason}" if reason else "done"
    left = (time.monotonic() - began) / number * (len(waiting) - number)
    print(
      f"{time.strftime('%H:%M:%S')} {number}/{len(waiting)} {name}: {outcome} "
      f"({seconds:.0f} s, about {datetime.timedelta(seconds=round(left))} left)",
      flush=True,
    )
    if reason:
      failures[name] = reason
  return failures


def unfinished(runs: Runs, folder: Path) -> list[str]:
  """The names of the runs that are not finished yet."""
  return [name for name in runs if not (folder / name / PROVENANCE_FILE).exists()]


def finished(runs: Runs, folder: Path) -> Runs:
  """The runs that are finished."""
  missing = unfinished(runs, folder)
  return {name: run for name, run in runs.items() if name not in missing}


@functools.cache
def describe_provenance() -> dict[str, str]:
  """The commit, the machine and the versions with which this program runs.

  Call this first when the program starts, because the commit may change later.
  """
  described = subprocess.run(
    ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
    cwd=Path(__file__).parent,
    capture_output=True,
    text=True,
    check=False,
  )
  return {
    "commit": described.stdout.strip() or "unknown",
    "machine": machine.device(),
    "versions": machine.versions(*_PACKAGES),
    "date": time.strftime("%Y-%m-%d"),
  }


def read_provenance(folder: Path) -> dict[str, str]:
  """The provenance of a run, as recorded by its last process."""
  return json.loads((folder / PROVENANCE_FILE).read_text())


def _run_one(task, name, config, folder, provenance) -> tuple[str, float, str]:
  """Make one run; return its name, its seconds, and the reason if it failed."""
  logging.set_verbosity(logging.ERROR)
  began = time.monotonic()
  reason = ""
  with (
    (folder / _LOGS / f"{name}.txt").open("w") as log,
    compilation_cache_in(folder),
  ):
    try:
      with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        summary = task(config, folder / name)
    except Exception as error:  # An error in one run must not end the others.
      traceback.print_exc(file=log)
      reason = f"{type(error).__name__}: {error}"
    else:
      if summary is None:
        raise KeyboardInterrupt
      files.write_json(folder / name / PROVENANCE_FILE, provenance)
  return name, time.monotonic() - began, reason


def exit_with(failures: Mapping[str, str], folder: Path) -> None:
  """End the program with an error if a run has failed."""
  if failures:
    listed = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
    sys.exit(
      f"{len(failures)} runs have failed (see {folder / _LOGS}{os.sep}):\n{listed}\n"
      "The same command tries them again."
    )
