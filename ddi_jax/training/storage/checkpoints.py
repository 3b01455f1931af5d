"""Checkpoints: the latest, and the best by validation robust accuracy."""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import functools
import glob
import logging as standard_logging
import os
from pathlib import Path
import re
import shutil
import sys
import tempfile
from typing import Any

from absl import logging
import jax

from ddi_jax.training.devices import processes
from ddi_jax.training.step.state import TrainState
from ddi_jax.training.step.validation import Validation
from ddi_jax.training.storage import checksums

# orbax is imported in the functions that use it, so that an invalid config is refused
# without waiting for it.
_FOLDER = "checkpoints"
_DAMAGED_FOLDER = "damaged_checkpoints"
_TEMPORARY = ".orbax-checkpoint-tmp"  # Part of the names of unfinished checkpoints.
_DELETED_FOLDER = f"deleted{_TEMPORARY}"


class CheckpointError(RuntimeError):
  """A checkpoint cannot be saved or read; the message says what is left."""


class Checkpoints:
  """Orbax checkpoints under `workdir/checkpoints`, one folder per step.

  The two latest checkpoints are kept, and the best by validation robust accuracy (if
  several are equal, the latest of them).  Each is written atomically, followed by its
  checksums.  A checkpoint contains only arrays and JSON, so reading it executes no code
  from it.
  """

  def __init__(self, workdir: Path):
    import orbax.checkpoint as ocp  # noqa: PLC0415
    from orbax.checkpoint import checkpoint_managers  # noqa: PLC0415

    self.directory = (workdir / _FOLDER).absolute()
    self._links = contextlib.ExitStack()
    policies = [
      checkpoint_managers.LatestN(2),
      checkpoint_managers.BestN(
        get_metric_fn=_robust_accuracy, n=1, keep_checkpoints_without_metrics=False
      ),
    ]
    options = ocp.CheckpointManagerOptions(
      best_fn=_robust_accuracy,
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
      enable_async_checkpointing=False,
      # A deleted folder is first moved there in one step, so that no partial checkpoint
      # is left if the process is killed.
      todelete_subdir=_DELETED_FOLDER,
    )
    plain = self._links.enter_context(_without_wildcards(self.directory))
    self._manager = ocp.CheckpointManager(plain, options=options)

  @property
  def latest_step(self) -> int | None:
    """Step of the latest checkpoint, None if there is none."""
    return self._manager.latest_step()

  @property
  def best_step(self) -> int | None:
    """Step of the checkpoint with the highest validation robust accuracy."""
    return self._manager.best_step()

  def save(
    self,
    state: TrainState,
    progress: Mapping[str, Any],
    validation: Validation | None,
  ) -> None:
    """Save a state, a small JSON record, and the validation result if there is one.

    Only checkpoints with a validation result can become the best.  If the run was
    interrupted before validation, its checkpoint has none.  Saving the same step again
    with a result replaces it.

    Raises:
      CheckpointError: if the checkpoint cannot be written.  Earlier ones are unchanged.
    """
    import orbax.checkpoint as ocp  # noqa: PLC0415

    step = int(state.step)
    if step == self.latest_step and validation is None:
      return
    _silence_abandoned_writes()
    try:
      if step == self.latest_step:
        self._manager.delete(step)
      with _silent_orbax():
        self._manager.save(
          step,
          args=ocp.args.Composite(
            **{
              name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()
            },
            progress=ocp.args.JsonSave(dict(progress)),
          ),
          metrics=None if validation is None else validation.numbers(),
        )
      folder, writer = self.directory / str(step), processes.is_writer()
      processes.together(lambda: checksums.write_checksums(folder) if writer else None)
      if writer:
        shutil.rmtree(self.directory / _DELETED_FOLDER, ignore_errors=True)
    except (processes.OtherProcessError, jax.errors.JaxRuntimeError):
      raise
    except Exception as error:  # An OSError, or what orbax's storage turns it into.
      raise CheckpointError(
        f"the checkpoint of step {step} could not be saved in {self.directory}: "
        f"{_reason(error)}."
      ) from error

  def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Load the state and the JSON record of a step.

    `like` gives the structure and the shapes of the state.  If `like.memory` is empty,
    the checkpoint's memory is not read.

    Raises:
      CheckpointError: if the checkpoint has changed since it was saved.
    """
    import orbax.checkpoint as ocp  # noqa: PLC0415

    folder = self.directory / str(step)
    processes.together(lambda: _check_sums(folder) if processes.is_writer() else None)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        **{
          name: ocp.args.StandardRestore(
            jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
          )
          for name, tree in _items(like).items()
        },
        progress=ocp.args.JsonRestore(),
      ),
    )
    parts = [restored[name] for name in _items(like)]
    return TrainState(**collections.ChainMap(*parts)), restored["progress"]

  def close(self) -> None:
    """Wait until everything is written."""
    self._manager.close()
    self._links.close()


@contextlib.contextmanager
def _without_wildcards(directory: Path) -> Iterator[Path]:
  """The folder under a name without wildcards, which orbax would interpret.

  If its own name has wildcards, the result is a temporary symbolic link to it.
  """
  if glob.escape(str(directory)) == str(directory):
    yield directory
    return
  directory.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix="ddi_jax_checkpoints_") as folder:
    link = Path(folder) / _FOLDER
    link.symlink_to(directory, target_is_directory=True)
    yield link


def _items(state: TrainState) -> dict[str, Any]:
  """The state in two items, so that a model can be read without the memory."""
  parts = state._asdict()
  memory = {"memory": parts.pop("memory")}
  return {"state": parts} | ({"memory": memory} if jax.tree.leaves(memory) else {})


def good_steps(workdir: Path) -> list[int]:
  """The steps of the checkpoints that have not changed since they were saved."""
  directory = workdir / _FOLDER
  return [
    step
    for step in _steps(directory)
    if checksums.find_damage(directory / str(step)) is None
  ]


def set_damaged_aside(workdir: Path) -> list[str]:
  """Remove bad checkpoints from the folder, so that a run resumes from a good one.

  Only the run that has locked the workdir may call this.  Checkpoints that were not
  finished when a run was killed are deleted.  Checkpoints that have changed since they
  were saved are moved to `workdir/damaged_checkpoints`.

  Returns:
    Messages about what was done, one sentence each.

  Raises:
    CheckpointError: if no checkpoint is good, unless the only one is unfinished.  Then
      nothing is moved or deleted.
  """
  directory = workdir / _FOLDER
  steps = _steps(directory)
  damages = {step: checksums.find_damage(directory / str(step)) for step in steps}
  good = [step for step in steps if damages[step] is None]
  damaged = [step for step in steps if damages[step] is not None]
  # Only the last checkpoint can be unfinished because its run was killed.
  unfinished = [
    step for step in steps[-1:] if not checksums.is_finished(directory / str(step))
  ]
  if damaged and not good and damaged != unfinished:
    list_of_damages = "; ".join(f"{step}: {damages[step]}" for step in damaged)
    raise CheckpointError(
      f"no checkpoint in {directory} is good ({list_of_damages}).  Nothing was "
      "deleted: put back a copy of one, or start again in another --workdir."
    )
  for path in directory.glob(f"*{_TEMPORARY}*"):
    shutil.rmtree(path)
  messages = []
  fallback = f"resuming from step {good[-1]}" if good else "starting from step 0"
  for step in damaged:
    folder = directory / str(step)
    if step in unfinished:
      shutil.rmtree(folder)
      outcome = "deleted"
    else:
      outcome = f"moved to {_move_into(workdir / _DAMAGED_FOLDER, folder)}"
    messages.append(
      f"The checkpoint of step {step} is not good ({damages[step]}): {outcome}, "
      f"{fallback}."
    )
  return messages


def _check_sums(folder: Path) -> None:
  damage = checksums.find_damage(folder)
  if damage is not None:
    raise CheckpointError(f"the checkpoint {folder} is damaged: {damage}.")


def _steps(directory: Path) -> list[int]:
  return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())


def _move_into(parent: Path, folder: Path) -> Path:
  target = parent / folder.name
  if target.exists():  # Left from earlier damage at the same step.
    shutil.rmtree(target)
  parent.mkdir(exist_ok=True)
  return folder.rename(target)


@contextlib.contextmanager
def _silent_orbax() -> Iterator[None]:
  """Suppress orbax's long log of an error, which it raises as well."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


@functools.cache  # Once in a process.
def _silence_abandoned_writes() -> None:
  """Suppress what orbax's other writes print after one of them has failed.

  Orbax raises the first error and closes its event loop.  The other writes print a
  traceback each, at some time afterwards.
  """
  hook = sys.unraisablehook

  def hook_of_other_errors(unraisable: "sys.UnraisableHookArgs") -> None:
    # The write is C++: the error names no object.
    if unraisable.object or str(unraisable.exc_value) != "Event loop is closed":
      hook(unraisable)

  sys.unraisablehook = hook_of_other_errors
  of_orbax = (os.path.join("orbax", "checkpoint"), _TEMPORARY)  # Its code, its files.
  standard_logging.getLogger("asyncio").addFilter(
    lambda record: not any(name in record.getMessage() for name in of_orbax)
  )


def _reason(error: Exception) -> str:
  """An error in one line; for long errors of the storage, the system's message."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return os.strerror(int(code[1])) if code else " ".join(str(error).split())


def _robust_accuracy(metrics: Mapping[str, float]) -> float:
  return metrics["robust_accuracy"]
