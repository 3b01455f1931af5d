"""Write scalars to TensorBoard event files.

tensorboardX's `SummaryWriter` writes in a thread.  If the disk is full, this thread
dies silently, and the program then waits for it forever.  This module therefore uses
only tensorboardX's record format.
"""

from collections.abc import Mapping
from pathlib import Path
import time
from typing import Any

from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import RecordWriter

_FILE_VERSION = "brain.Event:2"


class EventFile:
  """A new event file in a folder, which is created if missing.

  Args:
    folder: the folder of a run's event files.
    purge_step: TensorBoard is told to ignore records in earlier files from this step
      on.
  """

  def __init__(self, folder: Path, purge_step: int):
    folder.mkdir(exist_ok=True)
    self._file = RecordWriter(str(folder / f"events.out.tfevents.{time.time_ns()}"))
    self._write(file_version=_FILE_VERSION)
    started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(step=purge_step, session_log=started)

  def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Write one record with all values of a step."""
    scalars = [
      summary_pb2.Summary.Value(tag=name, simple_value=value)
      for name, value in values.items()
    ]
    self._write(step=step, summary=summary_pb2.Summary(value=scalars))

  def flush(self) -> None:
    """Write buffered records; raise OSError if that fails."""
    self._file.flush()

  def close(self) -> None:
    """Write buffered records and close the file; raise OSError if that fails."""
    self._file.close()

  def _write(self, **content: Any) -> None:
    event = event_pb2.Event(wall_time=time.time(), **content)
    self._file.write(event.SerializeToString())
