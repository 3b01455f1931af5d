"""The folder of a run: made for one config, and for no other."""

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_collections

from ddi_jax.training.config import ConfigError
from ddi_jax.training.logs import write_json

CONFIG_FILE = "config.json"
# Where the data lie on this machine does not change the run.
_LOCAL_FIELDS = ("data.data_dir",)


def default_workdir(config: ml_collections.ConfigDict, name: str) -> Path:
  """`runs/NAME-METHOD-seedS-HASH`: the same for the same config, and only for it."""
  digest = hashlib.sha256(json.dumps(_fields(config), sort_keys=True).encode())
  return Path("runs") / (
    f"{name}-{config.method}-seed{config.seed}-{digest.hexdigest()[:8]}"
  )


def claim_workdir(workdir: Path, config: ml_collections.ConfigDict) -> None:
  """Creates a run's folder, or checks that it holds a run of the same config.

  Raises:
    ConfigError: if it holds another config's run, or other files.
  """
  path = workdir / CONFIG_FILE
  if path.exists():
    try:
      stored = json.loads(path.read_text())
    except json.JSONDecodeError as error:
      raise ConfigError(f"{path} is not valid JSON ({error}).") from error
    differing = differences(_fields(config), _fields_of(stored), "config.")
    if differing:
      raise ConfigError(
        f"workdir {workdir} holds a run with another config ({differing}): "
        "choose another --workdir, or the same config to resume."
      )
    return
  if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
    raise ConfigError(
      f"workdir {workdir} exists and holds something other than a run of this "
      "program: choose another --workdir."
    )
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(path, json.loads(config.to_json_best_effort()))


def find_run(workdir: Path, config: ml_collections.ConfigDict) -> None:
  """Checks that a folder holds a run of the config; changes nothing.

  Raises:
    ConfigError: if there is none, or another config's.
  """
  if not (workdir / CONFIG_FILE).exists():
    raise ConfigError(
      f"{workdir} holds no run: train it first, by the same command without "
      "--evaluate, or give the --workdir of a run."
    )
  claim_workdir(workdir, config)


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str) -> str:
  """The fields that two descriptions do not share; empty if there is none."""
  return "; ".join(
    f"{prefix}{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
  )


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
