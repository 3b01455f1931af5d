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
  with contextlib.redirect_stdout(DummyTqdmFile(sys.stdout)):
    yield from tqdm.tqdm(items, leave=False, dynamic_ncols=True)
