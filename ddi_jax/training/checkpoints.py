"""Checkpoints: the latest, and the best by validation robust accuracy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ddi_jax.training.evaluation import Evaluation
from ddi_jax.training.step import TrainState


class Checkpoints:
  """Orbax checkpoints under `workdir/checkpoints`, one folder per step.

  Kept are the two latest and the best by validation robust accuracy (of equals, the
  latest).  Each is written whole or not at all.
  """

  def __init__(self, workdir: Path):
    self.directory = (workdir / "checkpoints").absolute()
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
    )
    self._manager = ocp.CheckpointManager(self.directory, options=options)

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
    validation: Evaluation | None,
  ) -> None:
    """Saves a state, a small JSON record, and its validation result if evaluated.

    Only states with a validation result compete for the best.  One that was saved
    without (the run was interrupted before its evaluation) is replaced by one with.
    """
    step = int(state.step)
    if step == self.latest_step:
      if validation is None:
        return
      self._manager.delete(step)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(dict(progress))
      ),
      metrics=None if validation is None else validation._asdict(),
    )

  def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state and the JSON record of a step; `like` gives structure and shapes."""
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(
          jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        ),
        progress=ocp.args.JsonRestore(),
      ),
    )
    return restored["state"], restored["progress"]

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.close()


def _robust_accuracy(metrics: Mapping[str, float]) -> float:
  return metrics["robust_accuracy"]
