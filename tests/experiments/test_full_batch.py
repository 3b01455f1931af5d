"""The full-batch experiment: its losses, its budget, its choice, its table."""

import sys

import jax
import numpy as np
import pandas as pd
import pytest

from ddi_jax import losses
from experiments import full_batch

class_losses = jax.jit(full_batch.class_losses)
class_gradients = jax.jit(full_batch.class_gradients)
jacobian_of = jax.jit(jax.jacrev(full_batch.class_losses))

CONVEX, MLP = full_batch.NETS
BUDGET = 100  # of all tests that train: what is compiled for one serves the others
RATE_AND_PARAMETER = {
  "mean loss": (0.1, None),
  "group DRO": (0.1, 0.1),
  "DDi": (0.01, None),
  "DDi bundle": (0.1, 10.0),
  "minimax": (None, None),
}


def start_of(net, seed=1):
  """Initial parameters, and the images for training."""
  params = full_batch.initial_params(full_batch.NETS[net], seed)
  return params, full_batch.load_images(seed)[0]


def test_images_are_split_by_class_and_scaled():
  train, test = full_batch.load_images(1)
  assert train.shape == test.shape == (10, 87, 64)
  assert not (train[:, :, None] == test[:, None]).all(axis=-1).any()
  # The corner is always white: what is there is the noise.
  assert np.std(train[..., 0]) == pytest.approx(full_batch.NOISE, rel=0.1)
  np.testing.assert_array_equal(train, full_batch.load_images(1)[0])
  assert (train != full_batch.load_images(2)[0]).any()


@pytest.mark.slow
@pytest.mark.parametrize(("net", "size"), [(CONVEX, 650), (MLP, 4810)])
def test_losses_and_gradients_are_those_of_the_classes(net, size):
  params, images = start_of(net)
  assert sum(layer.size for layer in params) == size
  values, gradients = class_gradients(params, images)
  logits = full_batch.logits_of(params, images[3])
  squares = sum(float((layer**2).sum()) for layer in params)
  expected = losses.cross_entropy(logits, np.full(87, 3)).mean() + 5e-4 * squares
  assert values[3] == pytest.approx(float(expected), rel=1e-5)
  np.testing.assert_allclose(class_losses(params, images), values, rtol=1e-5)
  jacobian = jacobian_of(params, images)
  for found, known in zip(gradients, jacobian, strict=True):
    np.testing.assert_allclose(found, known, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1, 5, 20])
def test_minimax_stays_within_its_budget(budget):
  params, images = start_of(CONVEX)
  before = class_losses(params, images).max()
  trained, cost, _ = full_batch.train_with_minimax(params, images, budget)
  assert cost <= budget
  if budget == 1:  # Its first step costs more.
    assert cost == 0
    jax.tree.map(np.testing.assert_array_equal, trained, params)
  else:
    assert class_losses(trained, images).max() < before
    assert cost > budget / 2  # It stops for no other reason.


@pytest.mark.slow
@pytest.mark.parametrize("net", full_batch.NETS)
def test_methods_reduce_the_greatest_loss(net):
  before = class_losses(*start_of(net)).max()
  for method in ("mean loss", "minimax"):
    row = full_batch.run(net, method, RATE_AND_PARAMETER[method], 1, BUDGET)
    assert row["train_loss"] < before / 2
    assert row["train_worst_class"] > 0.6
    assert 0 <= row["test_worst_class"] <= row["test_accuracy"] <= 1


@pytest.mark.slow
def test_nothing_is_below_minimax_where_the_problem_is_convex():
  values = {
    method: full_batch.run(CONVEX, method, setting, 1, BUDGET)
    for method, setting in RATE_AND_PARAMETER.items()
  }
  minimax = values.pop("minimax")
  assert minimax["cost"] < BUDGET  # It has converged.
  assert minimax["gap"] < 1e-4 * minimax["train_loss"]
  for row in values.values():
    assert row["cost"] == row["budget"] == BUDGET
    assert np.isnan(row["gap"])
    assert row["train_loss"] > (1 - 1e-4) * minimax["train_loss"]


def test_the_best_setting_of_the_sweep_goes_to_the_other_seeds(monkeypatch):
  """The least greatest training loss, and never one that is not a number."""
  found = {0.1: 0.4, 0.2: 0.3, 0.3: np.nan}

  def run(net, method, setting, seed, budget):
    loss = found.get(setting[0], 0.5)
    return {"method": method, "setting": setting, "seed": seed, "train_loss": loss}

  monkeypatch.setattr(full_batch, "run", run)
  monkeypatch.setattr(full_batch, "LEARNING_RATES", tuple(found))
  rows = list(full_batch.run_all(CONVEX, 5))
  compared = [row for row in rows if row["seed"]]
  assert len(rows) - len(compared) == 3 * (1 + 5 + 1 + 5) + 1
  assert {row["seed"] for row in compared} == {1, 2, 3}
  assert {row["setting"][0] for row in compared} == {0.2, None}


@pytest.mark.slow
def test_the_command_writes_the_runs_and_prints_a_table(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(full_batch, "NETS", {CONVEX: (64, 10)})
  monkeypatch.setattr(full_batch, "LEARNING_RATES", (0.1,))
  monkeypatch.setattr(
    full_batch, "PARAMETERS", {"group DRO": (0.1,), "DDi bundle": (1.0,)}
  )
  arguments = ["full_batch", f"--output={tmp_path}", "--steps", str(BUDGET)]
  monkeypatch.setattr(sys, "argv", arguments)
  full_batch.main()
  runs = pd.read_csv(tmp_path / "full_batch-runs.csv")
  assert len(runs) == 5 * 4
  assert {"net", "method", "learning_rate", "parameter", "seed", "budget"} <= set(runs)
  assert {*full_batch.FIELDS, "cost", "gap", "commit", "versions"} <= set(runs)
  assert (runs["cost"] <= runs["budget"]).all()
  printed = capsys.readouterr().out
  assert f"{CONVEX}, a budget of {BUDGET} gradient sets" in printed
  for method in RATE_AND_PARAMETER:
    assert printed.count(f"\n| {method} |") == 1
