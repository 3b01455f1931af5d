"""The calibrated temperature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

import ddi_jax


def examples(count=200, classes=5, noise=1.5, seed=0):
  """(logits, labels) of a model that is often right."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(classes, size=count)
  logits = noise * rng.normal(size=(count, classes)) + 3 * np.eye(classes)[labels]
  return jnp.asarray(logits, jnp.float32), jnp.asarray(labels)


def objective(temperature, logits, labels):
  """What the docstring promises to minimise, in double precision."""
  log_p = special.log_softmax(np.asarray(logits, np.float64) / temperature, axis=1)
  return -log_p[np.arange(len(labels)), labels].sum() - log_p.mean()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scale", [0.2, 30.0])
def test_minimises_the_cross_entropy(seed, scale):
  logits, labels = examples(seed=seed)
  found = float(ddi_jax.calibrate_temperature(scale * logits, labels))
  best = optimize.minimize_scalar(
    lambda log_t: objective(np.exp(log_t), scale * logits, labels),
    bounds=(np.log(1e-3), np.log(1e3)),
    method="bounded",
    options={"xatol": 1e-10},
  )
  assert found == pytest.approx(np.exp(best.x), rel=1e-4)


def test_scaling_the_logits_scales_the_temperature():
  logits, labels = examples()
  one = ddi_jax.calibrate_temperature(logits, labels)
  for scale in (1e-20, 1e-3, 1e4, 1e20):
    scaled = ddi_jax.calibrate_temperature(scale * logits, labels)
    np.testing.assert_allclose(scaled, scale * one, rtol=1e-5)
  shifted = ddi_jax.calibrate_temperature(logits + 7, labels)
  np.testing.assert_allclose(shifted, one, rtol=1e-4)


def test_all_examples_right_gives_a_temperature_too():
  logits = 100 * jnp.eye(10)
  temperature = ddi_jax.calibrate_temperature(logits, jnp.arange(10))
  confidence = jax.nn.softmax(logits / temperature).max(axis=1)
  # The one example of the prior: of 11 right in all, each class is in it by a tenth.
  np.testing.assert_allclose(confidence, (10 + 0.1) / 11, rtol=1e-4)


def test_examples_that_are_not_finite_are_left_out():
  logits, labels = examples()
  expected = ddi_jax.calibrate_temperature(logits, labels)
  for bad in (jnp.nan, jnp.inf):
    more = jnp.concatenate([logits, logits[:3].at[:, 2].set(bad)])
    found = ddi_jax.calibrate_temperature(more, jnp.concatenate([labels, labels[:3]]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
  impossible = logits.at[0, labels[0]].set(-jnp.inf)
  found = ddi_jax.calibrate_temperature(impossible, labels)
  without = ddi_jax.calibrate_temperature(logits[1:], labels[1:])
  np.testing.assert_allclose(found, without, rtol=1e-5)


def test_a_class_that_is_masked_does_not_exist():
  logits, labels = examples()
  masked = jnp.concatenate([logits, jnp.full((200, 1), -jnp.inf)], axis=1)
  found = ddi_jax.calibrate_temperature(masked, labels)
  expected = ddi_jax.calibrate_temperature(logits, labels)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_models_that_know_nothing():
  _, labels = examples()
  assert float(ddi_jax.calibrate_temperature(jnp.ones((200, 5)), labels)) == 1
  broken = jnp.ones((200, 5)).at[0, 0].set(jnp.nan)
  assert float(ddi_jax.calibrate_temperature(broken, labels)) == 1
  wrong = 5 * jax.nn.one_hot((labels + 1) % 5, 5)
  assert float(ddi_jax.calibrate_temperature(wrong, labels)) > 1e6
