"""The results of an unfinished evaluation, written to disk after every batch."""

import json
import os
from pathlib import Path
import time
from typing import Any

import numpy as np

from ddi_jax.attacks import AutoAttackResult, Progress
from ddi_jax.attacks.stages import not_attacked
from ddi_jax.records import differences
from ddi_jax.training.settings.pieces import ConfigError
from ddi_jax.training.storage import files

JOURNAL_FILE = "journal.jsonl"
POINTS_FILE = "points.npy"


class Journal:
  """The files `journal.jsonl` and `points.npy` of an evaluation.

  The first has a line for every batch, the second holds the adversarial points.  The
  process may be killed at any moment.  A batch that is not yet in both files is then
  computed again.

  Args:
    folder: the evaluation's folder, which this process has locked.
    subject: a description of what is evaluated.
    inputs: float32 `[N, ...]`.  A result on fewer inputs is on the first of them.

  Attributes:
    results: the results by the names of their attacks, including those of earlier
      processes.
    seconds: time that the evaluation has taken, over all processes.

  Raises:
    ConfigError: if the folder holds the journal of another subject.
  """

  def __init__(self, folder: Path, subject: dict[str, Any], inputs: np.ndarray):
    path = folder / JOURNAL_FILE
    self.results: dict[tuple[str, ...], AutoAttackResult] = {}
    self.seconds = 0.0
    self._seen: set[tuple[str, ...]] = set()
    first, *records = list(files.read_lines(path)) or [{"subject": subject}]
    differing = differences(subject, first["subject"])
    if differing:
      raise ConfigError(
        f"{folder} holds another evaluation ({'; '.join(differing)}): "
        "--evaluate_restart discards it."
      )
    # The file is as large as the inputs, but only rows that are written take space.
    self._points = np.lib.format.open_memmap(
      folder / POINTS_FILE, "r+" if records else "w+", np.float32, inputs.shape
    )
    for record in records:
      self._replay(record, inputs)
    # Rewrite the file without a line that was cut short.
    lines = [json.dumps(record) + "\n" for record in (first, *records)]
    files.write_atomically(path, "".join(lines))
    self._file = path.open("a")
    self._began = time.monotonic() - self.seconds

  def write(self, progress: Progress) -> None:
    """Add the results of a batch."""
    result, indices = progress.result, progress.indices
    attacks = result.attacks
    stage = attacks.index(progress.attack)
    broken = indices[result.broken_by[indices] == stage]
    if result.adversarial is not None:
      self._points[broken] = result.adversarial[broken]
      self._points.flush()
    self.seconds = time.monotonic() - self._began
    record = {
      "attacks": attacks,
      "attack": progress.attack,
      "indices": indices.tolist(),
      "broken": broken.tolist(),
      "seconds": self.seconds,
    }
    if attacks not in self._seen:
      self._seen.add(attacks)
      record["examples"] = len(result.faced)
      record["misclassified"] = np.flatnonzero(~result.clean_correct).tolist()
      record["points"] = result.adversarial is not None
      record["origin"] = result.origin
    self._file.write(json.dumps(record) + "\n")
    self._file.flush()
    os.fsync(self._file.fileno())
    self.results[attacks] = result

  def close(self) -> None:
    """Close the journal after the last batch."""
    self._file.close()

  def _replay(self, record: dict[str, Any], inputs: np.ndarray) -> None:
    attacks = tuple(record["attacks"])
    if attacks not in self._seen:
      self._seen.add(attacks)
      correct = np.ones(record["examples"], bool)
      correct[record["misclassified"]] = False
      points = inputs if record["points"] else None
      # Journals of earlier versions have no origin.
      origin = record.get("origin")
      self.results[attacks] = not_attacked(attacks, correct, points, origin)
    result = self.results[attacks]
    stage = attacks.index(record["attack"])
    result.faced[record["indices"]] = stage + 1
    broken = record["broken"]
    result.broken_by[broken] = stage
    if result.adversarial is not None:
      result.adversarial[broken] = self._points[broken]
    self.seconds = record["seconds"]
