"""Text and JSON files that are written whole or not at all."""

from collections.abc import Iterator, Mapping
import contextlib
import json
import os
from pathlib import Path
from typing import Any


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
  """The records of a JSON-lines file, none if it is missing, up to a broken line."""
  if not path.exists():
    return
  for line in path.read_text().splitlines():
    try:
      yield json.loads(line)
    except json.JSONDecodeError:
      return


def read_json(path: Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    ValueError: if it holds none, naming the file.
  """
  try:
    content = json.loads(path.read_text())
  except (RecursionError, ValueError) as error:  # Nested deeply; not UTF-8, not JSON.
    raise ValueError(f"{path} is not valid JSON ({error}).") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}.")
  return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
  """Writes a JSON file whole or not at all."""
  write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
  """Writes a text file whole or not at all."""
  with replacing(path) as temporary:
    temporary.write_text(text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """A file beside `path` to be written, which takes its place if nothing fails."""
  temporary = temporary_of(path)
  yield temporary
  with temporary.open("rb") as file:
    os.fsync(file.fileno())
  temporary.replace(path)


def temporary_of(path: Path) -> Path:
  """What `replacing` writes; of the same suffix, from which a format may be told."""
  return path.with_name(f".{path.name}")
