"""The worst case over a continuous set: known optima, and how honest the result is."""

from pathlib import Path
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import ddi_jax

TOY = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "toy.py"))
KEY = jax.random.key(0)


def toy_loss(params, point):
  """The paper's two-dimensional problem, one inner variable in [0, 1]."""
  return TOY["loss_fn"](params, point[None], None)[0]


TOY_ATTACK = ddi_jax.pgd(
  ddi_jax.linf(0.5), steps=10, step_size=1.0, ascent=lambda gradients, *_: gradients
)


def minimize_toy(**settings):
  return ddi_jax.minimize_worst_case(
    toy_loss, TOY_ATTACK, jnp.array([1.0, 0.3]), jnp.array([0.5]), KEY, **settings
  )


@pytest.mark.slow
def test_the_toy_reaches_its_optimum(x64):
  solution = minimize_toy()
  assert solution.converged
  np.testing.assert_allclose(solution.params, 0, atol=1e-6)
  np.testing.assert_allclose(solution.value, 1, rtol=1e-9)
  assert solution.excess <= 1e-8
  # Both ends of the interval hold the maximum, with equal weight.
  held = np.asarray(solution.weights) > 1e-6
  assert set(np.asarray(solution.points)[held, 0]) == {0.0, 1.0}
  np.testing.assert_allclose(np.asarray(solution.weights)[held].sum(), 1, rtol=1e-6)


@pytest.mark.slow
def test_it_works_under_jit(x64):
  plain, jitted = minimize_toy(), jax.jit(minimize_toy)()
  np.testing.assert_allclose(jitted.params, plain.params, atol=1e-8)
  assert jitted.rounds == plain.rounds


@pytest.mark.slow
def test_robust_logistic_regression_as_in_closed_form(x64):
  """Under l_inf the worst case of a linear model is -epsilon times the l1 norm."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(40, 3))
  signs = np.sign(images @ [1.0, -0.5, 0.05] + 0.5 * rng.normal(size=40))
  epsilon = 0.1

  def loss_fn(weights, perturbations):
    margins = signs * ((images + perturbations) @ weights)
    return jnp.mean(jax.nn.softplus(-margins))

  attack = ddi_jax.pgd(
    ddi_jax.linf(epsilon), steps=1, step_size=2 * epsilon, bounds=None
  )
  solution = ddi_jax.minimize_worst_case(
    loss_fn, attack, jnp.array([0.5, -0.5, 0.5]), jnp.zeros((40, 3)), KEY
  )

  def closed_form(parts):  # The positive and the negative part of the weights.
    weights, norm = parts[:3] - parts[3:], parts.sum()
    return np.mean(np.logaddexp(0, epsilon * norm - signs * (images @ weights)))

  best = scipy.optimize.minimize(
    closed_form, np.full(6, 0.5), bounds=[(0, None)] * 6, options={"ftol": 1e-15}
  )
  assert solution.converged
  np.testing.assert_allclose(solution.value, best.fun, rtol=1e-6)
  np.testing.assert_allclose(solution.params, best.x[:3] - best.x[3:], atol=1e-3)


@pytest.mark.slow
def test_a_full_pool_gives_up_what_is_not_needed(x64):
  """A smooth inner maximum moves in every round; P is hardly above K."""

  def loss_fn(line, x):
    return (line[0] + line[1] * x[0] - jnp.exp(x[0])) ** 2

  attack = ddi_jax.pgd(
    ddi_jax.linf(0.5),
    steps=200,
    step_size=0.2,
    ascent=lambda gradients, *_: gradients,
    iterate="best",
  )
  solution = ddi_jax.minimize_worst_case(
    loss_fn, attack, jnp.zeros(2), jnp.array([0.5]), KEY, num_restarts=6, pool_size=8
  )
  # The best line: slope e - 1, and errors of equal size at 0, log(e - 1) and 1.
  slope = np.e - 1
  error = (slope * np.log(slope) - slope + 1) / 2
  np.testing.assert_allclose(solution.params[1], slope, rtol=1e-4)
  np.testing.assert_allclose(solution.value, error**2, rtol=1e-6)
  assert solution.points.shape == (8, 1)


@pytest.mark.slow
def test_the_excess_tells_of_a_stopped_run(x64):
  solution = minimize_toy(max_rounds=1, max_steps=1)
  assert solution.rounds == 1
  assert not solution.converged
  assert solution.excess > 0
  assert solution.value == solution.excess + solution.losses.max()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"num_restarts": 0}, "num_restarts must be an integer >= 1, got 0"),
    ({"pool_size": 16}, r"pool_size must be above num_restarts \(16\), got 16"),
    ({"max_rounds": 0}, "max_rounds must be an integer >= 1, got 0"),
    ({"tolerance": -1.0}, "tolerance must be a finite number > 0, got -1.0"),
    ({"max_steps": 0}, "max_steps must be an integer >= 1, got 0"),
  ],
)
def test_bad_settings(settings, message):
  with pytest.raises(ValueError, match=message):
    minimize_toy(**settings)


def test_a_point_that_is_not_floating_point_is_refused():
  with pytest.raises(ValueError, match="point must be floating point, got int32"):
    ddi_jax.minimize_worst_case(toy_loss, TOY_ATTACK, jnp.ones(2), jnp.array([1]), KEY)
