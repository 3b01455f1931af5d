"""Describe what is wrong with a config file, in one or two sentences."""

import difflib
from pathlib import Path
import textwrap
import traceback

from ddi_jax.training.settings.pieces import ConfigError


def check_exists(given: str | None, examples: Path) -> None:
  """Check that a config file exists.

  Args:
    given: FILE or FILE:VARIANT; None if the user gave none.
    examples: a folder of config files, which are listed if there are none in the folder
      of `given`.

  Raises:
    ConfigError: if the file does not exist; the message lists those that do.
  """
  path, got = Path(), "none"
  if given is not None:
    path = Path(_file_of(given))
    if path.is_file():
      return
    kind = "a folder" if path.is_dir() else "a file that does not exist"
    got = f"{given!r}, which is {kind}"
  known = _configs_in(path) or _configs_in(path.parent) or _configs_in(examples)
  like = difflib.get_close_matches(path.stem, [config.stem for config in known], 1)
  example = next((config for config in known if config.stem in like), known[0])
  raise ConfigError(
    f"--config must be a config file, FILE.py or FILE.py:VARIANT; got {got}.  There "
    f"are {', '.join(map(str, known))}: write --config={example}, for example."
  )


def describe_fault(given: str, error: BaseException) -> str:
  """Describe the error that a config file raised, and its line, or what it lacks.

  Args:
    given: FILE or FILE:VARIANT.
    error: the error raised while the file was executed.
  """
  path = _file_of(given)
  link: BaseException | None = error
  while link is not None:  # Go from the error of ml_collections to its cause.
    lines = [
      line
      for frame, line in traceback.walk_tb(link.__traceback__)
      if frame.f_code.co_filename == path
    ]
    reason = str(link)
    if isinstance(link, SyntaxError) and link.filename == path:
      lines, reason = [link.lineno or 0], link.msg
    if lines and isinstance(link, ConfigError):
      return f"{path}: {link}"
    if lines:
      kind = type(link).__name__
      return (
        f"{path} cannot be used: line {lines[-1]} raises {kind} ({_short(reason)})."
      )
    link = link.__context__
  return (
    f"{path} is no config file ({_last_line(error)}): it must define "
    "get_config(variant), which returns a changed training.default_config()."
  )


def _file_of(given: str) -> str:
  return given.split(":", maxsplit=1)[0]


def _configs_in(folder: Path) -> list[Path]:
  return [
    path
    for path in sorted(folder.glob("*.py"))
    if "\ndef get_config(" in path.read_text(errors="ignore")
  ]


def _short(reason: str) -> str:
  """Shorten ml_collections' message, which lists all fields before its suggestion."""
  lines = reason.replace("\\n", "\n").splitlines()
  return " ".join(textwrap.shorten(line, 100) for line in lines)


def _last_line(error: BaseException) -> str:
  return str(error).strip().splitlines()[-1].strip()
