"""Log metrics to `metrics.jsonl` and TensorBoard."""

from collections.abc import Iterator, Mapping
import json
import math
import os
from pathlib import Path
from typing import Any

from ddi_jax.training.storage.files import read_lines, write_atomically
from ddi_jax.training.storage.tensorboard import EventFile

METRICS_FILE = "metrics.jsonl"


class MetricLog:
  """Append records to `metrics.jsonl` and TensorBoard event files.

  A resumed run first drops the records after the step from which it resumes, so that
  each step is logged once.

  Args:
    workdir: the run's folder.
    start: the step of the checkpoint from which the run resumes, None for a new run.
  """

  def __init__(self, workdir: Path, start: int | None):
    self._path = workdir / METRICS_FILE
    first = 0 if start is None else start + 1
    kept = [
      record
      for record in read_metrics(workdir)
      if record["step"] < first and record["split"] != "test"
    ]
    write_atomically(self._path, "".join(json.dumps(r) + "\n" for r in kept))
    self._file = self._path.open("a")
    self._board = EventFile(workdir / "tensorboard", purge_step=first)

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Log values of the split "train", "validation" or "test" after `step` steps."""
    numbers = {name: _number(value) for name, value in values.items()}
    line = json.dumps({"step": step, "split": split, **numbers})
    self._file.write(line + "\n")
    self._board.add_scalars(
      step, {f"{split}/{name}": float(value) for name, value in values.items()}
    )

  def flush(self) -> None:
    """Write buffered records to the disk; raise OSError if that fails."""
    self._file.flush()
    os.fsync(self._file.fileno())
    self._board.flush()

  def __enter__(self) -> "MetricLog":
    return self

  def __exit__(self, *exception: object) -> None:
    self._file.close()
    self._board.close()


class NoLog:
  """A `MetricLog` that writes nothing, for all processes but one."""

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Do nothing."""

  def flush(self) -> None:
    """Do nothing."""

  def __enter__(self) -> "NoLog":
    return self

  def __exit__(self, *exception: object) -> None:
    pass


def read_metrics(workdir: Path) -> Iterator[dict[str, Any]]:
  """The records of a run's `metrics.jsonl`, without a truncated last line."""
  yield from read_lines(workdir / METRICS_FILE)


def _number(value: float) -> float | None:
  # JSON has neither NaN nor infinity.
  return float(value) if math.isfinite(value) else None
