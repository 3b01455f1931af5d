"""The synthetic problems of Latorre et al. (2023): their numbers."""

import functools
from pathlib import Path
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddi_jax

TOY = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "toy.py"))
DIRECTIONS = {
  "danskin": ddi_jax.danskin_direction,
  "average": ddi_jax.average_direction,
  "pgd": ddi_jax.first_restart_direction,
}


def gradient_ascent(*, radius, steps, step_size, bounds, start):
  return ddi_jax.pgd(
    ddi_jax.linf(radius),
    steps=steps,
    step_size=step_size,
    bounds=bounds,
    random_start=start,
    ascent=lambda gradients, *_: gradients,
  )


@pytest.mark.slow
def test_counterexample():
  """Either maximiser's gradient raises the robust loss; their min-norm point lowers it.

  g(theta, d) = d <theta, u> + (1 - d) <theta, v> + d (d - 1) with d in [0, 1].
  """
  u, v = np.array([1.0, 0.0]), np.array([-1.0, -1.0]) / np.sqrt(2)

  def loss(theta, d, labels):
    del labels
    return d[:, 0] * (theta @ u) + (1 - d[:, 0]) * (theta @ v) + d[:, 0] * (d[:, 0] - 1)

  def derivative(direction):
    # phi'(0; w) = max over both maximisers of <w, gradient>.
    return max(direction @ u, direction @ v)

  attack = gradient_ascent(
    radius=0.5, steps=20, step_size=1.0, bounds=(0.0, 1.0), start=True
  )
  theta = jnp.zeros(2)
  gradients, info = ddi_jax.restart_gradients(loss, attack, 10)(
    theta, jnp.full((1, 1), 0.5), None, jax.random.key(0)
  )
  assert set(np.asarray(info.candidates).ravel()) == {0.0, 1.0}
  direction, _ = ddi_jax.danskin_direction().update(gradients, None)
  np.testing.assert_allclose(derivative(-np.asarray(direction)), -0.3827, atol=1e-4)
  np.testing.assert_allclose(derivative(-u), 0.7071, atol=1e-4)
  np.testing.assert_allclose(derivative(-v), 0.7071, atol=1e-4)


@functools.cache
def toy_trajectory(method):
  """The robust loss along the trajectory that the README's picture shows."""
  points = TOY["trajectory"](DIRECTIONS[method])
  return TOY["robust_loss"](points.T), points


def test_toy_trajectory_danskin_descends_to_the_minimum():
  values, points = toy_trajectory("danskin")
  assert np.all(np.diff(values[:11]) < 0)
  np.testing.assert_allclose(values[10], 1.0, atol=1e-3)
  # At the minimum the hull holds the origin: it stays.
  np.testing.assert_allclose(values[10:], 1.0, atol=1e-3)
  np.testing.assert_allclose(points[10:], 0, atol=1e-3)


def test_toy_trajectory_pgd_first_rises():
  values, _ = toy_trajectory("pgd")
  np.testing.assert_allclose(values[:2], [2.0, 2.01], atol=1e-4)
  assert values[10] > 1.05


def test_toy_trajectory_average_gets_most_of_the_gain():
  values, _ = toy_trajectory("average")
  assert 1.0 < values[10] < 1.3


@functools.cache
def toy_network(method, seeds=2):
  """Robust losses [seeds, 250] and whether gradients conflict, 2-2-1 ELU network."""

  def loss(params, x, labels):
    hidden = jax.nn.elu(x @ params["w1"] + params["b1"][None])
    logits = (hidden @ params["w2"] + params["b2"][None])[:, 0]
    return optax.sigmoid_binary_cross_entropy(logits, labels)

  attack = gradient_ascent(
    radius=1.0,
    steps=10,
    step_size=0.1,
    bounds=None,
    start=lambda key, x: x + jax.random.rademacher(key, x.shape, x.dtype),
  )
  gradients_fn = ddi_jax.restart_gradients(loss, attack, 10)
  optimizer = optax.chain(DIRECTIONS[method](normalize=True), optax.sgd(0.01))

  def run(key):
    data_key, *layer_keys, attack_key = jax.random.split(key, 4)
    x = jax.random.normal(data_key, (100, 2))
    labels = (x[:, 0] > 0).astype(x.dtype)
    params = {
      "w1": jax.random.normal(layer_keys[0], (2, 2)) / jnp.sqrt(2),
      "b1": jnp.zeros(2),
      "w2": jax.random.normal(layer_keys[1], (2, 1)) / jnp.sqrt(2),
      "b2": jnp.zeros(1),
    }

    def step(carry, step_key):
      params, state = carry
      gradients, info = gradients_fn(params, x, labels, step_key)
      updates, state = optimizer.update(gradients, state, params)
      robust_loss = info.losses.mean(axis=1).max()
      conflict = state[0].min_cosine < 0
      return (optax.apply_updates(params, updates), state), (robust_loss, conflict)

    keys = jax.random.split(attack_key, 250)
    _, history = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return history

  return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), seeds))


@pytest.mark.slow
@pytest.mark.parametrize("method", DIRECTIONS)
def test_toy_network(method):
  """Conflicts among the gradients are frequent, yet all methods end alike."""
  losses, conflicts = toy_network(method)
  final = losses[:, -20:].mean(axis=1)
  np.testing.assert_allclose(final.mean(), 0.58, atol=0.05)
  assert np.all(final < losses[:, 0] - 0.05)
  assert 0.4 < conflicts.mean() < 0.8
  np.testing.assert_allclose(
    final, toy_network("average")[0][:, -20:].mean(axis=1), atol=0.03
  )
