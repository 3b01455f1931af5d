"""PGD: what it finds, what it returns, what it refuses."""

import chex
import convolutional
from convolutional import NETWORKS
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax

INPUTS = jnp.array([[0.5, 0.5], [0.95, 0.1], [0.2, 0.7]])
KEY = jax.random.key(0)


def linear(points):
  return points @ jnp.array([1.0, -2.0])


@pytest.mark.parametrize("iterate", ["last", "best"])
def test_maximises_a_linear_function_exactly(iterate):
  attack = ddi_jax.pgd(ddi_jax.linf(0.2), steps=5, step_size=0.1, iterate=iterate)
  found = jax.jit(lambda key: attack(key, linear, INPUTS))(KEY)
  expected = jnp.clip(INPUTS + jnp.array([[0.2, -0.2]]), 0, 1)
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [ddi_jax.linf, ddi_jax.l2, ddi_jax.l1])
def test_stays_in_ball_and_box_and_increases_the_loss(make):
  threat_model = make(0.4)
  inputs = jax.random.uniform(KEY, (16, 4, 4, 1))
  target = jax.random.uniform(jax.random.key(1), (16, 4, 4, 1))

  def objective(points):
    return -jnp.sum((points - target) ** 2, axis=(1, 2, 3))

  attack = ddi_jax.pgd(threat_model, steps=10, step_size=0.1)
  found = attack(KEY, objective, inputs)
  assert threat_model.size(found - inputs).max() <= 0.4 * (1 + 1e-5)
  assert found.min() >= 0
  assert found.max() <= 1
  assert np.all(objective(found) > objective(inputs))


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_steps_are_the_same_in_a_loop_and_one_after_the_other(network):
  """Whether the steps are looped depends on the convolutions in the objective."""

  def objective(points):
    return convolutional.loss_fn(
      convolutional.PARAMS, points, convolutional.LABELS, network
    )

  inputs = convolutional.INPUTS
  settings = {"step_size": 0.05, "random_start": False}
  attack = ddi_jax.pgd(ddi_jax.l2(0.5), steps=3, **settings)
  step = jax.grad(lambda points: objective(points).sum())
  threat_model, points = ddi_jax.l2(0.5), inputs
  for _ in range(3):
    ascent = threat_model.steepest_ascent(step(points), points, None)
    points = threat_model.project(points + 0.05 * ascent, inputs, (0.0, 1.0))
  found = jax.jit(lambda inputs: attack(None, objective, inputs))(inputs)
  chex.assert_trees_all_close(found, points, atol=1e-5)


def test_best_iterate_is_never_worse_than_any_other():
  # Far too long steps, so that the last iterate is not the best.
  def objective(points):
    return -jnp.abs(points[:, 0] - 0.62)

  losses = {}
  for iterate in ("last", "best"):
    attack = ddi_jax.pgd(
      ddi_jax.linf(0.3),
      steps=7,
      step_size=0.25,
      iterate=iterate,
      random_start=False,
    )
    losses[iterate] = objective(attack(None, objective, INPUTS))
  visited = [objective(INPUTS)]
  for steps in range(1, 8):
    attack = ddi_jax.pgd(
      ddi_jax.linf(0.3), steps=steps, step_size=0.25, random_start=False
    )
    visited.append(objective(attack(None, objective, INPUTS)))
  np.testing.assert_allclose(losses["best"], np.max(visited, axis=0), atol=1e-6)
  np.testing.assert_allclose(losses["last"], visited[-1], atol=1e-6)
  assert np.any(losses["best"] > losses["last"])


def test_random_start_consumes_the_key():
  attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=1, step_size=1e-3)
  first, second = (attack(jax.random.key(k), linear, INPUTS) for k in (0, 1))
  assert not np.allclose(first, second)
  np.testing.assert_array_equal(first, attack(jax.random.key(0), linear, INPUTS))


def test_own_start_and_ascent_rule():
  attack = ddi_jax.pgd(
    ddi_jax.linf(1.0),
    steps=1,
    step_size=0.1,
    bounds=None,
    random_start=lambda key, inputs: jnp.zeros_like(inputs),
    ascent=lambda gradients, *_: gradients,
  )
  found = attack(KEY, linear, INPUTS)
  np.testing.assert_allclose(found, jnp.tile(jnp.array([[0.1, -0.2]]), (3, 1)))


def test_zero_radius_returns_the_inputs():
  attack = ddi_jax.pgd(ddi_jax.linf(0.0), steps=3, step_size=0.1)
  np.testing.assert_array_equal(attack(KEY, linear, INPUTS), INPUTS)


def test_dtype_is_kept():
  attack = ddi_jax.pgd(ddi_jax.l2(0.3), steps=2, step_size=0.1)
  found = attack(KEY, linear, INPUTS.astype(jnp.bfloat16))
  assert found.dtype == jnp.bfloat16


@pytest.mark.parametrize("iterate", ["last", "best"])
def test_stops_once_nothing_moves(iterate):
  evaluations = []

  def counted(points):
    jax.debug.callback(lambda: evaluations.append(1))
    return linear(points)

  def attack(stop_below, objective):
    settings = {"steps": 50, "step_size": 0.1, "random_start": False}
    return ddi_jax.pgd(
      ddi_jax.linf(0.2), iterate=iterate, stop_below=stop_below, **settings
    )(None, objective, INPUTS)

  found = attack(0.0, counted)
  jax.effects_barrier()
  # Two steps to the ball's corner, where rounding may leave one more to take.
  assert 3 <= len(evaluations) <= 5
  np.testing.assert_array_equal(found, attack(None, linear))


def test_stops_when_the_last_example_is_done():
  # At the corner of the ball after 1, 2, 3 steps, in each coordinate alike.
  threat_model = ddi_jax.linf(0.3)
  sizes = jnp.array([[0.1], [0.2], [0.3]])

  def objective(points):
    return -jnp.abs(points - 0.5 - sizes).sum(axis=1)

  inputs = jnp.full((3, 1), 0.5)
  settings = {"steps": 4, "step_size": 0.1, "random_start": False}
  found = ddi_jax.pgd(threat_model, stop_below=0.5, iterate="best", **settings)(
    None, objective, inputs
  )
  np.testing.assert_allclose(found, inputs + sizes, atol=1e-6)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"steps": 0}, "steps must be an integer >= 1, got 0"),
    ({"steps": 1.5}, "steps must be an integer >= 1, got 1.5"),
    ({"step_size": 0}, "step_size must be a finite number > 0, got 0"),
    ({"step_size": float("inf")}, "step_size must be a finite number > 0, got inf"),
    (
      {"bounds": (1.0, 0.0)},
      r"bounds must be .* \(low, high\) with low < high, got \(1.0, 0.0\)",
    ),
    ({"iterate": "first"}, "iterate must be one of last, best; got 'first'"),
    ({"stop_below": 1.0}, r"stop_below must be None or in \[0, 1\), got 1.0"),
  ],
)
def test_bad_settings_are_refused(change, message):
  settings = {"steps": 3, "step_size": 0.1} | change
  with pytest.raises(ValueError, match=message):
    ddi_jax.pgd(ddi_jax.linf(0.1), **settings)


def test_bad_calls_are_refused():
  attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=1, step_size=0.1)
  with pytest.raises(ValueError, match="floating point, got int32"):
    attack(KEY, linear, jnp.ones((2, 2), int))
  with pytest.raises(ValueError, match="one per example"):
    attack(KEY, lambda x: linear(x).mean(), INPUTS)
  with pytest.raises(ValueError, match=r"key must be a key such as .*, got None"):
    attack(None, linear, INPUTS)
