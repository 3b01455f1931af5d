"""Metrics to `metrics.jsonl` and TensorBoard, results to JSON files."""

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
  """Appends records to `metrics.jsonl` and TensorBoard event files.

  A resumed run first drops the records after the step it starts from, so that each
  step is logged once.

  Args:
    workdir: of the run.
    start: the step of the checkpoint that is resumed, None if there was none.
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
    """Logs values of "train", "validation" or "test" after `step` steps."""
    numbers = {name: _number(value) for name, value in values.items()}
    line = json.dumps({"step": step, "split": split, **numbers})
    self._file.write(line + "\n")
    self._board.add_scalars(
      step, {f"{split}/{name}": float(value) for name, value in values.items()}
    )

  def flush(self) -> None:
    """Writes what is buffered to the disk; OSError if it cannot."""
    self._file.flush()
    os.fsync(self._file.fileno())
    self._board.flush()

  def __enter__(self) -> "MetricLog":
    return self

  def __exit__(self, *exception: object) -> None:
    self._file.close()
    self._board.close()


class NoLog:
  """In place of a `MetricLog` where another process writes it."""

  def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
    """Does nothing."""

  def flush(self) -> None:
    """Does nothing."""

  def __enter__(self) -> "NoLog":
    return self

  def __exit__(self, *exception: object) -> None:
    pass


def read_metrics(workdir: Path) -> Iterator[dict[str, Any]]:
  """The records of a run's `metrics.jsonl`; a last line cut short is left out."""
  yield from read_lines(workdir / METRICS_FILE)


def _number(value: float) -> float | None:
  # JSON has neither NaN nor infinity.
  return float(value) if math.isfinite(value) else None
