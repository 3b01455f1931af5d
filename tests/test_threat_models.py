"""Threat models against brute force, scipy and each other."""

import functools

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import ddi_jax

MAKERS = {"linf": ddi_jax.linf, "l2": ddi_jax.l2, "l1": ddi_jax.l1}
NORM_ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
EPSILONS = {"linf": 0.3, "l2": 1.1, "l1": 2.5}
BOX = (0.0, 1.0)


@functools.partial(jax.jit, static_argnames=("norm", "bounds"))
def project(norm, epsilon, points, centers, bounds):
  return MAKERS[norm](epsilon).project(points, centers, bounds)


def random_case(seed, batch=8, size=12):
  rng = np.random.default_rng(seed)
  centers = rng.uniform(size=(batch, size)).astype(np.float32)
  # Some coordinates on the box's walls, as in real images.
  centers = np.where(rng.uniform(size=centers.shape) < 0.3, np.round(centers), centers)
  scale = 10 ** rng.uniform(-1.5, 1.5, size=(batch, 1))
  points = centers + scale * rng.normal(size=centers.shape)
  return jnp.asarray(points, jnp.float32), jnp.asarray(centers, jnp.float32)


def norms(perturbations, norm):
  return np.linalg.norm(
    np.asarray(perturbations).reshape(len(perturbations), -1), NORM_ORDERS[norm], axis=1
  )


def reference_projection(point, center, norm, epsilon, bounds):
  """The same in float64, by scipy, on the KKT system's one unknown multiplier."""
  point, center = np.asarray(point, float), np.asarray(center, float)
  low, high = bounds if bounds else (-np.inf, np.inf)
  difference = point - center

  def candidate(multiplier):
    if norm == "linf":
      return np.clip(np.clip(point, center - epsilon, center + epsilon), low, high)
    if norm == "l2":
      return np.clip(center + difference / (1 + multiplier), low, high)
    shrunk = np.sign(difference) * np.maximum(np.abs(difference) - multiplier, 0)
    return np.clip(center + shrunk, low, high)

  def excess(multiplier):
    order = NORM_ORDERS[norm]
    return np.linalg.norm(candidate(multiplier) - center, order) - epsilon

  if norm == "linf" or excess(0.0) <= 0:
    return candidate(0.0)
  root = scipy.optimize.brentq(excess, 0, 1e6, xtol=1e-14, rtol=1e-14)
  return candidate(root)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [BOX, None])
@pytest.mark.parametrize("norm", MAKERS)
@hypothesis.given(seed=st.integers(0, 10**6))
def test_projection_matches_reference(norm, bounds, seed):
  points, centers = random_case(seed)
  projected = project(norm, EPSILONS[norm], points, centers, bounds)
  for found, point, center in zip(projected, points, centers, strict=True):
    expected = reference_projection(point, center, norm, EPSILONS[norm], bounds)
    np.testing.assert_allclose(found, expected, atol=3e-6 * (1 + np.abs(point).max()))


@pytest.mark.slow
@pytest.mark.parametrize("norm", MAKERS)
def test_projection_matches_general_purpose_solver(norm):
  points, centers = random_case(0, batch=3, size=4)
  epsilon = EPSILONS[norm] / 2
  projected = MAKERS[norm](epsilon).project(points, centers, BOX)
  order = NORM_ORDERS[norm]
  points, centers = np.asarray(points, float), np.asarray(centers, float)
  # l1 and linf constraints are made smooth by splitting changes into two parts.
  for found, point, center in zip(projected, points, centers, strict=True):

    def objective(parts, point=point, center=center):
      return np.sum((center + parts[:4] - parts[4:] - point) ** 2)

    def room(parts):
      moved = parts[:4] + parts[4:]
      if order == 2:
        return np.array([epsilon**2 - np.sum((parts[:4] - parts[4:]) ** 2)])
      return epsilon - moved if order == np.inf else np.array([epsilon - moved.sum()])

    result = scipy.optimize.minimize(
      objective,
      np.full(8, 1e-3),
      bounds=[(0, 1 - c) for c in center] + [(0, c) for c in center],
      constraints={"type": "ineq", "fun": room},
      method="SLSQP",
      options={"ftol": 1e-14, "maxiter": 500},
    )
    expected = center + result.x[:4] - result.x[4:]
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [BOX, None])
@pytest.mark.parametrize("norm", MAKERS)
@hypothesis.given(seed=st.integers(0, 10**6), epsilon=st.floats(0, 5))
def test_projection_is_feasible_and_idempotent(norm, bounds, seed, epsilon):
  points, centers = random_case(seed)
  projected = project(norm, epsilon, points, centers, bounds)
  assert np.all(norms(projected - centers, norm) <= epsilon * (1 + 1e-5) + 1e-6)
  if bounds:
    assert projected.min() >= 0
    assert projected.max() <= 1
  again = project(norm, epsilon, projected, centers, bounds)
  np.testing.assert_allclose(again, projected, atol=3e-6 * (1 + epsilon))


@pytest.mark.slow
@pytest.mark.parametrize("norm", MAKERS)
def test_zero_radius_is_the_center(norm):
  threat_model = MAKERS[norm](0.0)
  points, centers = random_case(1)
  np.testing.assert_array_equal(threat_model.project(points, centers, BOX), centers)
  start = threat_model.random_start(jax.random.key(0), centers, BOX)
  np.testing.assert_array_equal(start, centers)


@pytest.mark.slow
@pytest.mark.parametrize("norm", MAKERS)
def test_any_trailing_shape_and_size(norm):
  threat_model = MAKERS[norm](EPSILONS[norm])
  points, centers = random_case(2, size=12)
  flat = threat_model.project(points, centers, BOX)
  folded = threat_model.project(
    points.reshape(8, 2, 3, 2), centers.reshape(8, 2, 3, 2), BOX
  )
  np.testing.assert_allclose(folded.reshape(8, 12), flat, atol=1e-6)
  np.testing.assert_allclose(
    threat_model.size((points - centers).reshape(8, 3, 4)),
    norms(points - centers, norm),
    rtol=1e-5,
  )


@pytest.mark.slow
@pytest.mark.parametrize("norm", MAKERS)
def test_random_start_fills_the_ball(norm):
  threat_model = MAKERS[norm](EPSILONS[norm])
  centers = jnp.full((4000, 3), 0.5)
  starts = threat_model.random_start(jax.random.key(0), centers, None)
  sizes = norms(starts - centers, norm) / EPSILONS[norm]
  assert sizes.max() <= 1 + 1e-6
  # In a ball of dimension 3 uniform points have a norm with distribution r^3.
  fractions = [(sizes < radius).mean() for radius in (0.5, 0.8, 0.95)]
  np.testing.assert_allclose(fractions, [0.5**3, 0.8**3, 0.95**3], atol=0.03)
  np.testing.assert_allclose((starts - centers).mean(0), 0, atol=0.05)
  boxed = threat_model.random_start(jax.random.key(0), centers, BOX)
  assert boxed.min() >= 0
  assert boxed.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("norm", MAKERS)
@hypothesis.given(seed=st.integers(0, 10**6))
def test_steepest_ascent_is_the_dual_norm(norm, seed):
  threat_model = MAKERS[norm](1.0) if norm != "l1" else ddi_jax.l1(1.0, top_fraction=0)
  gradients = jnp.asarray(np.random.default_rng(seed).normal(size=(5, 7)), jnp.float32)
  steps = threat_model.steepest_ascent(gradients, jnp.zeros((5, 7)), None)
  np.testing.assert_allclose(norms(steps, norm), 1, rtol=1e-5)
  dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
  np.testing.assert_allclose(
    jnp.sum(gradients * steps, axis=1),
    np.linalg.norm(gradients, dual, axis=1),
    rtol=1e-5,
  )


@pytest.mark.slow
@pytest.mark.parametrize("norm", MAKERS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_steepest_ascent_at_any_scale(norm, scale):
  gradients = scale * jnp.array([[1.0, -2.0, 0.5]])
  steps = MAKERS[norm](1.0).steepest_ascent(gradients, jnp.full((1, 3), 0.5), BOX)
  np.testing.assert_allclose(norms(steps, norm), 1.0 if scale else 0.0, rtol=1e-5)


def test_l1_steps_where_the_box_allows():
  gradients = jnp.array([[5.0, -4.0, 3.0, 1.0]])
  points = jnp.array([[1.0, 0.0, 0.5, 0.5]])
  threat_model = ddi_jax.l1(1.0, top_fraction=0)
  steps = threat_model.steepest_ascent(gradients, points, BOX)
  np.testing.assert_array_equal(steps, [[0, 0, 1, 0]])
  shared = ddi_jax.l1(1.0, top_fraction=0.5).steepest_ascent(gradients, points, None)
  np.testing.assert_array_equal(shared, [[0.5, -0.5, 0, 0]])


@pytest.mark.parametrize("norm", MAKERS)
@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf"), [0.1, 0.2], "x"])
def test_bad_radius_is_refused(norm, epsilon):
  with pytest.raises(ValueError, match="epsilon must be a finite number >= 0"):
    MAKERS[norm](epsilon)


def test_bad_fraction_is_refused():
  with pytest.raises(ValueError, match="top_fraction"):
    ddi_jax.l1(1.0, top_fraction=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("norm", MAKERS)
def test_radius_can_be_traced(norm):
  points, centers = random_case(3)
  expected = MAKERS[norm](0.7).project(points, centers, BOX)
  traced = project(norm, jnp.float32(0.7), points, centers, BOX)
  np.testing.assert_allclose(traced, expected, atol=2e-6)
