"""End a run between two steps upon a signal."""

import signal
import threading
import types
from typing import Any


class Interruption:
  """A context manager that tells whether SIGTERM, SIGINT or SIGHUP was received.

  Calling it returns whether one of them was received since the `with` block began, so
  that the program can end at a point of its choice.  A second SIGINT raises
  KeyboardInterrupt at once.  A signal that is ignored (for example SIGHUP under nohup)
  stays ignored.
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
