"""The experiment on unions: equal compute, and every run's method by its name."""

import json

import pandas as pd
import pytest

from ddi_jax import training
from ddi_jax.training.settings.check import check_config
from experiments import union, union_results
from experiments.configs import union as union_config


@pytest.mark.slow
@pytest.mark.parametrize("budget", union_config.BUDGETS)
def test_every_arm_of_every_budget_is_sound(budget):
  config = union_config.get_config(budget)
  for setting, settings in config.training.items():
    for arm in config.arms:
      run = union.arm_run(setting, settings, arm, 0.1, 3).config
      check_config(run)
      assert union.arm_of(run) == arm
      reference = union.with_arm(settings, "MAX")
      spent = run.num_epochs * union.passes(run)
      assert spent == pytest.approx(reference.num_epochs * union.passes(reference))


def test_passes_are_counted():
  config = training.default_config()
  config.attack.steps = 10
  counted = {arm: union.passes(union.with_arm(config, arm)) for arm in union.ARMS}
  assert counted["MAX"] == 3 * 30 + 3 + 3
  assert counted["AVG"] == counted["DDi"] == 3 * 30 + 9
  assert counted["MSD"] == 10 * (3 + 3) + 3
  assert counted["l2 alone"] == 30 + 3
  # Losses, then for each of two vertices a gradient and the slopes of 3 candidates.
  assert counted["proximal"] == 3 * 30 + 3 + 2 * (3 + 6)
  assert counted["proximal, t = 3"] == 3 * 30 + 3 + 5 * (3 + 6)
  with pytest.raises(ValueError, match="not counted for the source 'spatial'"):
    config.sources = ("linf", "spatial")
    union.passes(config)


def test_passes_taken_are_those_of_the_log(tmp_path):
  config = union.with_arm(training.default_config(), "proximal")
  config.attack.steps = 10
  lines = [
    {"step": 0, "split": "validation", "robust_accuracy": 0.1},
    {"step": 1, "split": "train", "proximal/passes": 12},
    {"step": 2, "split": "train", "proximal/passes": 30},
  ]
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert union.passes_taken(config, tmp_path) == 2 * 3 * 30 + 42
  assert union.passes_taken(union.with_arm(config, "l2 alone"), tmp_path) == 2 * 33


def test_tables_compare_with_the_best_baseline_by_seed():
  rows = [
    {
      "setting": "mnist",
      "arm": arm,
      "seed": seed,
      "learning_rate": 0.1,
      "steps": 10,
      "passes": 900.0,
      **dict.fromkeys(union_results.FIELDS, accuracy + 0.01 * seed),
    }
    for arm, accuracy in {"AVG": 0.3, "MAX": 0.5, "proximal": 0.52, "DDi": 0.1}.items()
    for seed in (1, 2, 3)
  ]
  runs = pd.DataFrame(rows)
  ((setting, table),) = union_results.tables(runs)
  assert setting == "mnist"
  lines = table.splitlines()
  assert lines[0].endswith("| union - MAX |")
  assert [line.split(" | ")[0] for line in lines[2:]] == [
    "| proximal",
    "| MAX",
    "| AVG",
    "| DDi",
  ]
  assert "0.540 ± 0.010" in lines[2] and lines[2].endswith("+0.020 ± 0.000 |")
  (panel,) = union_results.draw(runs).axes
  shown = {tuple(line.get_xdata()) for line in panel.lines}
  assert (0.53, 0.54, 0.55) in {tuple(round(x, 3) for x in xs) for xs in shown}
