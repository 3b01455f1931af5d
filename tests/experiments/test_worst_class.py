"""The experiment on the worst class: its directions, batches, runs and tables."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest

from ddi_jax import losses, training
from ddi_jax.training.run.experiment import create_experiment, load_data
from ddi_jax.training.settings.check import check_config
from experiments import comparison, sweep, worst_class, worst_class_results
from experiments.configs import worst_class as configs

GRADIENTS = {"w": jnp.array([[1.0, 0.0], [-0.5, 1.0], [3.0, 3.0]])}
PARAMS = {"w": jnp.zeros(2)}


def combined(arm, *steps):
  """What an arm makes of the gradients, after updates with these losses."""
  direction = worst_class.create_direction(arm, len(steps[0]))
  state = direction.init(PARAMS)
  for class_losses in steps:
    update, state = direction.update(
      GRADIENTS, state, PARAMS, losses=jnp.array(class_losses)
    )
  return update["w"]


@pytest.mark.slow
def test_max_is_the_worst_class_and_avg_the_mean():
  close = [1.0, 1.001, 0.5]
  np.testing.assert_allclose(combined("MAX", close), [-0.5, 1.0], rtol=1e-5)
  np.testing.assert_allclose(
    combined("AVG", close), GRADIENTS["w"].mean(axis=0), rtol=1e-6
  )


def test_group_dro_remembers_losses():
  rows = [[1.0, 2.0, 0.5], [3.0, 0.0, 1.0]]
  weights = np.exp(0.05 * np.sum(rows, axis=0))
  expected = weights @ np.asarray(GRADIENTS["w"]) / weights.sum()
  found = combined("group DRO, rate 0.05", *rows)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_batches_have_as_many_of_each_class():
  labels = np.array([2, 0, 1, 1, 1, 2, 0, 1])
  members = worst_class.members_of(labels)
  batches = [worst_class.balanced_indices(members, 4, 7, step) for step in range(20)]
  for batch in batches:
    np.testing.assert_array_equal(labels[batch], np.repeat([0, 1, 2], 4))
  again = worst_class.balanced_indices(members, 4, 7, 3)
  np.testing.assert_array_equal(batches[3], again)
  assert set(np.concatenate(batches)) == set(range(8))


def debug_run(arm="AVG", **changes):
  config = configs.get_config("debug")
  run = worst_class.arm_run(config, "digits", arm, 0.01, 5).config
  run.update_from_flattened_dict(changes)
  return run


@pytest.mark.slow
def test_avg_takes_the_gradient_of_the_mean_loss():
  """Without an attack and with plain SGD, a step is known."""
  run = debug_run(**{"attack.epsilon": 0.0, "optimizer.name": "sgd"})
  with run.unlocked():
    run.attack.step_size = 1.0  # Projected back.
  splits = load_data(run)
  experiment = create_experiment(
    run, splits, change_parts=worst_class.by_class(run, splits.num_classes)
  )
  members = worst_class.members_of(splits.train.labels)
  chosen = worst_class.balanced_indices(members, 10, 0, 0)
  images, labels = splits.train.images[chosen], splits.train.labels[chosen]
  start = experiment.start()

  def loss(params):
    inputs = jnp.asarray(images / splits.max_value, jnp.float32)
    logits = experiment.apply(params, start.model_state, inputs, train=True)[0]
    return losses.cross_entropy(logits, labels).mean()

  expected = jax.tree.map(
    lambda param, slope: param - 0.01 * slope,
    start.params,
    jax.grad(loss)(start.params),
  )
  batch = {"image": images, "label": labels}
  state, _ = experiment.train_step(
    experiment.start(), batch, experiment.hyperparameters
  )
  difference = optax.tree_utils.tree_sub(state.params, expected)
  distance = optax.tree_utils.tree_norm(difference)
  assert distance < 1e-5


@pytest.mark.slow
def test_a_run_is_evaluated_by_class_and_is_the_same_again(tmp_path):
  run = debug_run("DDi, t = 0.1", **{"num_epochs": 20.0})
  summary = worst_class.train(run, tmp_path / "first")
  by_class = summary["by_class"]
  assert len(by_class) == 10
  assert summary["robust_accuracy"] == pytest.approx(np.mean(by_class), abs=1e-4)
  assert summary["worst_class"] == pytest.approx(min(by_class), abs=1e-4)
  assert summary["clean_accuracy"] > 0.3  # It learns.
  again = worst_class.train(run, tmp_path / "second")
  assert again | {"seconds": 0} == summary | {"seconds": 0}


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"batch_size": 64}, "config.batch_size must be a multiple of 10"),
    ({"model.normalization": "batch"}, "config.model.normalization must be none or"),
    ({"evaluation.test_limit": 4}, "the test set has none of class"),
  ],
)
def test_impossible_settings(tmp_path, changes, message):
  with pytest.raises(training.ConfigError, match=message):
    worst_class.train(debug_run(**changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("budget", configs.BUDGETS)
def test_every_run_of_every_budget_is_sound(budget):
  config = configs.get_config(budget)
  for setting in config.training:
    for arm in config.arms:
      run = worst_class.arm_run(config, setting, arm, 0.1, 3).config
      check_config(run)
      assert run.arm == arm
  with pytest.raises(ValueError, match="one of small, cifar10, debug; got 'x'"):
    configs.get_config("x")


def test_the_learning_rate_is_chosen_by_the_worst_class(tmp_path):
  config = configs.get_config("debug")
  found = {0.01: 0.2, 0.02: 0.4, 0.04: 0.3}
  runs = sweep.named(
    worst_class.arm_run(config, "digits", "AVG", rate, 0) for rate in found
  )
  for name, (_, run) in runs.items():
    (tmp_path / name).mkdir()
    worst = found[run.optimizer.learning_rate]
    summary = json.dumps({"validation_worst_class": worst})
    (tmp_path / name / "summary.json").write_text(summary)
  assert worst_class.best_learning_rates(runs, tmp_path) == {"AVG": 0.02}


def test_one_seed_has_no_deviation():
  assert comparison.mean_and_deviation(pd.Series([0.25])) == "0.250"
  assert comparison.mean_and_deviation(pd.Series([0.2, 0.4])) == "0.300 ± 0.141"


def test_tables_compare_with_the_best_baseline_by_seed():
  runs = pd.DataFrame(
    {
      "setting": "mnist",
      "arm": arm,
      "seed": seed,
      "learning_rate": 0.1,
      **dict.fromkeys(worst_class_results.FIELDS, worst + 0.01 * seed),
    }
    for arm, worst in {"AVG": 0.2, "DDi, t = 0.1": 0.5, "MAX": 0.1}.items()
    for seed in (1, 2)
  )
  ((_, table),) = worst_class_results.tables(runs)
  lines = table.splitlines()
  assert lines[0].endswith("| worst class - AVG |")
  assert lines[2].startswith("| DDi, t = 0.1 | 0.1 | 0.515 ± 0.007 |")
  assert lines[2].endswith("| +0.300 ± 0.000 |")
  (panel,) = worst_class_results.draw(runs).axes
  assert [line.get_label() for line in panel.lines] == ["DDi, t = 0.1", "AVG", "MAX"]
