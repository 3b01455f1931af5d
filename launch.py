"""Trains and evaluates a network: flags only, the work is in `ddi_jax.training`.

python launch.py --config=configs/digits.py
python launch.py --config=configs/digits.py:debug --workdir=/tmp/try
python launch.py --config=configs/mnist.py --config.method=pgd --config.seed=1
"""

from pathlib import Path
import sys
from typing import Any

from absl import app, flags, logging
import ml_collections
from ml_collections import config_flags

from ddi_jax import training
from ddi_jax.data import DataError
from ddi_jax.training.workdir import default_workdir

_CONFIG = config_flags.DEFINE_config_file(
  "config", help_string="An experiment, configs/NAME.py or configs/NAME.py:debug."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder; by default made from the config, under runs/."
)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
  """Trains as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.ERROR)  # Not a page of orbax per checkpoint.
  config = _CONFIG.value
  name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(config, name)
  try:
    training.train(config, workdir)
  except (training.ConfigError, training.TrainingError, DataError) as error:
    sys.exit(f"launch.py: {error}")


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses the flags; what is wrong with them is said in one line."""
  for argument in argv[1:]:
    if argument.startswith("--config."):
      _check_field(argument.removeprefix("--config.").split("=")[0])
  try:
    rest = flags.FLAGS(argv)
    assert _CONFIG.value  # Loads the file.
    return rest
  except (flags.Error, AttributeError, KeyError, OSError, TypeError) as error:
    return sys.exit(f"launch.py: {str(error).strip().splitlines()[-1].strip()}")


def _check_field(field: str) -> None:
  section: Any = training.default_config()
  path = "config"
  for name in field.split("."):
    known = sorted(section) if isinstance(section, ml_collections.ConfigDict) else []
    if name not in known:
      sys.exit(f"launch.py: {path} has no {name!r}; it has {', '.join(known)}.")
    section, path = section.get(name), f"{path}.{name}"


if __name__ == "__main__":
  app.run(main, flags_parser=_parse_flags)
