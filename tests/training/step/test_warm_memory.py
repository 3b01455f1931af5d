"""Attacks that go on where the last epoch's ended, in the training program."""

from interrupted_runs import train_in_parts
import jax
import jax.numpy as jnp
import numpy as np
import one_step
from program import small_config
import pytest

from ddi_jax import data, models, training
from ddi_jax.training.settings.check import check_config
from ddi_jax.training.step import warm_memory

IMAGES = np.random.default_rng(0).integers(1, 17, (6, 8, 8, 1), np.uint8)
LABELS = np.arange(6, dtype=np.int32)
PLACES = np.array([8, 2, 5, 0, 1, 9])
# What the steps change is the memory: the parameters stay where they are.
STILL = {"optimizer.learning_rate": 1e-20, "optimizer.momentum": 0.0}


def build(**changes):
  """The state, with a memory of twelve images, and the step."""
  config = small_config(
    **({"method": "worst_restart", "sources": ("warm:2",), "batch_size": 6} | changes)
  )
  check_config(config)
  _, state, step = one_step.build(config, steps_per_epoch=2)
  return state, step


def losses_of(state, step, times):
  losses = []
  for _ in range(times):
    state, metrics = step(state, IMAGES, LABELS, PLACES)
    losses.append(float(metrics["loss"]))
  return state, losses


@pytest.mark.slow
def test_each_image_remembers_its_own_moves():
  state, step = build(**STILL)
  state, (first,) = losses_of(state, step, 1)
  assert state.memory.shape == (12, 2, 8, 8, 1)
  moves = np.asarray(state.memory, np.float32)
  seen = np.abs(moves).max(axis=(2, 3, 4)) > 0
  assert seen[PLACES].all() and not seen[[3, 4, 6, 7, 10, 11]].any()
  assert np.abs(moves).max() <= 0.1 + 1e-4
  assert np.any(moves[:, 0] != moves[:, 1])  # Of two random starts.
  points = IMAGES / 16 + moves[PLACES, 0]
  assert points.min() >= -1e-4 and points.max() <= 1 + 1e-4
  state, (second,) = losses_of(state, step, 1)
  assert second > first


@pytest.mark.slow
@pytest.mark.parametrize("sources", [("warm",), ("uniform", "warm", "linf")])
def test_steps_add_up_over_epochs(sources):
  """Four visits of one step each do what four steps of an attack do."""
  visits = {"attack.step_size": 0.03, "warm.steps": 1, "sources": sources}
  state, step = build(**STILL, **visits)
  *_, before, once, again = losses_of(state, step, 6)[1]
  assert before <= once <= again
  state, long = build(**STILL, **(visits | {"warm.steps": 6}))
  _, (at_once,) = losses_of(state, long, 1)
  assert again == pytest.approx(at_once, rel=0.01)


@pytest.mark.slow
def test_moves_follow_an_image_through_crop_and_mirror():
  """As if an attack had moved each pixel by its own brightness."""
  config = small_config(sources=("warm:2",), **{"data.pad": 2, "data.flip": True})
  key, epoch = jax.random.key(0), jnp.array(0)
  empty = warm_memory.create_memory(config, 10, (8, 8, 1))
  images = jnp.asarray(IMAGES / 16, jnp.float32)
  seen = data.pad_crop_flip(key, images, pad=2, flip=True)
  perturbations = jnp.stack([seen, 2 * seen])
  memory = warm_memory.remember(config, empty, PLACES, epoch, key, perturbations)
  of_images = np.asarray(memory[PLACES, 0], np.float32)
  covered = of_images != 0
  np.testing.assert_allclose(of_images[covered], images[covered], rtol=1e-3)
  np.testing.assert_allclose(covered.sum(axis=(1, 2, 3)), (seen != 0).sum((1, 2, 3)))
  np.testing.assert_array_equal(memory[:, 1], 2 * memory[:, 0])
  again = warm_memory.recall(config, memory, PLACES, epoch, key)
  np.testing.assert_allclose(again, perturbations, rtol=1e-3)
  # What another crop does not reach is kept.
  sevens = jnp.full_like(perturbations, 7)
  other = jax.random.key(1)
  later = warm_memory.remember(config, memory, PLACES, epoch, other, sevens)
  assert np.all((later == 7) | (later == memory))
  assert np.any(later[PLACES] == 7) and np.any(later[PLACES] != 7)


@pytest.mark.slow
def test_memory_is_forgotten_at_the_start_of_an_epoch():
  """Two steps an epoch, every second epoch anew: the steps 0, 1, 4, 5, 8, 9."""
  settings = STILL | {"attack.step_size": 0.03, "warm.steps": 1, "sources": ("warm",)}
  state, step = build(**settings, **{"warm.reset_epochs": 2})
  _, losses = losses_of(state, step, 10)
  anew, continued = np.array(losses)[[0, 1, 4, 5, 8, 9]], np.array(losses)[[3, 7]]
  assert anew.max() < continued.min()


def test_the_step_asks_for_memory_and_indices():
  state, step = build()
  with pytest.raises(ValueError, match="needs the indices of the batch, got None"):
    step(state, IMAGES, LABELS)
  with pytest.raises(ValueError, match=r"needs state\.memory from"):
    step(state._replace(memory=()), IMAGES, LABELS, PLACES)


@pytest.mark.slow
def test_an_interrupted_run_remembers(tmp_path, monkeypatch):
  config = small_config(
    sources=("warm:1", "uniform:1"), **{"warm.steps": 1, "data.pad": 1}
  )

  whole = training.train(config, tmp_path / "whole")
  parts = train_in_parts(config, tmp_path / "parts", monkeypatch, stop_at=8)
  for summary in (whole, parts):
    del summary["seconds"]
  assert parts == whole
  # A model is read without the memory.
  first, second = (
    jax.tree.leaves(models.functional(training.load_model(tmp_path / name))[1])
    for name in ("whole", "parts")
  )
  jax.tree.map(np.testing.assert_array_equal, first, second)
