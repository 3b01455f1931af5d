"""The least moves onto a hyperplane in a box, against scipy."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from ddi_jax.attacks.hyperplane import displacement

BOX = (0.0, 1.0)
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
solve = jax.jit(displacement, static_argnames=("norm", "bounds"))


def random_case(seed, batch=6, size=7):
  rng = np.random.default_rng(seed)
  points = rng.uniform(size=(batch, size))
  points = np.where(rng.uniform(size=points.shape) < 0.3, np.round(points), points)
  normals = rng.normal(size=points.shape) * 10 ** rng.uniform(-2, 2, (batch, 1))
  normals[rng.uniform(size=points.shape) < 0.1] = 0
  # A third of the hyperplanes miss the box.
  values = rng.normal(size=batch) * np.linalg.norm(normals, axis=1)
  return (jnp.asarray(x, jnp.float32) for x in (points, normals, values))


def least_norm(norm, point, normal, value, bounds):
  """Its norm by a general-purpose solver; None where the hyperplane misses the box."""
  point, normal, value = (np.asarray(x, float) for x in (point, normal, value))
  low, high = bounds or (-1e6, 1e6)
  size = len(point)
  reach = np.where(value * normal < 0, high - point, point - low) @ np.abs(normal)
  if reach < abs(value) * (1 - 1e-5):
    return None
  if norm == "l2":
    # The KKT system has one unknown: d = clip(multiplier * normal).
    def left(multiplier):
      return value + normal @ np.clip(multiplier * normal, low - point, high - point)

    low_end, high_end = np.array([-1, 1]) * 1e9 / (normal @ normal)
    if left(low_end) * left(high_end) > 0:  # It touches a corner, up to rounding.
      multiplier = min(low_end, high_end, key=lambda end: abs(left(end)))
    else:
      multiplier = scipy.optimize.brentq(
        left, low_end, high_end, xtol=1e-15, rtol=1e-14
      )
    return np.linalg.norm(np.clip(multiplier * normal, low - point, high - point))
  # d = u - v with u, v >= 0; for l_inf all of them below one more unknown.
  bounds_of = [(0, high - p) for p in point] + [(0, p - low) for p in point]
  if norm == "l1":
    costs, extra = np.ones(2 * size), 0
    limits = None
  else:
    costs, extra = np.append(np.zeros(2 * size), 1), 1
    limits = np.hstack([np.eye(2 * size), -np.ones((2 * size, 1))])
  result = scipy.optimize.linprog(
    costs,
    A_ub=limits,
    b_ub=None if limits is None else np.zeros(2 * size),
    A_eq=np.concatenate([normal, -normal, np.zeros(extra)])[None],
    b_eq=[-value],
    bounds=bounds_of + [(0, None)] * extra,
  )
  return result.fun if result.status == 0 else None


@pytest.mark.parametrize("bounds", [BOX, None])
@pytest.mark.parametrize("norm", ORDERS)
@hypothesis.settings(max_examples=25)
@hypothesis.given(seed=st.integers(0, 10**6))
@hypothesis.example(seed=519)  # A hyperplane touches a corner, up to rounding.
def test_least_move(norm, bounds, seed):
  points, normals, values = random_case(seed)
  moves = np.asarray(solve(norm, points, normals, values, bounds), float)
  if bounds:
    assert np.all(points + moves >= -1e-6)
    assert np.all(points + moves <= 1 + 1e-6)
  for move, point, normal, value in zip(moves, points, normals, values, strict=True):
    scale = np.linalg.norm(normal) + 1e-9
    expected = least_norm(norm, point, normal, value, bounds)
    if expected is None:
      # The corner nearest to the hyperplane.
      inner = np.asarray(normal) * np.sign(value)
      corner = np.where(inner < 0, 1.0, np.where(inner > 0, 0.0, point))
      np.testing.assert_allclose(point + move, corner, atol=1e-5)
    else:
      np.testing.assert_allclose(value + normal @ move, 0, atol=1e-5 * scale)
      found = np.linalg.norm(move, ORDERS[norm])
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ORDERS)
def test_degenerate_hyperplanes(norm):
  points = jnp.full((3, 2, 2), 0.5)
  normals = jnp.stack([jnp.zeros((2, 2)), 1e-25 * jnp.ones((2, 2)), jnp.ones((2, 2))])
  values = jnp.array([1.0, 1e-25, 0.0])
  moves = displacement(norm, points, normals, values, BOX)
  np.testing.assert_array_equal(moves[0], 0)  # No direction.
  np.testing.assert_allclose(moves[1].sum(), -1, rtol=1e-5)  # Nothing underflows.
  np.testing.assert_array_equal(moves[2], 0)  # There already.
  # Far too far away, with weights that are nothing beside the first.
  (far,) = displacement(
    norm,
    jnp.full((1, 3), 0.5),
    jnp.array([[1e10, 1e-9, 1e-30]]),
    -1e12 * jnp.ones(1),
    BOX,
  )
  assert far[0] == 0.5
  assert np.all((far >= 0) & (far <= 0.5))
