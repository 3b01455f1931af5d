"""Compare how much a step along each direction lowers the robust loss.

python -m experiments.directions --config=experiments/configs/directions.py \
  --data_dir=DIR --output=docs/data

A network is trained with PGD.  At several phases of training, directions of unit norm
are computed from batches of the training set.  They are those of PGD (the first
restart), the average, the worst restart, DDi and DDi's two forms for inexact
maximisers.  After a step along each direction, a stronger attack measures the robust
loss, on the batch itself and on a held-out one.  The measurements do not change the
training.
"""

from collections.abc import Iterator
import json
from pathlib import Path
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pandas as pd

import ddi_jax
from ddi_jax import data, losses
from ddi_jax.training.devices.compilation import compilation_cache_in
from ddi_jax.training.run import report
from ddi_jax.training.run.experiment import Experiment, create_experiment, load_data
from ddi_jax.training.run.interruption import Interruption
from ddi_jax.training.settings.check import check_against_data, check_config
from ddi_jax.training.settings.pieces import ConfigError
from ddi_jax.training.settings.threats import THREAT_MODELS, step_size
from ddi_jax.training.step.validation import evaluation_attack
from ddi_jax.training.storage import files
from ddi_jax.training.storage.workdir import claim_workdir
from experiments import program, sweep

EFFECTS_FILE = "effects.jsonl"
TESTS = ("batch", "held_out")


def directions(
  settings: ml_collections.ConfigDict,
) -> dict[str, ddi_jax.TriedDirection]:
  """The directions to compare, for the settings in `config.measurement`."""
  danskin, first = ddi_jax.danskin_direction, ddi_jax.first_restart_direction
  return {
    "pgd": ddi_jax.TriedDirection(first()),
    "average": ddi_jax.TriedDirection(ddi_jax.average_direction()),
    "worst_restart": ddi_jax.TriedDirection(first(), select_worst=True),
    "danskin": ddi_jax.TriedDirection(danskin()),
    "danskin, active set": ddi_jax.TriedDirection(
      danskin(loss_tolerance=settings.loss_tolerance)
    ),
    "danskin, bundle": ddi_jax.TriedDirection(
      danskin(bundle_step=settings.bundle_step)
    ),
  }


def stages(config: ml_collections.ConfigDict, folder: Path) -> Iterator[sweep.Runs]:
  """A single stage with every setting and seed."""
  del folder
  yield sweep.named(
    sweep.Run(setting, run_config(config, setting, seed))
    for setting in config.training
    for seed in config.seeds
  )


def run_config(
  config: ml_collections.ConfigDict, setting: str, seed: int
) -> ml_collections.ConfigDict:
  """A training config with the section `measurement`."""
  run = config.training[setting].copy_and_resolve_references()
  run.seed = seed
  with run.unlocked():
    run.measurement = config.measurement.copy_and_resolve_references()
  return run


def measure(config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any] | None:
  """Train a network, and measure the directions during training.

  If the run is interrupted, the measurements are kept.  Training is repeated, because
  it is the smaller part.

  Args:
    config: see `run_config`.
    workdir: receives config.json, effects.jsonl and summary.json.

  Returns:
    The content of summary.json; None if the run was interrupted.

  Raises:
    ConfigError: if a setting is impossible.
  """
  began = time.monotonic()
  check_config(config)
  settings = config.measurement
  splits = load_data(config)
  check_against_data(config, splits.train)
  needed, there = settings.batches * settings.batch_size, len(splits.validation)
  if needed > min(len(splits.train), there):
    raise ConfigError(
      f"config.measurement needs {needed} images (batches * batch_size) of the "
      f"training and of the validation set, which have {len(splits.train)} and {there}."
    )
  with (
    claim_workdir(workdir, config),
    compilation_cache_in(workdir),
    Interruption() as interrupted,
  ):
    path = workdir / EFFECTS_FILE
    records = list(files.read_lines(path))
    files.write_atomically(path, "".join(json.dumps(r) + "\n" for r in records))
    done = {(record["step"], record["batch"]) for record in records}
    experiment = create_experiment(config, splits)
    measure_batch = _create_measurement(config, experiment)
    state = experiment.start()
    steps_per_epoch = len(splits.train) // config.batch_size
    phases = [round(epoch * steps_per_epoch) for epoch in settings.phases]
    batches = data.training_batches(
      splits.train, config.batch_size, config.seed, start=0, stop=experiment.total_steps
    )
    with path.open("a") as file:
      for step in range(max(phases) + 1):
        for index in range(settings.batches if step in phases else 0):
          if interrupted():
            return None
          if (step, index) not in done:
            record = {"step": step, "epoch": step / steps_per_epoch, "batch": index}
            record |= measure_batch(state, index)
            file.write(json.dumps(record) + "\n")
            file.flush()
        if interrupted():
          return None
        if step < max(phases):
          batch = next(batches)
          state, _ = experiment.train_step(state, batch, experiment.hyperparameters)
    summary = {"steps": max(phases), "seconds": time.monotonic() - began}
    files.write_json(workdir / report.SUMMARY_FILE, summary)
    return summary


def _create_measurement(config: ml_collections.ConfigDict, experiment: Experiment):
  """A function (state, index of a batch) -> a record of the effects on the batch."""
  settings, splits, apply = config.measurement, experiment.splits, experiment.apply
  tried = directions(settings)
  train = config.gradient.batch_norm == "train"
  epsilon = config.attack.epsilon
  attack = ddi_jax.pgd(
    THREAT_MODELS[config.attack.norm](epsilon),
    steps=config.attack.steps,
    step_size=step_size(config.attack, epsilon),
  )

  @jax.jit
  def effects_of(params, model_state, batches, key):
    def loss_fn(params, inputs, labels):
      return losses.cross_entropy(
        apply(params, model_state, inputs, train=train)[0], labels
      )

    effects_fn = ddi_jax.step_effects(
      loss_fn,
      tried,
      settings.step_lengths,
      attack=attack,
      num_restarts=settings.num_restarts,
      evaluation_attack=evaluation_attack(config, config.attack.norm, epsilon),
      evaluation_restarts=config.evaluation.restarts,
      restarts_at_a_time=config.restarts_at_a_time,
    )
    images, labels = batches
    inputs = images.astype(jnp.float32) / splits.max_value
    return effects_fn(params, (inputs[0], labels[0]), (inputs, labels), key)

  def measure_batch(state, index):
    rows = index * settings.batch_size + np.arange(settings.batch_size)
    read = [examples.read(rows) for examples in (splits.train, splits.validation)]
    batches = [
      np.stack([batch[field] for batch in read]) for field in ("image", "label")
    ]
    key = jax.random.fold_in(jax.random.key(config.seed), index)
    effects = effects_of(state.params, state.model_state, batches, key)
    effects = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), effects)
    batch_losses = effects.losses.mean(axis=1)
    return {
      "before": effects.before.tolist(),
      "change": (effects.after - effects.before).tolist(),
      "cosine_to_pgd": effects.cosines[0].tolist(),
      "norm": effects.states.norm.tolist(),
      "support": effects.states.support.tolist(),
      "cosine": float(effects.states.cosine[0]),
      "min_cosine": float(effects.states.min_cosine[0]),
      "loss_spread": float(np.ptp(batch_losses) / batch_losses.mean()),
    }

  return measure_batch


def tables(runs: sweep.Runs, folder: Path) -> dict[str, pd.DataFrame]:
  """Tables of the runs, of the changes of the robust loss, and of the directions.

  The last table has the directions' cosines, norms and supports.
  """
  changes, related = [], []
  for name, (setting, config) in runs.items():
    settings = config.measurement
    for record in files.read_lines(folder / name / EFFECTS_FILE):
      place = {"run": name, "setting": setting}
      place |= {field: record[field] for field in ("step", "epoch", "batch")}
      for which, direction in enumerate(directions(settings)):
        related.append(
          place
          | {"direction": direction}
          | {f: record[f][which] for f in ("cosine_to_pgd", "norm", "support")}
          | {f: record[f] for f in ("cosine", "min_cosine", "loss_spread")}
        )
        changes += [
          place
          | {"direction": direction, "length": length, "test": test}
          | {"before": record["before"][t], "change": record["change"][which][at][t]}
          for at, length in enumerate(settings.step_lengths)
          for t, test in enumerate(TESTS)
        ]
  return {
    "runs": program.runs_table(runs, folder),
    "changes": pd.DataFrame(changes).drop(columns="run"),
    "relations": pd.DataFrame(related).drop(columns="run"),
  }


if __name__ == "__main__":
  program.main(measure, stages, tables)
