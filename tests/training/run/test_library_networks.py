"""Networks of every library, with BatchNorm and Dropout, in the training program."""

from interrupted_runs import train_in_parts
import jax
import jax.numpy as jnp
from library_networks import FACTORIES
import numpy as np
from one_step import build
from program import small_config
import pytest

from ddi_jax import training

IMAGES = np.random.default_rng(0).integers(0, 17, (16, 8, 8, 1), np.uint8)
LABELS = np.arange(16, dtype=np.int32) % 10


def config_of(library, **changes):
  name = f"library_networks:{FACTORIES[library].__name__}"
  return small_config(**{"model.name": name, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("library", FACTORIES)
def test_it_is_trained_resumed_and_loaded(library, tmp_path, monkeypatch):
  config = config_of(library, num_epochs=1.5, **{"evaluation.every_epochs": 0.5})
  whole = training.train(config, tmp_path / "whole")
  assert whole["steps"] == 6
  parts = train_in_parts(config, tmp_path / "parts", monkeypatch)
  for summary in (whole, parts):
    del summary["seconds"]
  assert parts == whole
  images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
  logits, again = (
    training.load_model(tmp_path / name, "last", trusted=True)(images)
    for name in ("whole", "parts")
  )
  assert logits.shape == (4, 10)
  np.testing.assert_array_equal(logits, again)
  fresh = training.create_experiment(config, training.load_data(config))
  state = fresh.initial_state
  start, _ = fresh.apply(state.params, state.model_state, images, train=False)
  assert not np.allclose(start, logits)


def test_a_network_without_a_logit_for_every_class_is_refused(tmp_path):
  config = small_config(**{"model.name": "library_networks:two_classes"})
  message = (
    r"config.model.name 'library_networks:two_classes' must return logits \[B, 10\].*"
    r"got the shape \(2, 2\)"
  )
  with pytest.raises(training.ConfigError, match=message):
    training.train(config, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    {"attack.batch_norm": "train"},
    {"gradient.batch_norm": "eval"},
    {"gradients_at_a_time": 1},
    {"gradient.loss_keys": "shared"},
    {"method": "proximal"},
    {"method": "worst_restart", "attack.batch_norm": "train"},
    {"sources": ("uniform:2",), "attack.batch_norm": "train"},
  ],
  ids=lambda changes: ", ".join(map(str, changes.values())),
)
def test_every_way_through_a_step_has_a_key(changes):
  _, state, step = build(config_of("nnx", **changes))
  before = jax.tree.map(jnp.copy, state)
  for _ in range(2):
    state, metrics = step(state, IMAGES, LABELS)
  assert all(np.isfinite(value) for value in metrics.values())
  for part in ("params", "model_state"):
    pairs = zip(
      *(jax.tree.leaves(getattr(each, part)) for each in (state, before)), strict=True
    )
    assert all(not np.allclose(new, old) for new, old in pairs)
  assert step.num_programs() == 1


@pytest.mark.parametrize(("loss_keys", "count"), [("per_candidate", 3), ("shared", 1)])
def test_candidates_that_are_the_same_drop_differently_or_alike(loss_keys, count):
  config = config_of("nnx", **{"attack.epsilon": 0.0, "gradient.loss_keys": loss_keys})
  _, state, step = build(config)
  parts = step.experiment.parts
  candidates = jnp.broadcast_to(IMAGES / 16, (3, *IMAGES.shape))
  arguments = (state, candidates, jnp.asarray(LABELS), 0.1)
  losses = jax.jit(lambda key: parts.gradients(*arguments, key).losses)
  drawn, again, other = (losses(jax.random.key(seed)) for seed in (0, 0, 1))
  assert len(np.unique(drawn[:, 0])) == count
  np.testing.assert_array_equal(drawn, again)
  assert not np.allclose(drawn, other)


def test_what_is_no_network_is_refused(tmp_path, monkeypatch):
  (tmp_path / "no_network.py").write_text(
    "def network(image_shape, num_classes, *, rngs): return lambda x: x\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  config = small_config(**{"model.name": "no_network:network"})
  with pytest.raises(training.ConfigError, match="must make an nnx"):
    training.create_experiment(config, training.load_data(config))
