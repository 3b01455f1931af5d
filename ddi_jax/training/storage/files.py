"""Read text and JSON files, and write them atomically (whole or not at all)."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
  """The records of a JSON-lines file up to the first broken line.

  If the file is missing, there are none.
  """
  if not path.exists():
    return
  for line in path.read_text().splitlines():
    try:
      yield json.loads(line)
    except json.JSONDecodeError:
      return


def read_json(path: Path) -> dict[str, Any]:
  """Read the object in a JSON file.

  Raises:
    ValueError: if the file does not hold a JSON object; the message names the file.
  """
  try:
    content = json.loads(path.read_text())
  except (RecursionError, ValueError) as error:  # Nested too deeply; no UTF-8 or JSON.
    raise ValueError(f"{path} is not valid JSON ({error}).") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
  return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
  """Write a JSON file atomically."""
  write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
  """Write a text file atomically."""
  with replacing(path) as temporary:
    temporary.write_text(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """A temporary path for writing; its file replaces `path` if the block succeeds."""
  temporary = temporary_of(path)
  yield temporary
  with temporary.open("rb") as file:
    os.fsync(file.fileno())
  temporary.replace(path)


def temporary_of(path: Path) -> Path:
  """The temporary path of `replacing`.

  It has the same suffix as `path`, because some writers choose the format by it.
  """
  return path.with_name(f".{path.name}")
