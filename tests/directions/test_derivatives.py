"""Derivatives of the directions, against differences in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax

pytestmark = pytest.mark.usefixtures("x64")
# In conflict, some of them outside the support of the minimum-norm point.
GRADIENTS = np.array([[1.0, 0.6, 0.3]]) + np.random.default_rng(2).normal(size=(5, 3))
LOSSES = np.array([1.0, 0.9, 0.7, 0.95, 0.8])
PROBE = np.array([0.3, -1.0, 0.7])


def test_the_hull_is_away_from_the_origin():
  """So that the derivatives below are of something."""
  solution = ddi_jax.min_norm_weights(jnp.asarray(GRADIENTS @ GRADIENTS.T))
  assert solution.squared_norm > 0.1
  assert jnp.sum(solution.weights > 0.05) == 3


def check(fn, at, step=1e-6):
  """Compare reverse and forward mode with central differences."""

  @jax.jit  # One program: compilation is what this costs.
  def value_and_slopes(at):
    value, along = jax.jvp(fn, (at,), (tangent,))
    return value, jax.grad(fn)(at), along

  at = np.asarray(at, float)
  tangent = np.cos(np.arange(at.size, dtype=float)).reshape(at.shape)
  _, slope, along = value_and_slopes(at)
  expected = np.zeros_like(at)
  for index in np.ndindex(at.shape):
    move = np.zeros_like(at)
    move[index] = step
    above, below = value_and_slopes(at + move)[0], value_and_slopes(at - move)[0]
    expected[index] = (above - below) / (2 * step)
  np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(along, jnp.sum(slope * tangent), rtol=1e-7, atol=1e-10)


def direction_probe(direction):
  def fn(gradients):
    out, _ = direction.update(gradients, None, losses=jnp.asarray(LOSSES))
    return jnp.sum(out * PROBE)

  return fn


DIRECTIONS = {
  "danskin": ddi_jax.danskin_direction(),
  "not normalised": ddi_jax.danskin_direction(normalize=False),
  "projected": ddi_jax.danskin_direction(solver="projected_gradient", tolerance=1e-13),
  "bundle": ddi_jax.danskin_direction(normalize=False, bundle_step=0.2),
  "active losses": ddi_jax.danskin_direction(normalize=False, loss_tolerance=0.15),
  "mgda": ddi_jax.mgda_direction(),
  "cagrad": ddi_jax.cagrad_direction(radius=0.4),
  "upgrad": ddi_jax.upgrad_direction(),
  "dual projection": ddi_jax.dual_projection_direction(),
  "nash mtl": ddi_jax.nash_mtl_direction(),
}


# One is enough for the quick tests.
NAMES = [
  pytest.param(name, marks=[pytest.mark.slow] * (name != "danskin"))
  for name in DIRECTIONS
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_directions_in_the_gradients(name):
  check(direction_probe(DIRECTIONS[name]), GRADIENTS)


def test_weights_and_squared_norm_in_gram_and_slacks():
  gram = GRADIENTS @ GRADIENTS.T
  slacks = 0.1 * np.arange(5.0)

  def fn(parts):
    gram, slacks = parts[:, :5], parts[:, 5]
    solution = ddi_jax.min_norm_weights((gram + gram.T) / 2, slacks)
    return solution.weights @ jnp.array([1.0, -2.0, 0.5, 3.0, 1.0]) + (
      2 * solution.squared_norm
    )

  check(fn, np.concatenate([gram, slacks[:, None]], axis=1))


@pytest.mark.slow
def test_bundle_step_and_radius_are_differentiable():
  gradients, losses = jnp.asarray(GRADIENTS), jnp.asarray(LOSSES)
  for make in (
    lambda t: ddi_jax.danskin_direction(bundle_step=t),
    lambda t: ddi_jax.cagrad_direction(radius=t),
  ):

    def fn(setting, make=make):
      out, _ = make(setting).update(gradients, None, losses=losses)
      return jnp.sum(out * PROBE)

    check(fn, 0.3)


@pytest.mark.slow
def test_second_derivatives():
  def fn(gram):
    return jnp.sum(ddi_jax.min_norm_weights(gram).weights ** 2 * jnp.arange(5.0))

  def slope(gram):
    return jnp.sum(jax.grad(fn)((gram + gram.T) / 2) * jnp.cos(gram))

  # Of full rank, so that a small change of one entry leaves the support.
  wide = np.random.default_rng(1).normal(size=(5, 8))
  check(slope, wide @ wide.T)


@pytest.mark.slow
def test_mapped_and_used_twice():
  fn = direction_probe(DIRECTIONS["danskin"])
  stack = jnp.asarray(GRADIENTS)[None] * jnp.array([1.0, 2.0, 0.1])[:, None, None]
  stack += 0.1 * jax.random.normal(jax.random.key(0), stack.shape)
  mapped = jax.jit(jax.vmap(jax.grad(fn)))(stack)
  for one, at in zip(mapped, stack, strict=True):
    np.testing.assert_allclose(one, jax.grad(fn)(at), rtol=1e-9, atol=1e-12)

  def twice(gradients):
    weights = ddi_jax.min_norm_weights(gradients @ gradients.T).weights
    return jnp.sum(weights**2) + weights[0] * weights[1]

  check(twice, GRADIENTS)


@functools.cache
def compiled_gradient(name):
  losses = jnp.array([1.0, 0.9, 0.8])

  def fn(gradients):
    return jnp.sum(DIRECTIONS[name].update(gradients, None, losses=losses)[0])

  return jax.jit(jax.grad(fn))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
  "gradients",
  [
    np.ones((3, 2)),  # Equal: the weights are not unique.
    np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
    np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]),  # The hull holds the origin.
    np.zeros((3, 2)),
    np.array([[1.0, 0.0], [1.0, 1.0], [1.0, -1.0]]),  # A weight of 0 at a kink.
  ],
)
def test_degenerate_cases_have_finite_derivatives(name, gradients):
  assert np.all(np.isfinite(compiled_gradient(name)(jnp.asarray(gradients))))


def test_equal_vectors_have_the_right_derivative_of_the_point():
  """The weights are not unique, the minimum-norm point is."""
  pair = np.array([[1.0, 0.2], [1.0, 0.2], [0.2, 1.0]])

  def fn(shared):  # Both copies move together.
    gradients = jnp.stack([shared[0], shared[0], shared[1]])
    out, _ = DIRECTIONS["not normalised"].update(gradients, None)
    return jnp.sum(out * PROBE[:2])

  check(fn, pair[1:])


@pytest.mark.slow
@pytest.mark.parametrize("per", ["example", "batch"])
def test_the_proximal_gradient(per):
  rng = np.random.default_rng(1)
  candidates, labels = rng.normal(size=(3, 4, 2)), jnp.asarray(rng.normal(size=4))

  def loss_fn(params, inputs, labels):
    return jnp.tanh(inputs @ params - labels) ** 2

  def fn(packed):
    params, step, points = packed[:2], packed[2], packed[3:].reshape(3, 4, 2)
    direction, _ = ddi_jax.proximal_danskin_gradient(
      loss_fn,
      params,
      points,
      labels,
      step=jnp.exp(step),
      per=per,
      iterations=12,
      memory=12,
      tolerance=1e-9,
    )
    return jnp.sum(direction * PROBE[:2])

  check(fn, np.concatenate([[0.3, -0.2, 0.1], candidates.ravel()]))


def test_results_are_those_without_derivatives():
  gram = jnp.asarray(GRADIENTS @ GRADIENTS.T)
  plain = ddi_jax.min_norm_weights(gram).weights
  taken, _ = jax.vjp(lambda gram: ddi_jax.min_norm_weights(gram).weights, gram)
  np.testing.assert_array_equal(plain, taken)
