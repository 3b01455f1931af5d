"""Robust accuracy early in training, by epoch and by gradient evaluations.

python -m experiments.early_training --config=experiments/configs/early_training.py \
  --data_dir=DIR --output=docs/data

For every method, a sweep on one seed chooses the learning rate with the best mean
validation robust accuracy over the first epochs.  Other seeds then compare the methods.
"""

from collections.abc import Iterator, Sequence
import json
from pathlib import Path

import ml_collections
import numpy as np
import pandas as pd

from ddi_jax import training
from ddi_jax.training.run import report
from ddi_jax.training.settings.check import drop_unused
from ddi_jax.training.settings.methods import METHODS, num_attacks
from ddi_jax.training.storage import logs
from experiments import program, sweep

ARMS = {  # Name -> (method, unit_norm).
  "pgd": ("pgd", False),
  "pgd, unit norm": ("pgd", True),
  "average": ("average", False),
  "average, unit norm": ("average", True),
  "worst_restart": ("worst_restart", False),
  "danskin": ("danskin", False),
  "danskin, unit norm": ("danskin", True),
}


def stages(config: ml_collections.ConfigDict, folder: Path) -> Iterator[sweep.Runs]:
  """Two stages per setting: the sweep of learning rates, then the other seeds."""
  for setting in config.settings:
    swept = sweep.named(
      run
      for arm in config.arms
      for run in arm_runs(
        config, setting, arm, config.learning_rates[setting], (config.sweep_seed,)
      )
    )
    yield swept
    found = curves_table(sweep.finished(swept, folder), folder)
    rates = best_learning_rates(found, config.training[setting].num_epochs)
    yield sweep.named(
      run
      for arm, rate in rates.items()
      for run in arm_runs(config, setting, arm, (rate,), config.seeds)
    )


def arm_runs(
  config: ml_collections.ConfigDict,
  setting: str,
  arm: str,
  learning_rates: Sequence[float],
  seeds: Sequence[int],
) -> Iterator[sweep.Run]:
  """The runs of a method.

  A method with a single attack in each step gets K times the epochs.
  """
  for rate in learning_rates:
    for seed in seeds:
      run = config.training[setting].copy_and_resolve_references()
      run.method, run.unit_norm = ARMS[arm]
      run.optimizer.learning_rate, run.seed = rate, seed
      run.num_epochs *= run.num_restarts / num_attacks(run)
      yield sweep.Run(setting, drop_unused(run))


def best_learning_rates(curves: pd.DataFrame, epochs: float) -> dict[str, float]:
  """The best learning rate of each method that has a finished run.

  Args:
    curves: the curves of one setting's sweep, see `curves_table`.
    epochs: number of epochs that all methods have in common.  The criterion is the mean
      of the validation robust accuracies over these epochs, so that the later epochs of
      PGD's longer runs do not count.
  """
  if curves.empty:
    return {}
  early = curves[(curves["epoch"] > 0) & (curves["epoch"] <= epochs + 1e-6)]
  means = early.groupby(["arm", "learning_rate"], sort=False)["robust_accuracy"].mean()
  return dict(means.groupby("arm", sort=False).idxmax().to_list())


def gradient_evaluations(config: ml_collections.ConfigDict) -> int:
  """The gradient evaluations of a training step per image.

  They are those of the attacks and those for the parameters.  Forward passes without a
  gradient (`worst_restart` makes K of them) are not counted.
  """
  method = METHODS[config.method]
  count = num_attacks(config)
  attacks = count * config.attack.steps if method.attacked else 0
  return attacks + (1 if method.select_worst else count)


def curves_table(runs: sweep.Runs, folder: Path) -> pd.DataFrame:
  """One row per evaluation on the validation set.

  `cosine`, `min_cosine`, `relative_norm` and `support` are means over the training
  steps since the previous evaluation.
  """
  rows = []
  arms = {value: name for name, value in ARMS.items()}
  for name, (setting, config) in runs.items():
    summary = json.loads((folder / name / report.SUMMARY_FILE).read_text())
    since: list[dict] = []
    for record in logs.read_metrics(folder / name):
      if record["split"] == "train":
        since.append(record)
      if record["split"] != "validation":
        continue
      row = {
        "run": name,
        "setting": setting,
        "arm": arms[config.method, config.unit_norm],
        "learning_rate": config.optimizer.learning_rate,
        "seed": config.seed,
        "step": record["step"],
        "epoch": record["step"] * config.num_epochs / summary["steps"],
        "gradient_evaluations": record["step"]
        * config.batch_size
        * gradient_evaluations(config),
      }
      for field in ("robust_accuracy", "clean_accuracy", "mean_confidence"):
        row[field] = record[field]
      for field in ("cosine", "min_cosine", "relative_norm", "support"):
        values = [record[f"direction/{field}"] for record in since]
        row[field] = np.mean(values) if values else np.nan
      rows.append(row)
      since = []
  return pd.DataFrame(rows)


def tables(runs: sweep.Runs, folder: Path) -> dict[str, pd.DataFrame]:
  """Tables of the runs and of their curves."""
  return {
    "runs": program.runs_table(runs, folder),
    "curves": curves_table(runs, folder),
  }


if __name__ == "__main__":
  program.main(training.train, stages, tables)
