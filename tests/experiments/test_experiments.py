"""The two experiments: their runs, choices and figures."""

import json
from pathlib import Path

from forked_programs import run_program
import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ddi_jax.training.settings.check import check_config
from experiments import comparison, directions, early_training, figures
from experiments.configs import directions as directions_configs
from experiments.configs import early_training as early_training_configs

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("budget", early_training_configs.BUDGETS)
def test_every_early_training_run_is_possible(tmp_path, budget):
  config = early_training_configs.get_config(budget)
  for setting in config.settings:
    runs = [
      run.config
      for arm in config.arms
      for run in early_training.arm_runs(config, setting, arm, (0.1,), config.seeds)
    ]
    seedless = {}
    for run in runs:
      text = json.dumps({**run.to_dict(), "seed": None}, sort_keys=True)
      seedless.setdefault(text, run)
    for run in seedless.values():
      check_config(run)
    assert all(0 <= run.seed < 2**31 for run in runs)
    assert len(runs) == len(config.arms) * len(config.seeds)
    assert config.sweep_seed not in config.seeds
    # Equal compute, but for the parameter gradients.
    attacks = {
      run.num_epochs * early_training.gradient_evaluations(run) for run in runs
    }
    assert max(attacks) / min(attacks) < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("budget", directions_configs.BUDGETS)
def test_every_directions_run_is_possible(tmp_path, budget):
  config = directions_configs.get_config(budget)
  (runs,) = directions.stages(config, tmp_path)
  assert {run.setting for run in runs.values()} == set(config.training)
  for run in runs.values():
    check_config(run.config)
    evaluation, attack = run.config.evaluation, run.config.attack
    assert evaluation.steps > attack.steps and evaluation.restarts > 1
    assert run.config.num_epochs == max(config.measurement.phases)


@pytest.mark.parametrize("configs", [directions_configs, early_training_configs])
def test_an_unknown_budget_is_named(configs):
  with pytest.raises(ValueError, match="one of small, full, resnet18, debug; got 'x'"):
    configs.get_config("x")


def test_the_learning_rate_is_chosen_by_the_common_epochs():
  rows = [  # arm, learning rate, epoch, robust accuracy
    ("pgd", 0.1, 0, 0.9),  # Before training.
    ("pgd", 0.1, 1, 0.2),
    ("pgd", 0.1, 2, 0.3),
    ("pgd", 0.1, 3, 0.9),  # More epochs than the others have.
    ("pgd", 0.2, 1, 0.3),
    ("pgd", 0.2, 2, 0.3),
    ("danskin", 0.1, 1, 0.4),
    ("danskin", 0.1, 2, 0.5),
    ("danskin", 0.2, 1, 0.5),
    ("danskin", 0.2, 2, 0.3),
  ]
  columns = ["arm", "learning_rate", "epoch", "robust_accuracy"]
  curves = pd.DataFrame(rows, columns=columns)
  best = early_training.best_learning_rates(curves, 2.0)
  assert best == {"pgd": 0.2, "danskin": 0.1}
  assert early_training.best_learning_rates(pd.DataFrame(), 2.0) == {}


def changes_table():
  """Two batches; danskin 0.01 and 0.03 below PGD; one network, phase and length."""
  rows = [
    ("pgd", 0, -0.1),
    ("pgd", 1, -0.3),
    ("danskin", 0, -0.11),
    ("danskin", 1, -0.33),
  ]
  table = pd.DataFrame(rows, columns=["direction", "batch", "change"])
  return table.assign(
    setting="mnist_celu", epoch=1.0, step=5, length=0.1, test="held_out", before=1.0
  )


def test_differences_are_paired_by_batch():
  found = figures.intervals(changes_table())
  danskin = found.loc[("mnist_celu", 1.0, 0.1, "held_out", "danskin")]
  np.testing.assert_allclose(danskin["change", "mean"], -0.22)
  np.testing.assert_allclose(danskin["gap", "mean"], -0.02)
  low, high = stats.t.interval(0.95, 1, -0.02, 0.01)
  np.testing.assert_allclose(danskin["gap", "half"], (high - low) / 2)


def test_the_summary_counts_what_differs():
  others = list(figures.COLORS)[1:]
  cases = [
    changes_table()
    .query("direction == 'pgd'")
    .assign(direction=name, test=test, change=lambda t, s=shift: t["change"] + s)
    for name, shift in [("pgd", 0.0), *((name, -0.02) for name in others)]
    for test in figures.TESTS
  ]
  same = figures.directions_summary(pd.concat(cases))
  row = "| danskin | a held-out batch | 1 | 1 | 0 | -10.00 % of PGD's |"
  assert row in same.splitlines()


def curves_and_runs():
  """Seeds 0 (the sweep's), 1 and 2 of two methods."""
  curves, runs = [], []
  for seed in range(3):
    for arm, gain in (("pgd", 0.0), ("danskin", 0.1)):
      run = f"{arm}{seed}"
      runs.append((run, arm, False, 0.3, 0.4))
      curves += [
        (run, "mnist", arm, 0.1, seed, step, step / 10, 9 * step, accuracy, 0.99)
        for step, accuracy in ((0, 0.0), (10, 0.2 + seed / 10), (20, 0.5 + gain))
      ]
  columns = ["run", "setting", "arm", "learning_rate", "seed", "step", "epoch"]
  columns += ["gradient_evaluations", "robust_accuracy", "cosine"]
  names = ["run", "method", "unit_norm", "robust_accuracy", "mean_confidence"]
  return pd.DataFrame(curves, columns=columns), pd.DataFrame(runs, columns=names)


def test_seeds_that_chose_are_not_compared():
  curves, runs = curves_and_runs()
  assert set(comparison.compared_runs(curves)["seed"]) == {1, 2}
  ((setting, table),) = figures.early_training_tables(runs, curves)
  assert setting == "mnist"
  pgd, danskin = table.splitlines()[2:]
  assert pgd.startswith("| pgd | 0.1 | 0.500 ± 0.000 |")
  assert "| 0.600 ± 0.000 | +0.100 ± 0.000 |" in danskin


def test_a_setting_without_two_seeds_of_every_arm_waits():
  curves, runs = curves_and_runs()
  unfinished = curves[(curves["arm"] == "pgd") | (curves["seed"] < 2)]
  assert not dict(figures.early_training_tables(runs, unfinished))


def test_figures_show_every_arm():
  curves, _ = curves_and_runs()
  figure = figures.draw_early_training(curves, "mnist")
  assert isinstance(figure, matplotlib.figure.Figure)
  _, labels = figure.axes[0].get_legend_handles_labels()
  assert labels == ["pgd", "danskin"]
  np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), [0.0, 0.3, 0.6])


@pytest.mark.slow
def test_directions_are_measured_once_and_the_same_after_a_kill(tmp_path):
  config = directions_configs.get_config("debug")
  (runs,) = directions.stages(config, tmp_path)
  ((name, (_, run)),) = runs.items()
  workdir = tmp_path / name
  assert directions.measure(run, workdir)["steps"] == 4
  path = workdir / directions.EFFECTS_FILE
  lines = path.read_text().splitlines()
  assert len(lines) == 2 * 2  # phases, batches
  record = json.loads(lines[-1])
  assert np.shape(record["change"]) == (6, 3, 2)  # directions, lengths, tests
  assert record["cosine_to_pgd"][0] == pytest.approx(1)
  (workdir / "summary.json").unlink()
  path.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # Killed while writing.
  directions.measure(run, workdir)
  assert path.read_text().splitlines() == lines


@pytest.mark.slow
def test_one_command_sweeps_chooses_compares_and_writes(tmp_path):
  command = [
    *("-m", "experiments.early_training"),
    "--config=experiments/configs/early_training.py:debug",
    f"--folder={tmp_path}",
  ]

  def run(*extra, fresh=False):
    done = run_program(command + list(extra), ROOT, fresh=fresh)
    assert done.returncode == 0, done.stderr
    return done.stdout

  names = run("--list", fresh=True).split()
  assert len(names) == 2  # The sweep: two methods, one learning rate.
  assert "1/1" in run(f"--run={names[0]}")
  assert "2 runs in" in (shown := run()) and "1 finished before" in shown
  curves = pd.read_csv(tmp_path / "early_training_debug-curves.csv")
  assert set(curves["arm"]) == {"pgd", "danskin"}
  assert set(curves["seed"]) == {0, 1}
  assert len(pd.read_csv(tmp_path / "early_training_debug-runs.csv")) == 4
  assert run().count("2 finished before") == 2
