"""FAB: the distance to the decision boundary."""

import jax
import jax.numpy as jnp
from linear_model import (
  EPSILONS,
  KEY,
  MAKERS,
  assert_inside,
  compiled,
  is_right,
  problem,
)
import numpy as np
import pytest

import ddi_jax
from ddi_jax import losses
from ddi_jax.attacks import fab
from ddi_jax.attacks.hyperplane import displacement

FAR = 1e3  # A radius that everything is in.


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "targets"), [(n, 9) for n in MAKERS] + [("l2", None)])
def test_finds_the_distance_of_a_linear_model(norm, targets):
  p = problem()
  attack = compiled(fab, norm, steps=40, targets=targets)
  found = attack(FAR, KEY, p.logits_fn, p.inputs, p.labels)
  assert not is_right(p.logits_fn, found, p.labels).any()
  assert found.min() >= 0
  assert found.max() <= 1
  sizes = MAKERS[norm](FAR).size(found - p.inputs)
  np.testing.assert_allclose(sizes, p.distances(norm), rtol=1e-4, atol=2e-5)
  # Beyond the boundary by more than rounding.
  assert losses.margin(p.logits_fn(found), p.labels).min() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("norm", MAKERS)
def test_finds_the_distance_where_the_box_is_in_the_way(norm):
  p = problem()
  # Near the corners, so that many coordinates can only move one way.
  inputs = jnp.where(p.inputs > 0.5, 0.98, 0.02)
  logits = p.logits_fn(inputs)
  labels = jnp.argmax(logits, axis=1)
  size = MAKERS[norm](FAR).size
  attack = compiled(fab, norm, steps=40, targets=9)
  found = attack(FAR, KEY, p.logits_fn, inputs, labels)
  least = np.full(16, np.inf)
  for rival in range(5):
    normals = (p.weights[:, rival][:, None] - p.weights[:, labels]).T
    values = logits[:, rival] - logits[jnp.arange(16), labels]
    moves = displacement(norm, inputs, normals, values, (0.0, 1.0))
    reached = np.abs(values + jnp.sum(normals * moves, axis=1)) < 1e-4
    least = np.where(reached & (labels != rival), np.minimum(size(moves), least), least)
  assert np.isfinite(least).all()
  np.testing.assert_allclose(size(found - inputs), least, rtol=5e-3, atol=1e-5)


@pytest.mark.parametrize("norm", MAKERS)
def test_returns_what_is_in_the_ball_and_else_the_input(norm):
  p = problem()
  epsilon = EPSILONS[norm]
  attack = compiled(fab, norm, steps=40, targets=9)
  found = attack(epsilon, KEY, p.logits_fn, p.inputs, p.labels)
  assert_inside(MAKERS[norm](epsilon), found, p.inputs)
  robust = p.distances(norm) > epsilon
  np.testing.assert_array_equal(is_right(p.logits_fn, found, p.labels), robust)
  np.testing.assert_array_equal(found[robust], p.inputs[robust])


def test_misclassified_inputs_are_returned():
  p = problem()
  attack = compiled(fab, "linf", steps=40, targets=9)
  found = attack(FAR, KEY, p.logits_fn, p.inputs, (p.labels + 1) % 5)
  np.testing.assert_array_equal(found, p.inputs)


def bumpy(weights, x):
  return jnp.sin(9 * x) @ weights


def test_restarts_only_shorten():
  p = problem()
  model = jax.tree_util.Partial(bumpy, p.weights)
  labels = jnp.argmax(model(p.inputs), axis=1)

  def sizes(**settings):
    attack = compiled(fab, "l2", steps=40, targets=9, **settings)
    found = attack(FAR, KEY, model, p.inputs, labels)
    assert not is_right(model, found, labels).any()
    return np.linalg.norm(found - p.inputs, axis=1)

  once, often = sizes(), sizes(restarts=3)
  assert np.all(often <= once * (1 + 1e-4))
  assert np.any(often < once)


@pytest.mark.parametrize("targets", [9, None])
def test_a_constant_model_is_left_alone(targets):
  p = problem()._replace(weights=jnp.zeros((10, 5)))
  attack = compiled(fab, "l2", steps=40, targets=targets)
  found = attack(0.5, KEY, p.logits_fn, p.inputs, jnp.zeros(16, int))
  np.testing.assert_array_equal(found, p.inputs)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_logits_of_any_scale(scale):
  p = problem()
  scaled = jax.tree_util.Partial(p.logits_fn.func, scale * p.weights)
  attack = compiled(fab, "l2", steps=40, targets=9)
  found = attack(FAR, KEY, scaled, p.inputs, p.labels)
  sizes = np.linalg.norm(found - p.inputs, axis=1)
  np.testing.assert_allclose(sizes, p.distances("l2"), rtol=1e-4, atol=1e-5)
  assert np.all(losses.margin(scaled(found), p.labels) >= 0)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"steps": 0}, "steps must be an integer >= 1"),
    ({"restarts": True}, "restarts must be an integer >= 1"),
    ({"targets": 0}, "targets must be an integer >= 1"),
    ({"eta": 0.9}, "eta must be a finite number >= 1, got 0.9"),
    ({"beta": 1.0}, r"beta must be in \(0, 1\), got 1.0"),
    ({"alpha_max": -1}, "alpha_max must be in"),
  ],
)
def test_bad_settings_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    fab(ddi_jax.linf(0.1), **change)
