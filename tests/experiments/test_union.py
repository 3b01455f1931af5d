"""The experiment on unions: equal compute, and every run's method by its name."""

import pytest

from ddi_jax import training
from ddi_jax.training.config import check_config
from experiments import union
from experiments.configs import union as union_config


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
  # Losses, then 8 iterations after the first vertex: a gradient, two passes forward.
  assert counted["proximal"] == 3 * 30 + 3 + 9 * (3 + 6)
