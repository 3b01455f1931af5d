"""Train and evaluate a network from flags; `ddi_jax.training` does the work.

python launch.py --config=configs/digits.py
python launch.py --config=configs/digits.py:debug --workdir=/tmp/try
python launch.py --config=configs/mnist.py --config.method=pgd --config.seed=1
python launch.py --config=configs/digits.py --evaluate=autoattack
python launch.py --config=configs/cifar10.py --config.mesh.data=8
srun python launch.py --config=configs/cifar10.py --config.mesh.data=64 --distributed
"""

import os
from pathlib import Path
import signal
import sys
from typing import Any, NoReturn


def _leave(*_: Any) -> None:
  print("\nlaunch.py: stopped before anything was begun.", file=sys.stderr, flush=True)
  os._exit(128 + signal.SIGINT)


# This handler is for the imports, in which a KeyboardInterrupt can abort in C++ or be
# lost.  If SIGINT is ignored, as in the background of a script, it stays ignored.
_STOPS = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if __name__ == "__main__" and _STOPS:
  signal.signal(signal.SIGINT, _leave)

try:  # Imported first, because it says which extra is not installed.
  from ddi_jax import training  # isort: skip
  from absl import app, flags, logging
  import ml_collections
  from ml_collections import config_flags

  from ddi_jax.data import DataError
  from ddi_jax.training.devices import processes
  from ddi_jax.training.run.restore import CHECKPOINTS
  from ddi_jax.training.settings import command_line
  from ddi_jax.training.settings.check import CHOICES
  from ddi_jax.training.storage.workdir import default_workdir
except ImportError as error:
  sys.exit(f"launch.py: {error}")

_CONFIG = command_line.define_config_flag(
  "launch.py", "An experiment, configs/NAME.py or configs/NAME.py:debug."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder; by default one in runs/, named after the config."
)
_EVALUATE = flags.DEFINE_string(
  "evaluate",
  None,
  "Evaluate the workdir's run instead of training: autoattack, autoattack-plus, or "
  "names of attacks separated by commas.",
)
_CHECKPOINT = flags.DEFINE_enum(
  "evaluate_checkpoint", "best", CHECKPOINTS, "The checkpoint to evaluate."
)
_LIMIT = flags.DEFINE_integer(
  "evaluate_limit", None, "Maximum number of test images.", lower_bound=1
)
_EPSILONS = flags.DEFINE_list(
  "evaluate_epsilons",
  None,
  "Increasing radii of the curve of robust accuracy; empty for no curve; by default "
  "from 0 to twice the config's radius.",
)
_NORM = flags.DEFINE_string(
  "evaluate_norm", None, "The norm to use, for a run that is evaluated in several."
)
_SAVE = flags.DEFINE_bool("evaluate_save", False, "Save the adversarial examples.")
_RESTART = flags.DEFINE_bool(
  "evaluate_restart", False, "Discard the results of an earlier evaluation."
)
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "Train with several processes, given by the environment (SLURM, Open MPI, "
  "Kubernetes, Cloud TPU) or by --coordinator, --num_processes and --process_id; "
  "config.mesh is over the devices of all processes.",
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
_STOPPED = (
  "\nlaunch.py: stopped at once; the same command resumes from the last checkpoint, if "
  "there is one."
)
_INTERRUPTED = 128 + signal.SIGTERM  # Exit status, upon which a job runner restarts it.


def main(argv: list[str]) -> None:
  """Train or evaluate as the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.ERROR)  # orbax would log a page per checkpoint.
  config = _config_of_flags()
  name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
  workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(config, name)
  with processes.leaving_at_once():
    _run(config, workdir)


def _config_of_flags() -> ml_collections.ConfigDict:
  """The config, without settings that belong to pieces replaced by flags.

  Such settings are reset to their defaults.
  """
  overrides = set(config_flags.get_override_values(flags.FLAGS["config"]))
  if not overrides & set(CHOICES):
    return _CONFIG.value
  try:
    return training.drop_unused(_CONFIG.value, keep=overrides)
  except training.ConfigError as error:
    return sys.exit(f"launch.py: {error}")


def _run(config: ml_collections.ConfigDict, workdir: Path) -> None:
  try:
    _join_processes()
    if _EVALUATE.value is None:
      _refuse_evaluate_flags()
      result = training.train(config, workdir)
    else:
      result = training.audit_run(config, workdir, _audit_settings(_EVALUATE.value))
  except (
    training.CheckpointError,
    training.ConfigError,
    training.OtherProcessError,
    training.TrainingError,
    DataError,
  ) as error:
    sys.exit(f"launch.py: {error}")
  except KeyboardInterrupt:
    _stop()
  if result is None:
    sys.exit(_INTERRUPTED)


def _stop() -> NoReturn:
  print(_STOPPED, file=sys.stderr)
  sys.exit(128 + signal.SIGINT)


def _refuse_evaluate_flags() -> None:
  for flag in (_CHECKPOINT, _LIMIT, _EPSILONS, _NORM, _SAVE, _RESTART):
    if flag.present:
      raise training.ConfigError(f"--{flag.name} needs --evaluate.")


def _audit_settings(attacks: str) -> training.AuditSettings:
  epsilons = None
  if _EPSILONS.value is not None:
    try:
      epsilons = tuple(float(text) for text in _EPSILONS.value if text)
    except ValueError as error:
      raise training.ConfigError(
        f"--evaluate_epsilons must be numbers separated by commas: {error}."
      ) from error
  return training.AuditSettings(
    attacks=attacks,
    checkpoint=_CHECKPOINT.value,
    limit=_LIMIT.value,
    epsilons=epsilons,
    norm=_NORM.value,
    save=_SAVE.value,
    restart=_RESTART.value,
  )


def _join_processes() -> None:
  if _DISTRIBUTED.value:
    if _EVALUATE.value is not None:
      raise training.ConfigError(
        "--evaluate runs in one process: leave out --distributed."
      )
    processes.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    return
  for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID):
    if flag.present:
      raise training.ConfigError(f"--{flag.name} needs --distributed.")


def _parse_flags(argv: list[str]) -> list[str]:
  configs = Path(__file__).parent / "configs"
  return command_line.parse_flags(
    argv, "launch.py", configs, lambda _: training.default_config()
  )


if __name__ == "__main__":
  sys.path.insert(0, "")  # Find your own pieces in the current folder.
  if _STOPS:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    app.run(main, flags_parser=_parse_flags)
  except KeyboardInterrupt:  # Raised before the run, for example in the config file.
    _stop()
