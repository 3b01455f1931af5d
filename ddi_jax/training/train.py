"""The training program: data, model, loop, evaluation, report."""

from collections.abc import Callable, Mapping
import contextlib
import functools
import json
import math
from pathlib import Path
import sys
import time
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections
import numpy as np
from tqdm import auto as tqdm

from ddi_jax import data, models
from ddi_jax.models.functional import Apply
from ddi_jax.training import distributed, figures, logs, report, warm
from ddi_jax.training import mesh as meshes
from ddi_jax.training.checkpoints import (
  CheckpointError,
  Checkpoints,
  good_steps,
  set_damaged_aside,
)
from ddi_jax.training.compilation import compilation_cache_in
from ddi_jax.training.config import (
  ConfigError,
  check_against_data,
  check_config,
  model_settings,
)
from ddi_jax.training.evaluation import EvaluateFn, create_evaluate, describe_attack
from ddi_jax.training.interruption import Interruption
from ddi_jax.training.memory import check_memory
from ddi_jax.training.sources import are_unequal
from ddi_jax.training.step import (
  StepFn,
  TrainState,
  create_optimizer,
  create_schedule,
  create_shared_step,
  create_train_state,
  state_shardings,
)
from ddi_jax.training.workdir import claim_workdir


class TrainingError(RuntimeError):
  """Training cannot go on; the message says why and what is left."""


class Experiment(NamedTuple):
  """What a config describes, ready to run.

  Attributes:
    splits: the data.
    total: number of steps.
    evaluate_every: number of steps between evaluations.
    mesh: of several devices, None for one.
    apply: the network, see `ddi_jax.models.functional`.
    initial_state: before the first step, without `moves`.
    start: () -> a copy of it that is complete; a step donates its input.
    train_step: see `ddi_jax.training.step`.
    evaluate: see `ddi_jax.training.evaluation`.
  """

  splits: data.Splits
  total: int
  evaluate_every: int
  mesh: Mesh | None
  apply: Apply
  initial_state: TrainState
  start: Callable[[], TrainState]
  train_step: StepFn
  evaluate: EvaluateFn


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any] | None:
  """Trains, evaluates and reports; resumes if the workdir holds the same config's run.

  SIGTERM and SIGINT end the run after the step in progress, with a checkpoint.  Where
  several processes train together (`distributed.initialize`), each calls this with the
  same arguments and a workdir that all of them see, inside
  `distributed.leaving_at_once`; one writes all but the checkpoints, which they write
  together.

  Args:
    config: see `ddi_jax.training.default_config`.
    workdir: made if missing; receives config.json, metrics.jsonl, summary.json,
      curves.png, checkpoints/, tensorboard/ and compilation_cache/, the compiled
      programs that make a resumed run start at once.

  Returns:
    The content of summary.json; None if the run was interrupted.

  Raises:
    ConfigError: if a setting is impossible, surely needs more memory than there is, or
      the workdir holds another run or is in use.
    DataError: if the data cannot be had.
    TrainingError: if the loss or the parameters are no longer finite, the workdir
      cannot be written, or no checkpoint in it is good.
    OtherProcessError: if another of several processes failed or is lost.
  """
  check_config(config)
  mesh = meshes.create_mesh(config)
  with distributed.connection_errors():
    splits = distributed.together(lambda: load_data(config))
  check_against_data(config, splits.train)
  _check_memory(config, splits)
  claim: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
  if distributed.is_writer():
    claim = claim_workdir(workdir, config)
  try:
    with distributed.connection_errors(), contextlib.ExitStack() as stack:
      distributed.together(lambda: stack.enter_context(claim))
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
  writer = distributed.is_writer()
  summary_path = workdir / report.SUMMARY_FILE
  if distributed.any_process(writer and summary_path.exists()):
    if writer:
      print(f"The run in {workdir} is complete; nothing to do.\n")
    summary = json.loads(summary_path.read_text())
  else:
    messages = distributed.together(
      lambda: set_damaged_aside(workdir) if writer else []
    )
    for message in messages:
      print(message)
    with compilation_cache_in(workdir), Interruption() as interruption:
      interrupted = distributed.agreed(interruption)
      experiment = create_experiment(config, splits, mesh)
      summary = _run(experiment, config, workdir, interrupted)
    if summary is None:
      if writer:
        print(f"Interrupted and saved in {workdir}; the same command resumes.")
      return None
    if writer:
      title = f"{config.method} on {config.data.name}, seed {config.seed}"
      figures.save_curves(workdir, f"{title}; robust: {summary['attack']}")
      logs.write_json(summary_path, summary)
  if writer:
    print(report.format_report(workdir, summary))
  return summary


def load_data(config: ml_collections.ConfigDict) -> data.Splits:
  """The data set of the config.

  Raises:
    ConfigError: if the set is too small for a setting.
    DataError: if it cannot be had.
  """
  try:
    return data.load(
      config.data.name,
      data_dir=config.data.data_dir,
      validation_size=config.data.validation_size,
      split_seed=config.data.split_seed,
      limit=config.data.limit,
      resolution=config.data.resolution,
      streaming=config.data.streaming,
    )
  except ValueError as error:
    raise ConfigError(f"config.{error}") from error


def create_model(
  config: ml_collections.ConfigDict, splits: data.Splits, *, abstract: bool = False
) -> nnx.Module:
  """The freshly initialised model of the config, for this data; or only its shapes."""
  return models.create_model(
    config.model.name,
    image_shape=splits.train.image_shape,
    num_classes=splits.num_classes,
    mean=splits.mean,
    std=splits.std,
    settings=model_settings(config),
    seed=config.seed,
    abstract=abstract,
  )


def _check_memory(config: ml_collections.ConfigDict, splits: data.Splits) -> None:
  _, params, _ = models.functional(create_model(config, splits, abstract=True))
  optimizer = create_optimizer(config, create_schedule(config, total=1))
  opt_state = jax.eval_shape(optimizer.init, params)
  check_memory(config, splits.train, params, opt_state)


def create_experiment(
  config: ml_collections.ConfigDict, splits: data.Splits, mesh: Mesh | None = None
) -> Experiment:
  """The parts of a checked config's run, on its data and, if there is one, its mesh."""
  steps_per_epoch = len(splits.train) // config.batch_size
  total = max(1, round(config.num_epochs * steps_per_epoch))
  model = create_model(config, splits)
  apply, params, model_state = models.functional(
    model, batch_axis=meshes.batch_axis(mesh)
  )
  optimizer = create_optimizer(config, create_schedule(config, total), mesh)
  state = create_train_state(params, model_state, optimizer)
  # Committed to its devices, as a restored state is: else XLA would compile for both.
  where: Any = jax.devices()[0]
  everywhere: Any = jax.sharding.SingleDeviceSharding(where)
  if mesh is not None:
    everywhere = meshes.replicated(mesh)
    where = state_shardings(state, mesh, config.mesh.fsdp)
    state = jax.tree.map(np.asarray, state)  # The same on all hosts.
  state = jax.device_put(state, where)

  @functools.partial(jax.jit, out_shardings=everywhere)
  def create_moves():
    return warm.create_moves(config, len(splits.train), splits.train.image_shape)

  def start():
    return jax.tree.map(jnp.copy, state)._replace(moves=create_moves())

  return Experiment(
    splits=splits,
    total=total,
    evaluate_every=max(1, round(config.evaluation.every_epochs * steps_per_epoch)),
    mesh=mesh,
    apply=apply,
    initial_state=state,
    start=start,
    train_step=create_shared_step(
      config,
      apply,
      total,
      steps_per_epoch=steps_per_epoch,
      max_value=splits.max_value,
      mesh=mesh,
    ),
    evaluate=create_evaluate(config, apply, splits.max_value, mesh),
  )


def _run(
  experiment: Experiment,
  config: ml_collections.ConfigDict,
  workdir: Path,
  interrupted: Callable[[], bool],
) -> dict[str, Any] | None:
  """Trains from the latest checkpoint to the end; the summary, None if interrupted."""
  splits, total, mesh = experiment.splits, experiment.total, experiment.mesh
  writer = distributed.is_writer()
  checkpoints = Checkpoints(workdir)
  state = experiment.start()
  progress = {"seconds": 0.0, "evaluated": -1}
  resumed = checkpoints.latest_step
  if resumed is not None:
    state, progress = checkpoints.restore(resumed, state)
  start = int(state.step)
  began = time.monotonic() - progress["seconds"]
  num_params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  if writer and config.method == "danskin" and are_unequal(config):
    danskin = config.danskin
    if danskin.bundle_step is None and danskin.loss_tolerance is None:
      print(
        "Warning: plain danskin takes every candidate for a maximiser, and those of "
        f"config.sources, {config.sources}, are not equally good: see docs/sources.md "
        "and config.method=proximal or config.danskin.bundle_step."
      )
  if writer:
    devices = "" if mesh is None else f"{mesh.size} devices, "
    print(
      f"{config.method} on {config.data.name}: {len(splits.train)} training "
      f"images, {config.model.name} with {num_params:,} parameters, steps {start} to "
      f"{total} of batch {config.batch_size}, on {devices}{jax.default_backend()}.\n"
      f"Workdir: {workdir}"
    )
  validation_set = splits.validation.first(config.evaluation.validation_limit)
  part, num_parts = meshes.host_share(mesh, meshes.DATA, config.batch_size)
  batches = data.training_batches(
    splits.train,
    config.batch_size,
    config.seed,
    start=start,
    stop=total,
    shard=part,
    num_shards=num_parts,
  )
  log = logs.MetricLog(workdir, resumed) if writer else logs.NoLog()
  bar = tqdm.tqdm(
    total=total,
    initial=start,
    unit="step",
    dynamic_ncols=True,
    disable=not writer,
    mininterval=0.5 if sys.stderr.isatty() else 10.0,
  )
  validation_text = ""
  with log, bar:
    for step in range(start, total + 1):
      due = step % experiment.evaluate_every == 0 or step == total
      validation = None
      if due and progress["evaluated"] < step:
        validation = experiment.evaluate(state, validation_set, interrupted)
      if validation is not None:
        log.write(step, "validation", validation.numbers())
        validation_text = (
          f", validation clean {validation.clean_accuracy:.3f} "
          f"robust {validation.robust_accuracy:.3f}"
        )
        progress["evaluated"] = step
      stop = interrupted()
      if validation is not None or stop:
        log.flush()  # Before the checkpoint, which is resumed with its steps' records.
        progress["seconds"] = time.monotonic() - began
        # The untrained network does not compete for the best checkpoint.
        checkpoints.save(state, progress, validation if step else None)
      if stop:
        checkpoints.close()
        return None
      if step == total:
        break
      batch = meshes.to_devices(mesh, meshes.DATA, next(batches))
      state, metrics = experiment.train_step(
        state, batch["image"], batch["label"], batch["index"]
      )
      numbers = {name: float(value) for name, value in metrics.items()}
      log.write(step + 1, "train", numbers)
      _stop_if_not_finite(step + 1, numbers, checkpoints)
      kind = "robust accuracy" if "robust_accuracy" in numbers else "accuracy"
      bar.set_postfix_str(
        f"loss {numbers['loss']:.3f}, {kind} {numbers[kind.replace(' ', '_')]:.3f}"
        + validation_text,
        refresh=False,
      )
      bar.update()

    best_step = checkpoints.best_step
    assert best_step is not None  # The last step is always evaluated.
    best_state, _ = checkpoints.restore(best_step, experiment.initial_state)
    checkpoints.close()
    results = {}
    test_set = splits.test.first(config.evaluation.test_limit)
    states = {"best": best_state, "last": state, "initial": experiment.initial_state}
    for name, tested in states.items():
      result = experiment.evaluate(tested, test_set, interrupted)
      if result is None:
        return None
      results[name] = result.numbers()
    log.write(total, "test", results["last"])

  return {
    "method": config.method,
    "seed": config.seed,
    "steps": total,
    **results["best"],
    "attack": describe_attack(config),
    "data": config.data.name,
    "test_images": len(test_set),
    "checkpoint": "best by validation robust accuracy",
    "best_step": best_step,
    "seconds": time.monotonic() - began,
    "initial": results["initial"],
    "last": results["last"],
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }


def _what_is_left(workdir: Path) -> str:
  steps = good_steps(workdir)
  if not steps:
    return ""
  return (
    f"  The checkpoint of step {steps[-1]} is good: with the cause mended, the same "
    "command resumes there."
  )


def _stop_if_not_finite(
  step: int, metrics: Mapping[str, float], checkpoints: Checkpoints
) -> None:
  for name in ("loss", "param_norm"):
    if not math.isfinite(metrics[name]):
      latest = checkpoints.latest_step
      good = f"the last good checkpoint is {checkpoints.directory / str(latest)}"
      if latest is None:
        good = "there is no checkpoint"
      raise TrainingError(
        f"{name} is {metrics[name]} after step {step}: training stopped, {good}."
      )
