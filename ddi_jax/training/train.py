"""The training loop."""

import json
import math
from pathlib import Path
import signal
import sys
import time

import jax
import ml_collections
from tqdm import auto as tqdm

from ddi_jax import data, models
from ddi_jax.training import config as config_lib
from ddi_jax.training import (
  evaluation,
  figures,
  logs,
  report,
  step,
)
from ddi_jax.training import (
  workdir as workdirs,
)
from ddi_jax.training.checkpoints import Checkpoints


class TrainingError(RuntimeError):
  """Training cannot go on; the message says why and what is left."""


def train(config: ml_collections.ConfigDict, workdir: Path) -> dict | None:
  """Trains, evaluates and reports; resumes if the workdir holds the same config's run.

  SIGTERM and SIGINT end the run after the step in progress, with a checkpoint.

  Args:
    config: see `ddi_jax.training.default_config`.
    workdir: made if missing; receives config.json, metrics.jsonl, summary.json,
      curves.png, checkpoints/ and tensorboard/.

  Returns:
    The content of summary.json; None if the run was interrupted.

  Raises:
    ConfigError: if a setting is impossible or the workdir holds another run.
    DataError: if the data cannot be had.
    TrainingError: if the loss or the parameters are no longer finite.
  """
  config_lib.check_config(config)
  splits = _load_data(config)
  config_lib.check_against_data(config, len(splits.train.labels))
  workdirs.claim_workdir(workdir, config)
  summary_path = workdir / report.SUMMARY_FILE
  if summary_path.exists():
    print(f"This run is complete; nothing to do.  {workdir}")
    summary = json.loads(summary_path.read_text())
    print(report.format_report(workdir, summary))
    return summary

  steps_per_epoch = len(splits.train.labels) // config.batch_size
  total = max(1, round(config.num_epochs * steps_per_epoch))
  evaluate_every = max(1, round(config.evaluation.every_epochs * steps_per_epoch))

  model = models.create_model(
    config.model.name,
    image_shape=splits.train.images.shape[1:],
    num_classes=splits.num_classes,
    mean=splits.mean,
    std=splits.std,
    settings=config_lib.model_settings(config),
    seed=config.seed,
  )
  apply, params, model_state = models.functional(model)
  schedule = step.create_schedule(config, total)
  optimizer = step.create_optimizer(config, schedule)
  train_step = step.create_train_step(
    config, apply, optimizer, schedule, splits.max_value
  )
  evaluate = evaluation.create_evaluate(config, apply, splits.max_value)
  initial_state = step.create_train_state(params, model_state, optimizer)
  validation_set = _first(splits.validation, config.evaluation.validation_limit)
  test_set = _first(splits.test, config.evaluation.test_limit)

  checkpoints = Checkpoints(workdir)
  state = jax.tree.map(jax.numpy.copy, initial_state)  # The step donates its input.
  progress = {"seconds": 0.0, "evaluated": -1}
  if checkpoints.latest_step is not None:
    state, progress = checkpoints.restore(checkpoints.latest_step, state)
    print(f"Resuming at step {int(state.step)} of {total}.")
  start = int(state.step)
  began = time.monotonic() - progress["seconds"]
  log = logs.MetricLog(workdir, start)
  batches = data.training_batches(
    splits.train, config.batch_size, config.seed, start=start, stop=total
  )
  num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(
    f"{config.method} on {config.data.name}: {len(splits.train.labels)} training "
    f"images, {config.model.name} with {num_params:,} parameters, {total} steps of "
    f"batch {config.batch_size}, on {jax.default_backend()}.\nWorkdir: {workdir}"
  )

  def save(validation):
    progress["seconds"] = time.monotonic() - began
    checkpoints.save(state, progress, validation)

  def stop_if_not_finite(current, metrics):
    for name in ("loss", "param_norm"):
      if not math.isfinite(metrics[name]):
        last = checkpoints.latest_step
        good = (
          "there is no checkpoint"
          if last is None
          else (f"the last good checkpoint is {checkpoints.directory / str(last)}")
        )
        raise TrainingError(
          f"{name} is {metrics[name]} at step {current}: training stopped, {good}."
        )

  with (
    _Interruption() as interrupted,
    tqdm.tqdm(
      total=total,
      initial=start,
      unit="step",
      dynamic_ncols=True,
      mininterval=0.5 if sys.stderr.isatty() else 10.0,
    ) as bar,
  ):
    shown = {}
    try:
      for current in range(start, total + 1):
        due = current % evaluate_every == 0 or current == total
        if due and progress["evaluated"] < current:
          result = evaluate(state, validation_set, interrupted)
          if result is not None:
            log.write(current, "validation", result._asdict())
            log.flush()
            shown["validation"] = (
              f"{result.clean_accuracy:.3f}/{result.robust_accuracy:.3f}"
            )
            progress["evaluated"] = current
            save(result)
        if interrupted():
          save(None)
          break
        if current == total:
          break
        batch = next(batches)
        state, metrics = train_step(state, batch["image"], batch["label"])
        metrics = {name: float(value) for name, value in metrics.items()}
        log.write(current + 1, "train", metrics)
        stop_if_not_finite(current + 1, metrics)
        shown |= {
          "loss": f"{metrics['loss']:.3f}",
          "robust": f"{metrics['robust_accuracy']:.3f}",
        }
        bar.set_postfix(shown, refresh=False)
        bar.update()
    finally:
      log.flush()

    if not interrupted():
      results = {"last": evaluate(state, test_set, interrupted)}
      best_step = checkpoints.best_step
      best_state, _ = checkpoints.restore(best_step, state)
      results["best"] = evaluate(best_state, test_set, interrupted)
      results["initial"] = evaluate(initial_state, test_set, interrupted)
    checkpoints.close()
    if interrupted():
      log.close()
      print(
        f"Interrupted: step {int(state.step)} of {total} is saved in {workdir}; the "
        "same command resumes."
      )
      return None

  log.write(total, "test", results["last"]._asdict())
  log.close()
  summary = {
    "method": config.method,
    "seed": config.seed,
    "steps": total,
    **results["best"]._asdict(),
    "attack": evaluation.describe_attack(config),
    "data": config.data.name,
    "checkpoint": "best by validation robust accuracy",
    "best_step": best_step,
    "seconds": time.monotonic() - began,
    "initial": results["initial"]._asdict(),
    "last": results["last"]._asdict(),
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }
  title = (
    f"{config.method} on {config.data.name}, seed {config.seed}; robust: "
    f"{summary['attack']}"
  )
  figures.save_curves(workdir, title)
  logs.write_json(summary_path, summary)
  print(report.format_report(workdir, summary))
  return summary


def _load_data(config):
  try:
    return data.load(
      config.data.name,
      data_dir=config.data.data_dir,
      validation_size=config.data.validation_size,
      split_seed=config.data.split_seed,
      limit=config.data.limit,
    )
  except ValueError as error:
    raise config_lib.ConfigError(f"config.{error}") from error


def _first(dataset, limit):
  return data.Dataset(dataset.images[:limit], dataset.labels[:limit])


class _Interruption:
  """Whether SIGTERM or SIGINT has come; a second SIGINT interrupts at once."""

  def __init__(self):
    self._received = False
    self._previous = {}

  def __call__(self) -> bool:
    return self._received

  def __enter__(self) -> "_Interruption":
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *exception) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number, frame) -> None:
    if self._received and number == signal.SIGINT:
      raise KeyboardInterrupt
    self._received = True
