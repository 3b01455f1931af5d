"""A direction from a rule for its weights: what is given, and what is promised."""

import chex
from gradient_trees import PARAMS, as_matrix, as_vector, combine, random_gradients
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax
from ddi_jax import Weights, weighted_direction

LOSSES = jnp.array([0.3, 1.2, 0.1, 0.8])
CONFLICT = {"w": jnp.array([[1.0, 0.0], [-3.0, 0.1]])}


def by_loss(inputs):
  return jax.nn.softmax(inputs.losses)


class WeightsAlone(chex.TestCase):
  """A rule that returns `[K]`, in a program and outside of one."""

  @chex.variants(with_jit=True, without_jit=True)
  def test_the_direction_is_the_weighted_sum_of_the_gradients(self):
    for normalize in (False, True):
      update = self.variant(weighted_direction(by_loss, normalize=normalize).update)
      gradients = random_gradients(4)
      direction, state = update(gradients, None, PARAMS, losses=LOSSES)
      expected = np.asarray(jax.nn.softmax(LOSSES), float) @ as_matrix(gradients)
      norm = np.linalg.norm(expected)
      np.testing.assert_allclose(state.norm, norm, rtol=1e-5)
      chex.assert_trees_all_equal_shapes_and_dtypes(direction, PARAMS)
      expected = expected / norm if normalize else expected
      np.testing.assert_allclose(as_vector(direction), expected, rtol=1e-4, atol=1e-6)
      assert state.support == 4

  @chex.variants(with_jit=True, without_jit=True)
  def test_nothing_is_promised(self):
    """Not even that a step along it descends on all."""

    def uniform(inputs):
      return jnp.full(len(inputs.gram), 0.5)

    update = self.variant(weighted_direction(uniform).update)
    direction, state = update(CONFLICT, None)
    np.testing.assert_allclose(direction["w"], [-1.0, 0.05], rtol=1e-6)
    assert state.gap > 1  # It is no descent direction of the first.


def test_any_weights_will_do():
  """Negative, more than 1 in sum; of NumPy."""
  gradients = random_gradients(4)
  weights = np.array([2.0, -1.0, 0.0, 0.5], np.float32)
  direction, _ = combine(weighted_direction(lambda inputs: weights), gradients)
  expected = weights @ as_matrix(gradients)
  np.testing.assert_allclose(as_vector(direction), expected, rtol=1e-4, atol=1e-5)


def test_a_rule_sees_the_inner_products_the_losses_and_the_key():
  seen = []

  def rule(inputs):
    seen.append(inputs)
    return jnp.ones(4)

  transformation = weighted_direction(rule)
  gradients = random_gradients(2)
  transformation.update(gradients, None)
  key = jax.random.key(3)
  transformation.update(gradients, None, losses=LOSSES, key=key, unknown="swallowed")
  without, given = seen
  assert isinstance(given, ddi_jax.WeightingInput)
  matrix = as_matrix(gradients)
  exact = matrix @ matrix.T
  for inputs in seen:
    chex.assert_shape([inputs.gram, inputs.inner.differences], (4, 4))
    np.testing.assert_array_equal(inputs.gram, inputs.inner.matrix())
    scaled = np.asarray(inputs.gram, float) * float(inputs.scale) ** 2
    np.testing.assert_allclose(scaled, exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(inputs.scale, np.abs(matrix).max(), rtol=1e-6)
  assert without.losses is None and without.key is None
  np.testing.assert_array_equal(given.losses, LOSSES)
  np.testing.assert_array_equal(given.required_losses("the rule"), LOSSES)
  assert given.key is key
  with pytest.raises(ValueError, match="the rule needs the candidates' losses"):
    without.required_losses("the rule")


def test_losses_of_another_shape_are_refused():
  transformation = weighted_direction(by_loss)
  for losses in (jnp.ones(3), jnp.ones((4, 8))):
    with pytest.raises(ValueError, match=r"losses must have shape \[K\] = \(4,\)"):
      transformation.update(random_gradients(0), None, losses=losses)


def test_weights_of_another_shape_are_refused():
  for shape in ((3,), (4, 1), ()):
    rule = weighted_direction(lambda inputs, shape=shape: jnp.ones(shape))
    with pytest.raises(ValueError, match=r"must return weights \[K\] = \(4,\), got"):
      rule.update(random_gradients(0), None)


def test_weights_with_slacks_are_as_good_as_their_promise():
  """The minimum-norm point keeps it; the mean of two that conflict does not."""

  def min_norm(inputs):
    weights = ddi_jax.min_norm_weights(inputs.gram).weights
    return Weights(weights, slacks=jnp.zeros_like(weights))

  gradients = random_gradients(4)
  found, state = combine(weighted_direction(min_norm), gradients)
  expected, expected_state = combine(
    ddi_jax.danskin_direction(normalize=False), gradients
  )
  chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-5)
  chex.assert_trees_all_close(state, expected_state, rtol=1e-3, atol=1e-4)

  def uniform(slacks):
    return lambda inputs: Weights(jnp.full(2, 0.5), slacks=jnp.asarray(slacks))

  for normalize in (False, True):
    broken = weighted_direction(uniform([0.0, 0.0]), normalize=normalize)
    direction, state = broken.update(CONFLICT, None)
    np.testing.assert_array_equal(direction["w"], [0.0, 0.0])
    assert (state.norm, state.gap) == (0, 0)
  # Nothing is promised to the first, whose slack is above the mean.
  kept, state = weighted_direction(uniform([5.0, 0.0])).update(CONFLICT, None)
  np.testing.assert_allclose(kept["w"], [-1.0, 0.05], rtol=1e-6)
  assert state.norm > 0


def test_the_factor_scales_what_comes_out():
  def rule(factor):
    return lambda inputs: Weights(jnp.array([0.25, 0.75]), factor=factor)

  gradients = {"w": jnp.array([[1.0, 0.0], [1.0, 2.0]])}
  plain, state = weighted_direction(rule(1.0)).update(gradients, None)
  scaled, scaled_state = weighted_direction(rule(1e-3)).update(gradients, None)
  np.testing.assert_allclose(scaled["w"], 1e-3 * plain["w"], rtol=1e-6)
  for name in ("norm", "relative_norm"):
    expected = 1e-3 * getattr(state, name)
    np.testing.assert_allclose(getattr(scaled_state, name), expected, rtol=1e-6)
  unit, _ = weighted_direction(rule(1e-3), normalize=True).update(gradients, None)
  np.testing.assert_allclose(jnp.linalg.norm(unit["w"]), 1, rtol=1e-6)


def test_the_state_starts_at_zero():
  state = weighted_direction(by_loss).init(PARAMS)
  assert isinstance(state, ddi_jax.DirectionState)
  chex.assert_trees_all_equal(state, jax.tree.map(jnp.zeros_like, state))
