"""Ending a run between two steps."""

import signal
import threading
import types
from typing import Any


class Interruption:
  """Whether SIGTERM, SIGINT or SIGHUP has come while the `with` block runs.

  The program asks by calling it and ends at a place of its choosing; a second SIGINT
  raises KeyboardInterrupt at once.  A signal that is ignored, SIGHUP under nohup for
  example, stays ignored.
  """

  def __init__(self) -> None:
    self._received = False
    self._previous: dict[int, Any] = {}

  def __call__(self) -> bool:
    return self._received

  def __enter__(self) -> "Interruption":
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
          self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exception: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number: int, frame: types.FrameType | None) -> None:
    if self._received and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._received = True
