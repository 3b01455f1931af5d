"""Square Attack: its schedule, its patterns, its proposals, what it reaches."""

import functools

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
from ddi_jax.attacks import square
from ddi_jax.attacks.random_squares import (
  _bumps,
  _pair_of_bumps,
  _sides,
  _square,
  _stripes,
  _tiles,
  window_areas,
)


def test_windows_shrink_at_the_published_queries():
  areas = window_areas(10_000, 0.8, 10_000)
  turns = np.flatnonzero(np.diff(areas)) + 1
  np.testing.assert_array_equal(turns, [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001])
  np.testing.assert_allclose(areas[[0, *turns]], 0.8 / 2.0 ** np.arange(10))
  # Half of the queries, the same fractions of them.
  turns = np.flatnonzero(np.diff(window_areas(5000, 0.8, 5000))) + 1
  np.testing.assert_array_equal(turns[2:5], [101, 251, 501])
  # Or the first half, as AutoAttack has it.
  np.testing.assert_array_equal(window_areas(5000, 0.8, 10_000), areas[:5000])


def test_sides_of_the_windows():
  areas = np.array([0.8, 0.2, 0.001])
  shape = (32, 32, 3)
  np.testing.assert_array_equal(_sides(areas, shape, None)[:, 0], [29, 14, 1])
  np.testing.assert_array_equal(_sides(areas, shape, 2)[:, 0], [29, 15, 3])
  np.testing.assert_array_equal(_sides(areas, (4, 9, 1), None)[0], [4, 5])
  # A vector's windows are intervals.
  np.testing.assert_array_equal(
    _sides(areas, (1, 50, 1), None), [[1, 40], [1, 10], [1, 1]]
  )


def pile(height, width):
  """Equation 2 of the paper, one square after the other."""
  values = np.zeros((height, width))
  row, column = height // 2, width // 2
  for k in range(max(row, column) + 1):
    rows = slice(max(row - k, 0), row + k + 1)
    columns = slice(max(column - k, 0), column + k + 1)
    values[rows, columns] += 1 / (k + 1) ** 2
  return values


def pair_of_piles(length, breadth):
  half = length // 2
  return np.concatenate([pile(half, breadth), -pile(length - half, breadth)])


@pytest.mark.slow
@pytest.mark.parametrize("along_rows", [True, False])
@pytest.mark.parametrize("sides", [(7, 7), (4, 4), (3, 5), (1, 6)])
def test_bumps_are_the_published_ones(sides, along_rows):
  height, width = sides
  found = _pair_of_bumps(
    jnp.arange(height)[:, None],
    jnp.arange(width)[None, :],
    jnp.array(sides),
    (9, 9, 1),
    along_rows,
  )
  if along_rows and height > 1:
    expected = pair_of_piles(height, width)
  else:
    expected = pair_of_piles(width, height).T
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_linf_proposals_set_one_window_to_a_corner_of_the_ball():
  before = jnp.zeros((8, 8, 3))
  assert set(np.unique(_stripes(KEY, before, 0.25))) == {-0.25, 0.25}
  stripes = _stripes(KEY, before, 0.25)
  np.testing.assert_array_equal(stripes, jnp.tile(stripes[:1], (8, 1, 1)))
  propose = jax.jit(_square)
  places = set()
  for seed in range(60):
    draws = jax.random.uniform(jax.random.key(seed), (5,))
    if seed == 0:  # The greatest there is.
      draws = jnp.full(5, np.nextafter(np.float32(1), np.float32(0)))
    after = propose(draws, before, jnp.array([3, 3]), 0.25)
    rows, columns = (np.flatnonzero(after.any(axis=a)) for a in ((1, 2), (0, 2)))
    assert len(rows) == len(columns) == 3
    inside = after[rows[0] : rows[0] + 3, columns[0] : columns[0] + 3]
    np.testing.assert_array_equal(jnp.abs(inside), 0.25)
    np.testing.assert_array_equal(inside, jnp.tile(inside[:1, :1], (3, 3, 1)))
    places.add((rows[0], columns[0]))
  assert {row for row, _ in places} == {column for _, column in places} == set(range(6))


@pytest.mark.slow
@pytest.mark.parametrize("power", [1, 2])
def test_l2_and_l1_proposals_use_the_whole_radius(power):
  epsilon = 1.5
  size = functools.partial(np.linalg.norm, ord=power)
  start = _tiles(power, KEY, jnp.zeros((11, 11, 3)), epsilon)
  np.testing.assert_allclose(size(np.ravel(start)), epsilon, rtol=1e-5)
  propose = jax.jit(functools.partial(_bumps, power))
  # As if the box had cut something off.
  current = jnp.clip(start, -0.9 * jnp.abs(start).max(), 0.1)
  for seed in range(20):
    draws = jax.random.uniform(jax.random.key(seed), (8,))
    after = propose(draws, current, jnp.array([5, 5]), epsilon)
    np.testing.assert_allclose(size(np.ravel(after)), epsilon, rtol=1e-5)
    changed = np.any(after != current, axis=2)
    assert 0 < changed.sum() <= 2 * 25
  nothing = propose(draws, jnp.zeros((11, 11, 3)), jnp.array([5, 5]), 0.0)
  np.testing.assert_array_equal(nothing, 0)


@pytest.mark.slow
@pytest.mark.parametrize("norm", MAKERS)
def test_breaks_what_a_linear_model_allows(norm):
  p = problem()
  epsilon = EPSILONS[norm]
  attack = compiled(square, norm, queries=3000)

  found = attack(epsilon, KEY, p.logits_fn, p.inputs, p.labels)
  assert_inside(MAKERS[norm](epsilon), found, p.inputs)
  right = is_right(p.logits_fn, found, p.labels)
  robust = p.distances(norm) > epsilon
  assert np.all(right[robust])
  # Exact for l_inf, whose corners it visits.
  assert (right & ~robust).sum() <= {"linf": 0, "l2": 3, "l1": 3}[norm]
  before, after = (losses.margin(p.logits_fn(x), p.labels) for x in (p.inputs, found))
  assert np.all(after >= before)
  unchanged = attack(0.0, KEY, p.logits_fn, p.inputs, p.labels)
  np.testing.assert_array_equal(unchanged, p.inputs)


def test_needs_no_gradients_and_takes_images():
  p = problem(size=48, batch=8)
  images = p.inputs.reshape(8, 4, 4, 3)
  calls = []

  def hidden(x):
    calls.append(x.shape)
    return jax.lax.stop_gradient(jnp.round(p.logits_fn(x), 2))

  attack = jax.jit(square(ddi_jax.linf(0.05), queries=300), static_argnums=1)
  found = attack(KEY, hidden, images, p.labels)
  assert found.shape == images.shape
  assert not is_right(p.logits_fn, found, p.labels).all()
  assert set(calls) == {(8, 4, 4, 3)}


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match="queries must be an integer >= 1"):
    square(ddi_jax.linf(0.1), queries=0)
  with pytest.raises(ValueError, match="restarts must be an integer >= 1"):
    square(ddi_jax.linf(0.1), restarts=0)
  with pytest.raises(ValueError, match="p_init must be in"):
    square(ddi_jax.linf(0.1), p_init=0.0)
  p = problem(size=12)
  with pytest.raises(ValueError, match=r"images \[B, H, W, C\] or vectors"):
    square(ddi_jax.linf(0.1), queries=2)(
      KEY, p.logits_fn, p.inputs.reshape(16, 3, 4), p.labels
    )
