"""The step on a maximum in a loop of one's own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddi_jax


def losses_fn(params):
  """Three paraboloids; the least maximum lies where all meet."""
  x = jnp.concatenate([params["a"], params["b"][None]])
  centres = jnp.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [-1.0, -1.0, 1.0]])
  scales = jnp.array([[1.0, 4.0, 1.0], [2.0, 1.0, 3.0], [1.0, 1.0, 0.5]])
  return jnp.sum(scales * (x[None] - centres) ** 2, axis=1)


START = {"a": jnp.array([3.0, -1.0]), "b": jnp.array(2.0)}


def run(optimizer, steps):
  @jax.jit
  def step(params, state):
    updates, state = optimizer.update(
      jax.jacrev(losses_fn)(params),
      state,
      params,
      losses=losses_fn(params),
      losses_fn=losses_fn,
    )
    return optax.apply_updates(params, updates), state

  params = jax.tree.map(lambda leaf: leaf.astype(float), START)
  state = optimizer.init(params)
  values = [losses_fn(params).max()]
  for _ in range(steps):
    params, state = step(params, state)
    values.append(losses_fn(params).max())
  return params, state, values


@pytest.mark.slow
def test_a_loop_of_updates_is_minimize_max(x64):
  params, state, values = run(ddi_jax.minimax_lbfgs(3), 6)
  start = jax.tree.map(lambda leaf: leaf.astype(float), START)
  solution = ddi_jax.minimize_max(losses_fn, start, max_steps=6)
  assert solution.steps == 6
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
    params,
    solution.params,
  )
  assert state.evaluations + 1 == solution.evaluations
  assert all(after <= before for before, after in itertools.pairwise(values))
  np.testing.assert_allclose(state.losses, losses_fn(params), rtol=1e-12)


@pytest.mark.slow
def test_the_metric_learns_from_the_step_that_was_taken(x64):
  """A chain that halves every step reaches the same optimum."""
  whole = ddi_jax.minimize_max(losses_fn, jax.tree.map(jnp.float64, START))
  optimizer = optax.chain(ddi_jax.minimax_lbfgs(3), optax.scale(0.5))
  _, _, values = run(optimizer, 40)
  np.testing.assert_allclose(values[-1], whole.value, rtol=1e-6)


@pytest.mark.slow
def test_a_mask_on_the_gradients_leaves_parameters_alone(x64):
  """And the others reach the minimum over them."""
  mask = {"a": True, "b": False}
  hold = optax.masked(optax.set_to_zero(), jax.tree.map(lambda moves: not moves, mask))
  params, _, values = run(optax.chain(hold, ddi_jax.minimax_lbfgs(3)), 20)
  assert params["b"] == START["b"]
  alone = ddi_jax.minimize_max(
    lambda a: losses_fn({"a": a, "b": START["b"]}), START["a"].astype(float)
  )
  np.testing.assert_allclose(values[-1], alone.value, rtol=1e-9)


def test_what_is_missing_or_of_another_size_is_named():
  optimizer = ddi_jax.minimax_lbfgs(2)
  params = jnp.ones(3)
  state = optimizer.init(params)
  gradients = jnp.ones((2, 3))
  with pytest.raises(ValueError, match="needs losses, got None: update"):
    optimizer.update(gradients, state, params)
  settings = {"losses": jnp.ones(2), "losses_fn": lambda x: x[:2]}
  with pytest.raises(ValueError, match="those of 2 losses, got 4"):
    optimizer.update(jnp.ones((4, 3)), state, params, **settings)
  with pytest.raises(ValueError, match=r"losses must have shape \[K\] = \(2,\), got"):
    optimizer.update(gradients, state, params, **settings | {"losses": jnp.ones(3)})
  with pytest.raises(ValueError, match="num_losses must be an integer >= 1, got 0"):
    ddi_jax.minimax_lbfgs(0)
