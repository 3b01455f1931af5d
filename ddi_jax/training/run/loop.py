"""The training loop: steps, validations, checkpoints and logs, until the end."""

from collections.abc import Callable, Iterator, Mapping
import math
from pathlib import Path
import sys
import time
from typing import Any

import jax
import ml_collections
from tqdm import auto as tqdm

from ddi_jax import data
from ddi_jax.training.devices import mesh as meshes
from ddi_jax.training.devices import processes
from ddi_jax.training.run.experiment import Experiment
from ddi_jax.training.settings import sources
from ddi_jax.training.settings.methods import METHODS
from ddi_jax.training.step.state import TrainState
from ddi_jax.training.step.validation import Validation, describe_attack
from ddi_jax.training.storage import logs
from ddi_jax.training.storage.checkpoints import Checkpoints


class TrainingError(RuntimeError):
  """Training cannot continue; the message says why, and which checkpoint is left."""


class TrainingLoop:
  """One run of an experiment, from its latest checkpoint to its end.

  Args:
    experiment: the parts of the run.
    config: the run's config.
    workdir: folder of the checkpoints and logs.
    interrupted: () -> whether to stop before the next step; the same on all processes.
  """

  def __init__(
    self,
    experiment: Experiment,
    config: ml_collections.ConfigDict,
    workdir: Path,
    interrupted: Callable[[], bool],
  ):
    self._experiment, self._config = experiment, config
    self._interrupted = interrupted
    self._checkpoints = Checkpoints(workdir)
    self._state = experiment.start()
    self._progress: dict[str, Any] = {"seconds": 0.0, "evaluated": -1}
    resumed = self._checkpoints.latest_step
    if resumed is not None:
      self._state, self._progress = self._checkpoints.restore(resumed, self._state)
    self._start = int(self._state.step)
    self._began = time.monotonic() - self._progress["seconds"]
    self._log = (
      logs.MetricLog(workdir, resumed) if processes.is_writer() else logs.NoLog()
    )
    if processes.is_writer():
      _warn_of_unequal_candidates(config)
      self._announce(workdir)

  def run(self) -> dict[str, Any] | None:
    """The summary of the finished run; None if it was interrupted."""
    total = self._experiment.total_steps
    batches = self._training_batches()
    with self._log, self._progress_bar() as bar:
      for step in range(self._start, total + 1):
        validation = self._validate_if_due(step, bar)
        stop = self._interrupted()
        if validation is not None or stop:
          # The untrained network must not become the best checkpoint.
          self._save(validation if step else None)
        if stop:
          self._checkpoints.close()
          return None
        if step < total:
          self._take_step(step, next(batches), bar)
      return self._test()

  def _training_batches(self) -> Iterator[Mapping[str, Any]]:
    config, mesh = self._config, self._experiment.mesh
    part, num_parts = meshes.host_share(mesh, meshes.DATA, config.batch_size)
    return data.training_batches(
      self._experiment.splits.train,
      config.batch_size,
      config.seed,
      start=self._start,
      stop=self._experiment.total_steps,
      shard=part,
      num_shards=num_parts,
    )

  def _take_step(self, step: int, batch: Mapping[str, Any], bar: Any) -> None:
    experiment = self._experiment
    there = meshes.to_devices(experiment.mesh, meshes.DATA, batch)
    self._state, metrics = experiment.train_step(
      self._state, there, experiment.hyperparameters
    )
    numbers = {name: float(value) for name, value in metrics.items()}
    self._log.write(step + 1, "train", numbers)
    _stop_if_not_finite(step + 1, numbers, self._checkpoints)
    bar.show_step(numbers)

  def _validate_if_due(self, step: int, bar: Any) -> Validation | None:
    due = (
      step % self._experiment.evaluate_every == 0
      or step == self._experiment.total_steps
    )
    if not due or self._progress["evaluated"] >= step:
      return None
    validation_set = self._experiment.splits.validation.first(
      self._config.evaluation.validation_limit
    )
    validation = self._experiment.validate(
      self._state, validation_set, self._interrupted
    )
    if validation is not None:
      self._log.write(step, "validation", validation.numbers())
      self._progress["evaluated"] = step
      bar.show_validation(validation)
    return validation

  def _save(self, validation: Validation | None) -> None:
    # Write the log before the checkpoint: a resumed run needs the records up to its
    # step.
    self._log.flush()
    self._progress["seconds"] = time.monotonic() - self._began
    self._checkpoints.save(self._state, self._progress, validation)

  def _test(self) -> dict[str, Any] | None:
    """Test the best, last and untrained networks; return the summary."""
    experiment, config = self._experiment, self._config
    best_step = self._checkpoints.best_step
    assert best_step is not None  # The last step is always validated.
    best, _ = self._checkpoints.restore(best_step, experiment.initial_state)
    self._checkpoints.close()
    test_set = experiment.splits.test.first(config.evaluation.test_limit)
    states: dict[str, TrainState] = {
      "best": best,
      "last": self._state,
      "initial": experiment.initial_state,
    }
    results = {}
    for name, state in states.items():
      result = experiment.validate(state, test_set, self._interrupted)
      if result is None:
        return None
      results[name] = result.numbers()
    self._log.write(experiment.total_steps, "test", results["last"])
    return {
      "method": config.method,
      "seed": config.seed,
      "steps": experiment.total_steps,
      **results["best"],
      "attack": describe_attack(config),
      "data": config.data.name,
      "test_images": len(test_set),
      "checkpoint": "best by validation robust accuracy",
      "best_step": best_step,
      "seconds": time.monotonic() - self._began,
      "initial": results["initial"],
      "last": results["last"],
      "device": jax.devices()[0].device_kind,
      "jax": jax.__version__,
    }

  def _announce(self, workdir: Path) -> None:
    config, experiment = self._config, self._experiment
    num_params = sum(leaf.size for leaf in jax.tree.leaves(self._state.params))
    mesh = experiment.mesh
    devices = "" if mesh is None else f"{mesh.size} devices, "
    print(
      f"{config.method} on {config.data.name}: {len(experiment.splits.train)} training "
      f"images, {config.model.name} with {num_params:,} parameters, steps "
      f"{self._start} to {experiment.total_steps} of batch {config.batch_size}, on "
      f"{devices}{jax.default_backend()}.\nWorkdir: {workdir}"
    )

  def _progress_bar(self) -> "_ProgressBar":
    return _ProgressBar(
      total=self._experiment.total_steps,
      initial=self._start,
      unit="step",
      dynamic_ncols=True,
      disable=not processes.is_writer(),
      mininterval=0.5 if sys.stderr.isatty() else 10.0,
    )


class _ProgressBar(tqdm.tqdm):
  """A progress bar over the steps, followed by the latest metrics."""

  _validation_text = ""

  def show_validation(self, validation: Validation) -> None:
    self._validation_text = (
      f", validation clean {validation.clean_accuracy:.3f} "
      f"robust {validation.robust_accuracy:.3f}"
    )

  def show_step(self, numbers: Mapping[str, float]) -> None:
    kind = "robust accuracy" if "robust_accuracy" in numbers else "accuracy"
    self.set_postfix_str(
      f"loss {numbers['loss']:.3f}, {kind} {numbers[kind.replace(' ', '_')]:.3f}"
      + self._validation_text,
      refresh=False,
    )
    self.update()


def _warn_of_unequal_candidates(config: ml_collections.ConfigDict) -> None:
  plain = config.danskin.bundle_step is None and config.danskin.loss_tolerance is None
  is_danskin = METHODS.get(config.method) is METHODS["danskin"]
  if is_danskin and plain and sources.are_unequal(config):
    print(
      "Warning: plain danskin treats every candidate as a maximiser, but those of "
      f"config.sources, {config.sources}, are not equally good: see docs/sources.md "
      "and config.method=proximal or config.danskin.bundle_step."
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
