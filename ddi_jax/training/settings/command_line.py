"""Command-line flags of a program with a config file, and short error messages."""

from collections.abc import Callable, Sequence
import difflib
import itertools
import os
from pathlib import Path
import re
import sys
from typing import Any, NoReturn

from absl import flags
import ml_collections
from ml_collections import config_flags

from ddi_jax.training.settings import config_file
from ddi_jax.training.settings.pieces import ConfigError

# A flag that is defined here is listed in the `--help` of the program that asks for it.
flags.disclaim_key_flags()


def define_config_flag(
  program: str, description: str
) -> flags.FlagHolder[ml_collections.ConfigDict]:
  """Define the flag `--config`.

  absl already reads the files of `--flagfile` at this point.

  Args:
    program: the program's name, with which messages begin.
    description: help text of the flag.
  """
  try:
    return config_flags.DEFINE_config_file("config", help_string=description)
  except (flags.Error, UnicodeDecodeError) as error:
    print(
      f"{program}: --flagfile must be a text file with a flag on each line "
      f"({str(error).removeprefix('ERROR:: ')}).",
      file=sys.stderr,
    )
    sys.exit(2)


def parse_flags(
  argv: list[str],
  program: str,
  examples: Path,
  settings_of: Callable[[str], ml_collections.ConfigDict],
) -> list[str]:
  """Parse the flags; if one is wrong, end the program with a short message.

  Args:
    argv: the program's name and its arguments.
    program: the program's name, with which messages begin.
    examples: a folder of config files, which are listed if no config is given.
    settings_of: FILE or FILE:VARIANT -> a config with all existing settings.

  Returns:
    The arguments that are not flags, preceded by the program's name.
  """

  def leave(message: str) -> NoReturn:
    sys.exit(f"{program}: {message}")

  examples = Path(os.path.relpath(examples))
  given = None
  try:
    expanded = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
    given = _config_argument(expanded)
    if given is not None:
      config_file.check_exists(given, examples)
      found = (re.match(r"--?(?:no)?config\.([^=]*)", text) for text in expanded[1:])
      if names := [setting[1] for setting in found if setting]:
        settings = settings_of(given)
        for name in names:
          _check_setting(name, settings)
    rest = flags.FLAGS(argv)
    config_file.check_exists(given, examples)
    flags.FLAGS.config.items()  # Fails if the file could not be loaded.
    return rest
  except ConfigError as error:
    leave(str(error))
  except Exception as error:  # A config file is Python and can raise anything.
    of_flags = isinstance(error, flags.Error | KeyError)
    if given is None or (of_flags and "whilst parsing config file" not in str(error)):
      leave(str(error).strip().splitlines()[-1].strip())
    leave(config_file.describe_fault(given, error))


def _config_argument(argv: Sequence[str]) -> str | None:
  """The value of --config, None if the flag is missing."""
  for argument, following in itertools.pairwise([*argv, None]):
    if match := re.fullmatch(r"--?config(=(.*))?", str(argument), re.DOTALL):
      return following if match[1] is None else match[2]
  return None


def _check_setting(name: str, settings: ml_collections.ConfigDict) -> None:
  section: Any = settings
  path = "config"
  for part in name.split("."):
    known = sorted(section) if isinstance(section, ml_collections.ConfigDict) else []
    if part not in known:
      has = f"it has {', '.join(known)}" if known else "it has no fields"
      if path.endswith("_settings"):
        has = f"set what your own piece takes in the config file: {path}.{part} = ..."
      like = difflib.get_close_matches(part, known, 1)
      hint = f"  Did you mean --{path}.{like[0]}?" if like else ""
      raise ConfigError(f"{path} has no {part!r}; {has}.{hint}")
    section, path = section.get(part), f"{path}.{part}"
