"""The progress of a benchmark."""

from collections.abc import Iterator, Sequence
import contextlib
import sys
from typing import TypeVar

import tqdm
from tqdm.contrib import DummyTqdmFile

Item = TypeVar("Item")


def progress(items: Sequence[Item]) -> Iterator[Item]:
  """The items in turn; on a terminal, with a bar that shows the time left.

  Lines that are printed meanwhile stay above the bar.
  """
  if not sys.stderr.isatty():
    yield from items
    return
  # tqdm clears the bar only for lines that go where the bar is.
  output = sys.stderr if sys.stdout.isatty() else sys.stdout
  with contextlib.redirect_stdout(DummyTqdmFile(output)):
    yield from tqdm.tqdm(items, leave=False, dynamic_ncols=True)
