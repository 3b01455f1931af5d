"""The folder of a run, which belongs to one config."""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import json
import os
from pathlib import Path
import re
import socket
from typing import Any

import ml_collections

from ddi_jax.records import differences
from ddi_jax.training.settings.pieces import ConfigError
from ddi_jax.training.storage.files import read_json, temporary_of, write_json

CONFIG_FILE = "config.json"
_LOCK_FILE = "lock"
# Settings that do not change the run's result: where the data are on this machine, and
# how they are read.  Devices change it only by rounding, so that a run may be resumed
# on other devices.
_LOCAL_FIELDS = (
  "data.data_dir",
  "data.streaming",
  "mesh.restart",
  "mesh.data",
  "mesh.fsdp",
)


def absolute(workdir: Path | str) -> Path:
  """The absolute path of a folder, with "~" expanded to the home folder.

  It stays valid if the program changes its current folder.

  Raises:
    ConfigError: if the path begins with ~NAME and there is no such user, or has a name
      that checkpoints cannot have.
  """
  try:
    path = Path(workdir).expanduser().absolute()
  except RuntimeError as error:
    raise ConfigError(
      f"workdir must begin with ~ or the ~NAME of a user, or be another path; got "
      f"{str(workdir)!r}: {error}"
    ) from error
  is_utf8 = not re.search("[\ud800-\udfff]", str(path))
  if "\\" in str(path) or not is_utf8:
    raise ConfigError(
      "workdir must be a path in UTF-8 without backslashes, which the checkpoints' "
      f"library takes for slashes; got {str(path)!r}."
    )
  return path


def default_workdir(config: ml_collections.ConfigDict, name: str) -> Path:
  """The path `runs/NAME-METHOD-seedS-HASH`, which is unique to a config."""
  digest = hashlib.sha256(json.dumps(_fields(config), sort_keys=True).encode())
  return Path("runs") / (
    f"{name}-{_plain(config.method)}-seed{config.seed}-{digest.hexdigest()[:8]}"
  )


def _plain(name: str) -> str:
  """The name of a piece as it appears in a file name."""
  return name.replace(":", ".")


@contextlib.contextmanager
def claim_workdir(workdir: Path, config: ml_collections.ConfigDict) -> Iterator[None]:
  """Create a run's folder, or check that it holds the same config's run; lock it.

  The folder is locked for the duration of the `with` block.  The kernel holds the lock
  (flock on `workdir/lock`), so it ends with the process, however that ends.

  Raises:
    ConfigError: if the folder holds another config's run or other files, or another
      process has locked it.
    OSError: if the folder cannot be written.
  """
  _check_not_foreign(workdir)
  path = workdir / CONFIG_FILE
  if path.exists():  # Refuse another config's folder before changing anything in it.
    _check_same_config(path, config)
  workdir.mkdir(parents=True, exist_ok=True)
  with locked(workdir):
    if path.exists():
      _check_same_config(path, config)
    else:
      write_json(path, json.loads(config.to_json_best_effort()))
    yield


def _check_not_foreign(workdir: Path) -> None:
  if not workdir.exists() or (workdir / CONFIG_FILE).exists():
    return
  # A run may have been killed before its config was written.
  ours = {_LOCK_FILE, temporary_of(Path(CONFIG_FILE)).name}
  if not workdir.is_dir() or {path.name for path in workdir.iterdir()} - ours:
    raise ConfigError(
      f"workdir {workdir} exists and holds something other than a run of this "
      "program: choose another --workdir."
    )


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Lock a folder for the duration of the `with` block.

  Raises:
    ConfigError: if another process has locked it.
  """
  with (workdir / _LOCK_FILE).open("a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      raise ConfigError(
        f"workdir {workdir} is in use by another run ({file.read().strip()}): wait for "
        "its end, or choose another --workdir."
      ) from error
    except OSError as error:
      print(f"Cannot lock {workdir} ({error.strerror}): run nothing else in it.")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    yield


def _check_same_config(path: Path, config: ml_collections.ConfigDict) -> None:
  try:
    stored = read_json(path)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  differing = "; ".join(differences(_fields(config), _fields_of(stored), "config."))
  if differing:
    raise ConfigError(
      f"workdir {path.parent} holds a run with another config ({differing}): choose "
      "another --workdir, or the same config to resume."
    )


def find_run(workdir: Path, config: ml_collections.ConfigDict) -> None:
  """Check that a folder holds a run of the config, without changing anything.

  Raises:
    ConfigError: if the folder holds no run, or another config's run.
  """
  if not (workdir / CONFIG_FILE).exists():
    raise ConfigError(
      f"{workdir} holds no run: train it first, by the same command without "
      "--evaluate, or give the --workdir of a run."
    )
  _check_same_config(workdir / CONFIG_FILE, config)


def _fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  return _fields_of(json.loads(config.to_json_best_effort()))


def _fields_of(tree: dict[str, Any]) -> dict[str, Any]:
  fields = _flatten(tree)
  return {name: value for name, value in fields.items() if name not in _LOCAL_FIELDS}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat.update(_flatten(value, f"{prefix}{name}."))
    else:
      flat[prefix + name] = value
  return flat
