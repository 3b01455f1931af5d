"""What the benchmarks share."""

import fcntl
import os
from pathlib import Path
import pty
import struct
import subprocess
import sys
import termios

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPT = """
import time
from progress import progress
for index in progress(range(3)):
  print(f"| row {index}", end="")
  print(" |", flush=True)
  time.sleep(0.15)
"""
ROWS = ["| row 0 |", "| row 1 |", "| row 2 |"]


def test_progress_is_quiet_in_pipes():
  result = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    capture_output=True,
    text=True,
    check=True,
    cwd=FOLDER,
  )
  assert result.stdout.splitlines() == ROWS
  assert not result.stderr


@pytest.mark.parametrize("to_a_file", [False, True])
def test_rows_stay_whole_beside_the_progress_bar(tmp_path, to_a_file):
  mine, terminal = pty.openpty()
  fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
  with (tmp_path / "table.md").open("w") as file:
    output = file if to_a_file else terminal
    subprocess.run(
      [sys.executable, "-c", SCRIPT],
      stdout=output,
      stderr=terminal,
      check=True,
      cwd=FOLDER,
    )
  os.close(terminal)
  shown = os.read(mine, 100_000).decode()
  os.close(mine)
  assert "1/3" in shown  # The bar.
  if to_a_file:
    assert (tmp_path / "table.md").read_text().splitlines() == ROWS
  else:
    # What is left of a line after the last return to its beginning.
    lines = [
      line.rsplit("\r", 1)[-1] for line in shown.replace("\r\n", "\n").split("\n")
    ]
    assert lines[:3] == ROWS
