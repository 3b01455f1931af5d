"""Text and JSON files that are written whole or not at all."""

from collections.abc import Iterator, Mapping
import json
import os
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
  """The records of a JSON-lines file, none if it is missing, up to a broken line."""
  if not path.exists():
    return
  for line in path.read_text().splitlines():
    try:
      yield json.loads(line)
    except json.JSONDecodeError:
      return


def write_json(path: Path, content: Mapping[str, Any]) -> None:
  """Writes a JSON file whole or not at all."""
  write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
  """Writes a text file whole or not at all."""
  temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
  with temporary.open("w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)
