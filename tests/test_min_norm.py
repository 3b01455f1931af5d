"""The min-norm solver against exhaustive enumeration, and on hard inputs."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import min_norm_by_enumeration

import ddi_jax


@st.composite
def gradient_matrices(draw, max_size=8):
  """K x d matrices of many characters: correlated, rank-deficient, of mixed scales."""
  size = draw(st.integers(1, max_size))
  dimension = draw(st.integers(1, 10))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  gradients = rng.normal(size=(size, dimension))
  gradients += draw(st.sampled_from([0.0, 1.0, 10.0])) * rng.normal(size=dimension)
  gradients *= np.exp(
    draw(st.sampled_from([0.0, 0.5, 2.0])) * rng.normal(size=(size, 1))
  )
  if draw(st.booleans()):
    gradients[rng.integers(size)] = gradients[rng.integers(size)]
  if draw(st.booleans()) and draw(st.booleans()):
    gradients[rng.integers(size)] = 0
  return gradients


def assert_certified(solution, gram, tolerance):
  """Simplex, and the reported value and gap recomputed in float64."""
  weights = np.asarray(solution.weights, np.float64)
  gram = np.asarray(gram, np.float64)
  assert np.all(weights >= 0)
  np.testing.assert_allclose(weights.sum(), 1, atol=tolerance)
  product = gram @ weights
  value = weights @ product
  largest = gram.diagonal().max()
  np.testing.assert_allclose(
    solution.squared_norm, value, rtol=tolerance, atol=tolerance * largest
  )
  np.testing.assert_allclose(
    solution.gap, max(value - product.min(), 0), atol=tolerance * largest
  )


@hypothesis.settings(
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(gradients=gradient_matrices())
def test_matches_enumeration_in_float64(x64, gradients):
  gram = gradients @ gradients.T
  solution = ddi_jax.min_norm_weights(jnp.asarray(gram))
  value, _ = min_norm_by_enumeration(gram)
  largest = gram.diagonal().max()
  assert solution.squared_norm.dtype == jnp.float64
  np.testing.assert_allclose(
    solution.squared_norm, value, rtol=1e-8, atol=1e-12 * largest
  )
  assert_certified(solution, gram, 1e-12)


@hypothesis.given(gradients=gradient_matrices())
def test_matches_enumeration_in_float32(gradients):
  gram = (gradients @ gradients.T).astype(np.float32)
  solution = ddi_jax.min_norm_weights(jnp.asarray(gram))
  value, _ = min_norm_by_enumeration(gram)
  largest = gram.diagonal().max()
  np.testing.assert_allclose(
    solution.squared_norm, value, rtol=1e-5, atol=2e-6 * largest
  )
  assert_certified(solution, gram, 3e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_any_scale(scale):
  gram = np.array([[2.0, -0.5, 0.1], [-0.5, 1.0, 0.3], [0.1, 0.3, 4.0]], np.float32)
  expected = ddi_jax.min_norm_weights(jnp.asarray(gram))
  found = ddi_jax.min_norm_weights(jnp.asarray(gram * np.float32(scale)))
  np.testing.assert_allclose(found.weights, expected.weights, atol=1e-5)
  np.testing.assert_allclose(
    found.squared_norm, expected.squared_norm * scale, rtol=1e-5
  )


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64])
@pytest.mark.parametrize("cosine", [0.0, 0.9, 0.999, 0.99999])
def test_correlated_gradients_of_any_number(size, cosine):
  rng = np.random.default_rng(size)
  noise, common = rng.normal(size=(size, 500)), rng.normal(size=500)
  gradients = np.sqrt(cosine) * common + np.sqrt(1 - cosine) * noise
  gram = (gradients @ gradients.T).astype(np.float32)
  solution = ddi_jax.min_norm_weights(jnp.asarray(gram))
  rounding = 5e-7 * solution.weights @ np.abs(gram) @ solution.weights
  assert solution.gap <= max(1.1e-6 * solution.squared_norm, rounding)
  assert_certified(solution, gram, 3e-6)


def test_special_cases():
  ones = jnp.ones((4, 4))
  np.testing.assert_allclose(ddi_jax.min_norm_weights(ones).squared_norm, 1, rtol=1e-6)
  zero = ddi_jax.min_norm_weights(jnp.zeros((3, 3)))
  assert zero.squared_norm == 0
  assert zero.gap == 0
  np.testing.assert_allclose(zero.weights.sum(), 1)
  one_zero = ddi_jax.min_norm_weights(jnp.diag(jnp.array([1.0, 0.0, 2.0])))
  np.testing.assert_array_equal(one_zero.weights, [0, 1, 0])
  single = ddi_jax.min_norm_weights(jnp.array([[5.0]]))
  assert (single.weights[0], single.squared_norm, single.gap) == (1, 5, 0)


def test_norms_that_differ_by_orders_of_magnitude(x64):
  """Projected gradient alone is off by 6e-6 after 10,000 iterations."""
  rng = np.random.default_rng(0)
  for scales in (1.0, 2.0, 3.0):
    for _ in range(10):
      gradients = np.exp(scales * rng.normal(size=(6, 1))) * rng.normal(size=(6, 8))
      solution = ddi_jax.min_norm_weights(jnp.asarray(gradients @ gradients.T))
      assert solution.gap <= 1e-11 * solution.squared_norm


def test_origin_in_the_hull():
  gradients = np.array([[1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
  solution = ddi_jax.min_norm_weights(jnp.asarray(gradients @ gradients.T))
  np.testing.assert_allclose(solution.weights @ gradients, 0, atol=1e-5)


@pytest.mark.parametrize("size", [2, 10, 64])
def test_rounding_does_not_keep_it_busy(size):
  """Conflict leaves rounding in the gap that no further iteration takes away."""
  rng = np.random.default_rng(size)
  gradients = rng.normal(size=(size, max(3, size))).astype(np.float32)
  gradients[1] = 0.01 * gradients[1] - gradients[0]
  solution = ddi_jax.min_norm_weights(jnp.asarray(gradients @ gradients.T))
  assert solution.iterations < 1000


def test_gap_is_honest_when_stopped_early():
  gram = jnp.diag(jnp.logspace(0, 4, 6))
  solution = ddi_jax.min_norm_weights(gram, max_iterations=1)
  assert solution.iterations == 1
  assert solution.gap > 1e-3 * solution.squared_norm
  value, _ = min_norm_by_enumeration(gram)
  assert solution.squared_norm - 2 * solution.gap <= value <= solution.squared_norm


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("entry", [(0, 0), (0, 1), (2, 2)])
def test_not_finite_is_visible(bad, entry):
  gram = np.eye(3, dtype=np.float32)
  gram[entry] = gram[entry[::-1]] = bad
  solution = ddi_jax.min_norm_weights(jnp.asarray(gram))
  assert np.all(np.isnan(solution.weights))


def test_batched_by_vmap():
  rng = np.random.default_rng(0)
  gradients = rng.normal(size=(20, 5, 7)).astype(np.float32)
  grams = jnp.asarray(gradients @ gradients.transpose(0, 2, 1))
  together = jax.vmap(ddi_jax.min_norm_weights)(grams)
  for index, gram in enumerate(grams):
    alone = ddi_jax.min_norm_weights(gram)
    np.testing.assert_allclose(
      together.squared_norm[index], alone.squared_norm, rtol=1e-5
    )


def test_bad_input():
  with pytest.raises(ValueError, match=r"\[K, K\] with K >= 1"):
    ddi_jax.min_norm_weights(jnp.ones((2, 3)))
  with pytest.raises(ValueError, match=r"\[K, K\] with K >= 1"):
    ddi_jax.min_norm_weights(jnp.ones((0, 0)))
  with pytest.raises(ValueError, match="floating point, got int32"):
    ddi_jax.min_norm_weights(jnp.ones((2, 2), int))


def test_half_precision_is_widened():
  solution = ddi_jax.min_norm_weights(jnp.eye(2, dtype=jnp.bfloat16))
  assert solution.weights.dtype == jnp.float32
