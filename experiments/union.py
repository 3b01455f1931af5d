"""Robustness to a union of threat models, with equal compute for every method.

python -m experiments.union --config=experiments/configs/union.py --data_dir=DIR

For every method, a sweep on one seed chooses the learning rate with the best validation
robust accuracy in the union.  Other seeds then compare the methods.  A method with
cheaper steps takes more of them.  `passes` counts forward passes per image, where a
gradient counts as 3.
"""

from collections.abc import Iterator
import json
from pathlib import Path
from typing import Any

import ml_collections
import pandas as pd

from ddi_jax import training
from ddi_jax.training.run import report
from ddi_jax.training.settings.methods import METHODS
from ddi_jax.training.settings.sources import entries, num_candidates
from ddi_jax.training.settings.threats import NORMS
from ddi_jax.training.storage import logs
from experiments import program, sweep

# The number of iterations is what is nearly always needed, so that a step costs what it
# is charged.  It is one, and more for a long t, whose model is far from MAX.
PROXIMAL = {"method": "proximal", "sources": NORMS, "proximal.iterations": 1}
LONG = PROXIMAL | {"proximal.iterations": 4}
ARMS: dict[str, dict[str, Any]] = {
  "MAX": {"method": "worst_restart", "sources": NORMS},
  "AVG": {"method": "average", "sources": NORMS},
  "MSD": {"method": "pgd", "sources": ("msd",)},
  "l_inf alone": {"method": "pgd", "sources": ("linf",)},
  "l2 alone": {"method": "pgd", "sources": ("l2",)},
  "l1 alone": {"method": "pgd", "sources": ("l1",)},
  "DDi": {"method": "danskin", "sources": NORMS},
  "proximal, per batch": PROXIMAL | {"proximal.per": "batch"},
  "proximal": PROXIMAL,
  "proximal, t = 0.5": PROXIMAL | {"proximal.step": 0.5},
  "proximal, t = 3": LONG | {"proximal.step": 3.0},
  "proximal, t = 10": LONG | {"proximal.step": 10.0},
}
BASELINES = ("MAX", "AVG", "MSD", "l_inf alone", "l2 alone", "l1 alone")


def attack_passes(config: ml_collections.ConfigDict) -> int:
  """Forward passes per image in the attacks of a training step.

  Raises:
    ValueError: for a source that no arm has.
  """
  passes = 0
  for name, count in entries(config):
    if name not in (*NORMS, "msd"):
      raise ValueError(f"passes are not counted for the source {name!r}.")
    # MSD tries a step in each norm.
    passes += count * config.attack.steps * (3 + (len(NORMS) if name == "msd" else 0))
  return passes


def passes(config: ml_collections.ConfigDict) -> int:
  """Forward passes per image in a training step without BatchNorm.

  For the proximal form this is an upper bound.
  """
  count = num_candidates(config)
  method = METHODS[config.method]
  if method.proximal:
    vertices = config.proximal.iterations + 1
    return attack_passes(config) + count + vertices * (3 + 2 * count)
  return attack_passes(config) + (count + 3 if method.select_worst else 3 * count)


def passes_taken(config: ml_collections.ConfigDict, folder: Path) -> float:
  """Forward passes per image in all training steps of a run.

  The run's log has the number of iterations of the proximal form.
  """
  steps = [r for r in logs.read_metrics(folder) if r["split"] == "train"]
  if not METHODS[config.method].proximal:
    return float(len(steps) * passes(config))
  return sum(attack_passes(config) + record["proximal/passes"] for record in steps)


def stages(config: ml_collections.ConfigDict, folder: Path) -> Iterator[sweep.Runs]:
  """Two stages per setting: the sweep of learning rates, then the other seeds."""
  for setting, settings in config.training.items():
    rates = config.learning_rates[setting]
    swept = {
      arm: sweep.named(
        arm_run(setting, settings, arm, rate, config.sweep_seed) for rate in rates
      )
      for arm in config.arms
    }
    yield {name: run for runs in swept.values() for name, run in runs.items()}
    chosen = {}
    for arm, runs in swept.items():
      rate = best_learning_rate(sweep.finished(runs, folder), folder)
      if rate is not None:
        chosen[arm] = rate
    yield sweep.named(
      arm_run(setting, settings, arm, rate, seed)
      for arm, rate in chosen.items()
      for seed in config.seeds
    )


def arm_run(
  setting: str,
  settings: ml_collections.ConfigDict,
  arm: str,
  learning_rate: float,
  seed: int,
) -> sweep.Run:
  """A method's run, with as many steps as the compute of MAX allows."""
  reference = with_arm(settings, "MAX")
  run = with_arm(settings, arm)
  run.optimizer.learning_rate, run.seed = learning_rate, seed
  ratio = passes(reference) / passes(run)
  run.num_epochs *= ratio
  run.attack.warmup_epochs *= ratio
  run.evaluation.every_epochs *= ratio  # Keep the number of checkpoints to choose from.
  return sweep.Run(setting, run)


def with_arm(
  settings: ml_collections.ConfigDict, arm: str
) -> ml_collections.ConfigDict:
  """A copy of a training config with the settings of a method."""
  run = settings.copy_and_resolve_references()
  run.update_from_flattened_dict(ARMS[arm])
  return training.drop_unused(run, keep=ARMS[arm])


def best_learning_rate(runs: sweep.Runs, folder: Path) -> float | None:
  """The learning rate of the run with the best validation robust accuracy.

  None if there are no runs.
  """
  found = {
    run.config.optimizer.learning_rate: max(_validation(folder / name))
    for name, run in runs.items()
  }
  return max(found, key=lambda rate: found[rate]) if found else None


def _validation(folder: Path) -> list[float]:
  return [
    record["robust_accuracy"]
    for record in logs.read_metrics(folder)
    if record["split"] == "validation"
  ]


def runs_table(runs: sweep.Runs, folder: Path) -> pd.DataFrame:
  """A table with one row per run; test accuracies are those of its best checkpoint."""
  rows = []
  for name, (_, config) in runs.items():
    summary = json.loads((folder / name / report.SUMMARY_FILE).read_text())
    row = {
      "run": name,
      "arm": arm_of(config),
      "passes": passes_taken(config, folder / name),
    }
    rows.append(row | {field: summary[field] for field in _by_norm(summary)})
  return program.runs_table(runs, folder).merge(pd.DataFrame(rows), on="run")


def _by_norm(summary) -> list[str]:
  return [name for name in summary if name.startswith("robust_accuracy_")]


def arm_of(config: ml_collections.ConfigDict) -> str:
  """The name of a run's method in `ARMS`."""
  form = _form(config)
  default = training.default_config()
  return next(arm for arm in ARMS if _form(with_arm(default, arm)) == form)


def _form(config):
  """The settings that distinguish the arms."""
  proximal = config.proximal
  return config.method, tuple(config.sources), proximal.per, proximal.step


def tables(runs: sweep.Runs, folder: Path) -> dict[str, pd.DataFrame]:
  """The table of the runs."""
  return {"runs": runs_table(runs, folder)}


if __name__ == "__main__":
  program.main(training.train, stages, tables)
