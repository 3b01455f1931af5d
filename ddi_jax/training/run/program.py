"""The training program: data, experiment, loop, report."""

import contextlib
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
import ml_collections

from ddi_jax import data, models
from ddi_jax.training.devices import mesh as meshes
from ddi_jax.training.devices import processes
from ddi_jax.training.devices.compilation import compilation_cache_in
from ddi_jax.training.run import figures, report
from ddi_jax.training.run.experiment import (
  create_experiment,
  image_kind,
  load_data,
)
from ddi_jax.training.run.interruption import Interruption
from ddi_jax.training.run.loop import TrainingError, TrainingLoop
from ddi_jax.training.settings.check import check_against_data, check_config
from ddi_jax.training.settings.model import ImageKind, create_model, known_images
from ddi_jax.training.step.memory import check_memory
from ddi_jax.training.step.train_step import create_optimizer
from ddi_jax.training.storage import files
from ddi_jax.training.storage.checkpoints import (
  CheckpointError,
  good_steps,
  set_damaged_aside,
)
from ddi_jax.training.storage.workdir import absolute, claim_workdir


def train(
  config: ml_collections.ConfigDict, workdir: Path | str
) -> dict[str, Any] | None:
  """Train, evaluate and report; resume if the workdir holds the same config's run.

  SIGTERM, SIGINT and SIGHUP end the run after the step in progress, with a checkpoint.

  If several processes train together (`processes.initialize`), each calls this function
  inside `processes.leaving_at_once`, with the same arguments and a workdir on a shared
  file system.  The processes write the checkpoints together.  One of them writes all
  other files.

  Args:
    config: see `ddi_jax.training.default_config`.
    workdir: folder of the run, created if missing; may begin with "~".  It receives
      config.json, metrics.jsonl, summary.json, curves.png, checkpoints/, tensorboard/
      and compilation_cache/.  The last holds compiled programs, with which a resumed
      run starts at once.

  Returns:
    The content of summary.json; None if the run was interrupted.

  Raises:
    ConfigError: if a setting is impossible, unused or certain to need too much memory,
      or if the workdir holds another run or is in use.
    DataError: if the data are not available.
    TrainingError: if the loss or the parameters are no longer finite, the workdir
      cannot be written, or no checkpoint in it is good.
    OtherProcessError: if another of several processes failed or was lost.

  Example:
    >>> import tempfile
    >>> from pathlib import Path
    >>> from ddi_jax import training
    >>> config = training.select_variant(training.default_config(), "debug")
    >>> config.num_epochs = 0.5
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
    ...   summary = training.train(config, Path(folder) / "run")
    danskin on digits: 128 training images...
    >>> summary["steps"]
    2
  """
  workdir = absolute(workdir)
  check_config(config)
  mesh = meshes.create_mesh(config)
  known = known_images(config)
  if known is not None:  # Refuse absurd sizes before reading the data.
    _check_memory(config, known, num_images=config.batch_size)
  with processes.connection_errors():
    splits = processes.together(lambda: load_data(config))
  check_against_data(config, splits.train)
  _check_memory(config, image_kind(splits), len(splits.train))
  claim: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
  if processes.is_writer():
    claim = claim_workdir(workdir, config)
  try:
    with processes.connection_errors(), contextlib.ExitStack() as stack:
      processes.together(lambda: stack.enter_context(claim))
      return _train_in(workdir, config, splits, mesh)
  except CheckpointError as error:
    raise TrainingError(f"{error}{_what_is_left(workdir)}") from error
  except OSError as error:
    raise TrainingError(
      f"{workdir} cannot be written or read ({error}).{_what_is_left(workdir)}"
    ) from error


def _train_in(
  workdir: Path,
  config: ml_collections.ConfigDict,
  splits: data.Splits,
  mesh: Mesh | None,
) -> dict[str, Any] | None:
  writer = processes.is_writer()
  summary_path = workdir / report.SUMMARY_FILE
  if processes.any_process(writer and summary_path.exists()):
    if writer:
      print(f"The run in {workdir} is complete; nothing to do.\n")
    summary = _read_summary(summary_path)
  else:
    _set_damaged_aside(workdir)
    result = _train_to_the_end(workdir, config, splits, mesh)
    if result is None:
      if writer:
        print(f"Interrupted and saved in {workdir}; the same command resumes.")
      return None
    summary = result
    if writer:
      title = f"{config.method} on {config.data.name}, seed {config.seed}"
      figures.save_curves(workdir, f"{title}; robust: {summary['attack']}")
      files.write_json(summary_path, summary)
  if writer:
    print(report.format_report(workdir, summary))
  return summary


def _train_to_the_end(
  workdir: Path,
  config: ml_collections.ConfigDict,
  splits: data.Splits,
  mesh: Mesh | None,
) -> dict[str, Any] | None:
  with compilation_cache_in(workdir), Interruption() as interruption:
    experiment = create_experiment(config, splits, mesh)
    interrupted = processes.agreed(interruption)
    return TrainingLoop(experiment, config, workdir, interrupted).run()


def _read_summary(path: Path) -> dict[str, Any]:
  try:
    return files.read_json(path)
  except ValueError as error:
    raise TrainingError(f"{error}  Delete it to make it again.") from error


def _set_damaged_aside(workdir: Path) -> None:
  writer = processes.is_writer()
  messages = processes.together(lambda: set_damaged_aside(workdir) if writer else [])
  for message in messages:
    print(message)


def _check_memory(
  config: ml_collections.ConfigDict, images: ImageKind, num_images: int
) -> None:
  _, params, _ = models.functional(create_model(config, images, abstract=True))
  check_memory(config, images.image_shape, num_images, params, opt_state=())
  # For parameters of an absurd size, even the shapes of the state cannot be computed.
  opt_state = jax.eval_shape(create_optimizer(config).init, params)
  check_memory(config, images.image_shape, num_images, params, opt_state)


def _what_is_left(workdir: Path) -> str:
  steps = good_steps(workdir)
  if not steps:
    return ""
  return (
    f"  The checkpoint of step {steps[-1]} is good: once the cause is fixed, the "
    "same command resumes there."
  )
