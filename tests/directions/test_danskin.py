"""Danskin's direction, and what all directions share as optax transformations."""

import functools

import chex
from gradient_trees import (
  DIRECTIONS,
  PARAMS,
  as_matrix,
  as_tree,
  as_vector,
  combine,
  random_gradients,
)
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from references import min_norm_by_enumeration

import ddi_jax

# Their length does not grow with the gradients'.
WITHOUT_SCALE = ("mgda", "mgda loss+", "nash mtl")
all_directions = pytest.mark.parametrize("name", DIRECTIONS)


danskin_raw = jax.jit(lambda g: combine(ddi_jax.danskin_direction(normalize=False), g))


@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_danskin_descends_on_every_gradient(seed):
  gradients = random_gradients(seed)
  direction, _ = danskin_raw(gradients)
  matrix, z = as_matrix(gradients), as_vector(direction)
  largest = np.square(matrix).sum(1).max()
  assert np.all(matrix @ z >= z @ z - 1e-5 * largest)


@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_danskin_has_the_least_norm(seed):
  gradients = random_gradients(seed)
  direction, state = danskin_raw(gradients)
  matrix = as_matrix(gradients)
  weights = np.random.default_rng(seed).dirichlet(np.ones(4), size=200)
  norms = np.linalg.norm(weights @ matrix, axis=1)
  norm = np.linalg.norm(as_vector(direction))
  assert norm <= min(norms.min(), np.linalg.norm(matrix, axis=1).min()) * (1 + 1e-5)
  np.testing.assert_allclose(state.norm, norm, rtol=1e-4, atol=1e-6)


@functools.cache
def raw_direction(name):
  """(Gradients, losses) -> unnormalised direction."""
  transformation = DIRECTIONS[name](normalize=False)
  return jax.jit(
    lambda gradients, losses: combine(transformation, gradients, losses=losses)[0]
  )


def sizes_and_losses(seed):
  gradients = random_gradients(seed)
  losses = np.random.default_rng(seed).uniform(0.5, 2.0, size=4)
  return gradients, jnp.asarray(losses, jnp.float32)


def assert_close_on_the_scale_of(direction, expected, gradients, name):
  # Where only the squared norm is well determined, z is to the root of the rounding.
  scale = np.abs(as_matrix(gradients)).max()
  if name in WITHOUT_SCALE:
    scale = 1.0
  if name == "imtl-g":
    # It divides by the sum of weights of both signs: where that nearly cancels, the
    # result is long and its relative error grows with its length.
    scale = max(scale, np.abs(expected).max() ** 2 / scale)
  np.testing.assert_allclose(direction, expected, atol=3e-3 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(DIRECTIONS) - {"first", "pcgrad"}))
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_invariant_to_permutations_of_the_candidates(name, seed):
  gradients, losses = sizes_and_losses(seed)
  order = np.random.default_rng(seed).permutation(4)
  permuted = jax.tree.map(lambda leaf: leaf[order], gradients)
  assert_close_on_the_scale_of(
    as_vector(raw_direction(name)(permuted, losses[order])),
    as_vector(raw_direction(name)(gradients, losses)),
    gradients,
    name,
  )


@pytest.mark.slow
@all_directions
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
@hypothesis.example(seed=62851)
def test_turns_with_the_gradients(name, seed):
  """What comes out depends on inner products alone, so rotations commute with it."""
  gradients, losses = sizes_and_losses(seed)
  rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(11, 11)))[0]
  turned = jnp.asarray(as_matrix(gradients) @ rotation, jnp.float32)
  assert_close_on_the_scale_of(
    as_vector(raw_direction(name)(as_tree(turned), losses)),
    as_vector(raw_direction(name)(gradients, losses)) @ rotation,
    gradients,
    name,
  )


WITHOUT_CONFLICT = (
  *("danskin", "mgda", "mgda loss", "mgda loss+", "upgrad"),
  *("dual projection", "conflict free", "nash mtl"),
)


@pytest.mark.parametrize("name", WITHOUT_CONFLICT)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_conflicts_with_no_candidate(name, seed):
  gradients, losses = sizes_and_losses(seed)
  z = as_vector(raw_direction(name)(gradients, losses))
  matrix = as_matrix(gradients)
  lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(z)
  assert np.all(matrix @ z >= -1e-4 * lengths)


@pytest.mark.slow
@all_directions
def test_unchanged_by_how_parameters_are_split(name):
  gradients = random_gradients(3)
  flat = jnp.asarray(as_matrix(gradients), jnp.float32)
  transformation = DIRECTIONS[name](normalize=True)
  whole, _ = combine(transformation, {"all": flat})
  split, _ = combine(transformation, gradients)
  np.testing.assert_allclose(as_vector(split), as_vector(whole), atol=1e-5)


@pytest.mark.slow
def test_weights_are_global_not_per_leaf():
  # Leaf by leaf the origin is in the hull of each; over both leaves it is not.
  gradients = {
    "a": jnp.array([[1.0, 0.0], [-1.0, 0.0]]),
    "b": jnp.array([[1.0], [3.0]]),
  }
  direction, _ = combine(ddi_jax.danskin_direction(normalize=False), gradients)
  matrix = as_matrix(gradients)
  # argmin of |w g_0 + (1 - w) g_1|^2, by hand.
  difference = matrix[0] - matrix[1]
  weight = np.clip(-(matrix[1] @ difference) / (difference @ difference), 0, 1)
  expected = weight * matrix[0] + (1 - weight) * matrix[1]
  np.testing.assert_allclose(as_vector(direction), expected, atol=1e-6)
  assert np.abs(expected[0]) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DIRECTIONS if name != "bundle"])
def test_scaling(name):
  gradients = random_gradients(5)
  rtol = 1e-4
  if name == "aligned mtl":  # The least singular value, from the Gram matrix.
    rtol = np.finfo(np.float32).eps * np.linalg.cond(as_matrix(gradients)) ** 2
  for scale in (1e-20, 1e-3, 1e3, 1e20):
    scaled = jax.tree.map(lambda leaf, s=scale: leaf * s, gradients)
    raw, state = combine(DIRECTIONS[name](normalize=False), gradients)
    found, found_state = combine(DIRECTIONS[name](normalize=False), scaled)
    factor = 1.0 if name in WITHOUT_SCALE else scale
    largest = np.abs(as_vector(raw)).max()
    np.testing.assert_allclose(
      as_vector(found) / factor, as_vector(raw), atol=rtol * largest
    )
    np.testing.assert_allclose(found_state.norm / factor, state.norm, rtol=rtol)
    relative = found_state.relative_norm * (scale / factor)
    np.testing.assert_allclose(relative, state.relative_norm, rtol=rtol)
    np.testing.assert_allclose(found_state.cosine, state.cosine, rtol=1e-4)
    unit, _ = combine(DIRECTIONS[name](normalize=True), scaled)
    np.testing.assert_allclose(np.linalg.norm(as_vector(unit)), 1, rtol=1e-5)


@pytest.mark.slow
def test_bundle_scaling():
  """With gradients s times as long, steps of t / s^2 make the same model."""
  gradients = random_gradients(5)
  for scale in (1e-10, 1e-3, 1e3, 1e10):
    scaled = jax.tree.map(lambda leaf, s=scale: leaf * s, gradients)
    raw, _ = combine(DIRECTIONS["bundle"](normalize=False), gradients)
    transformation = ddi_jax.danskin_direction(
      normalize=False, bundle_step=0.1 / scale**2
    )
    found, _ = combine(transformation, scaled)
    np.testing.assert_allclose(as_vector(found) / scale, as_vector(raw), rtol=1e-4)


def test_controls():
  gradients = random_gradients(7)
  average, _ = combine(ddi_jax.average_direction(), gradients)
  first, _ = combine(ddi_jax.first_restart_direction(), gradients)
  matrix = as_matrix(gradients)
  np.testing.assert_allclose(as_vector(average), matrix.mean(0), rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(as_vector(first), matrix[0])


@pytest.mark.slow
@all_directions
def test_one_gradient_is_returned_as_it_is(name):
  gradients = jax.tree.map(lambda leaf: leaf[:1], random_gradients(8))
  direction, state = combine(DIRECTIONS[name](normalize=False), gradients)
  # But for its length where that is the method's: the loss is 2 here.
  only = as_matrix(gradients)[0]
  length = np.linalg.norm(only)
  factor = {"mgda": 1 / length, "mgda loss": 0.5, "mgda loss+": 0.5 / length}
  factor |= {"cagrad": 1.5, "nash mtl": 1 / length}
  only = only * factor.get(name, 1)
  np.testing.assert_allclose(as_vector(direction), only, rtol=1e-5)
  assert (state.cosine, state.min_cosine, state.support) == (1, 1, 1)
  np.testing.assert_allclose(
    state.relative_norm, np.linalg.norm(only) / length, rtol=1e-5
  )


@pytest.mark.slow
def test_diagnostics():
  gradients = {"w": jnp.array([[3.0, 0.0], [0.0, 4.0], [6.0, 6.0]])}
  _, state = combine(ddi_jax.danskin_direction(), gradients)
  np.testing.assert_allclose(state.norm, 2.4, rtol=1e-5)  # the altitude of 3-4-5
  np.testing.assert_allclose(state.relative_norm, 0.8, rtol=1e-5)
  np.testing.assert_allclose(state.cosine, 2 * np.sqrt(0.5) / 3, rtol=1e-5)
  np.testing.assert_allclose(state.min_cosine, 0, atol=1e-6)
  assert state.support == 2
  assert state.gap <= 1e-5
  _, state = combine(ddi_jax.first_restart_direction(), gradients)
  # The step along (3, 0) does not descend on (0, 4).
  np.testing.assert_allclose(state.gap, 1, rtol=1e-5)
  assert state.support == 1


def test_inner_products_keep_the_differences_of_nearly_equal_gradients():
  rng = np.random.default_rng(0)
  common = rng.normal(size=20_000)
  matrix = common + 1e-2 * rng.normal(size=(4, 20_000))
  gradients = {"w": jnp.asarray(matrix, jnp.float32)}
  gram = np.asarray(ddi_jax.gram_matrix(gradients), float)
  exact = np.asarray(gradients["w"], float) @ np.asarray(gradients["w"], float).T
  # The products have one sign.  Their rounding errors have both, and grow as the root
  # of the number of terms: far below the differences of 1e-4 that must be kept.
  rounding = np.sqrt(matrix.shape[1]) * np.finfo(np.float32).eps
  np.testing.assert_allclose(gram, exact, rtol=rounding)
  jaxpr = str(jax.make_jaxpr(ddi_jax.gram_matrix)(gradients))
  assert "Precision.HIGHEST" in jaxpr


STATIONARY = {
  "zeros": [[0.0, 0.0], [0.0, 0.0]],
  "opposite": [[1.0, 2.0], [-1.0, -2.0]],
  "one zero": [[0.0, 0.0], [1.0, 1.0]],
  "hull": [[1.0, 0.1], [-0.5, 0.7], [-0.4, -0.9]],
}


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("case", STATIONARY)
def test_stationary_gradients_give_zeros(case, normalize):
  gradients = {"w": jnp.array(STATIONARY[case])}
  transformation = ddi_jax.danskin_direction(normalize=normalize)
  direction, state = combine(transformation, gradients)
  np.testing.assert_array_equal(direction["w"], [0.0, 0.0])
  assert state.norm == 0
  assert all(np.isfinite(value) for value in state)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4, 10])
def test_a_small_common_descent_direction_is_found(size):
  # Large conflicting parts, and one small coordinate along which all descend.
  rng = np.random.default_rng(size)
  matrix = rng.normal(size=(size, 8))
  matrix -= matrix.mean(0)
  matrix[:, -1] = 5e-3
  gradients = {"w": jnp.asarray(matrix, jnp.float32)}
  direction, _ = combine(ddi_jax.danskin_direction(), gradients)
  np.testing.assert_allclose(direction["w"][-1], 1, atol=0.05)
  assert np.all(matrix @ np.asarray(direction["w"], float) > 0)


def test_gap_of_nearly_cancelling_gradients():
  gradients = {"w": jnp.array([[1.0, 1e-4], [-1.0, 1e-4]])}
  _, state = combine(ddi_jax.average_direction(), gradients)
  np.testing.assert_allclose(state.norm, 1e-4, rtol=1e-4)
  np.testing.assert_allclose(state.gap, 0, atol=1e-6)


@pytest.mark.slow
@all_directions
def test_zero_gradients_give_zeros(name):
  gradients = {"w": jnp.zeros((3, 2))}
  direction, state = combine(DIRECTIONS[name](normalize=True), gradients)
  np.testing.assert_array_equal(direction["w"], [0.0, 0.0])
  assert all(np.isfinite(value) for value in state)


@pytest.mark.slow
@all_directions
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_is_visible(name, bad):
  gradients = {"w": jnp.array([[1.0, 2.0], [bad, 1.0]])}
  direction, _ = combine(DIRECTIONS[name](normalize=True), gradients)
  assert np.any(np.isnan(direction["w"]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes_are_kept_and_arithmetic_is_float32(dtype):
  gradients = jax.tree.map(lambda leaf: leaf.astype(dtype), random_gradients(9))
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), gradients)
  direction, state = combine(ddi_jax.danskin_direction(), gradients)
  expected, expected_state = combine(ddi_jax.danskin_direction(), wide)
  chex.assert_trees_all_equal(
    direction, jax.tree.map(lambda leaf: leaf.astype(dtype), expected)
  )
  chex.assert_trees_all_equal(state, expected_state)
  assert all(value.dtype == jnp.float32 for value in state)


@pytest.mark.slow
def test_float64_with_x64(x64):
  gradients = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), random_gradients(9))
  direction, state = combine(ddi_jax.danskin_direction(), gradients)
  assert all(value.dtype == jnp.float64 for value in (*state, direction["a"]))
  assert state.gap <= 1e-12
  assert ddi_jax.gram_matrix(random_gradients(9)).dtype == jnp.float64


@pytest.mark.slow
@all_directions
def test_state_is_stable_and_nothing_recompiles(name):
  optimizer = optax.chain(DIRECTIONS[name](), optax.adam(1e-3))
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(n=1)
  def update(gradients, state):
    return optimizer.update(
      gradients,
      state,
      PARAMS,
      losses=jnp.ones(4),
      key=jax.random.key(0),
      unknown_extra="swallowed",
    )

  state = optimizer.init(PARAMS)
  for seed in range(3):
    updates, new_state = update(random_gradients(seed), state)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, PARAMS)
    state = new_state
  for field in ddi_jax.DirectionState._fields:
    assert np.ndim(optax.tree_utils.tree_get(state, field)) == 0


@pytest.mark.slow
def test_in_a_chain_sgd_supplies_the_sign():
  gradients = random_gradients(11)
  optimizer = optax.chain(ddi_jax.danskin_direction(), optax.sgd(0.1))
  updates, _ = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS)
  direction, _ = combine(ddi_jax.danskin_direction(), gradients)
  # The learning rate and the product are rounded once each.
  rounding = 2 * np.finfo(np.float32).eps
  np.testing.assert_allclose(
    as_vector(updates), -0.1 * as_vector(direction), rtol=rounding
  )


WRONG = {
  "no leading axis": ({"w": jnp.float32(1.0)}, r"gradient\['w'\] must have shape \[K"),
  "different K": (
    {"w": jnp.ones((2, 3)), "b": jnp.ones((3, 3))},
    r"same number K.*gradient\['b'\]: 3, gradient\['w'\]: 2",
  ),
  "K = 0": (
    {"w": jnp.ones((0, 3))},
    "K >= 1 candidates on the leading axis, got K = 0",
  ),
  "integers": (
    {"w": jnp.ones((2, 3), int)},
    r"\['w'\] must be floating point, got int",
  ),
  "empty": ({}, "got an empty tree"),
}


@all_directions
@pytest.mark.parametrize("case", WRONG)
def test_wrong_gradients_are_refused(name, case):
  gradients, message = WRONG[case]
  transformation = DIRECTIONS[name]()
  with pytest.raises(ValueError, match=message):
    transformation.update(gradients, transformation.init(PARAMS))


@all_directions
def test_gradients_without_a_candidate_axis_are_told_from_params(name):
  with pytest.raises(ValueError, match=r"\[K, \*param\] with param shape \(2, 3\)"):
    combine(DIRECTIONS[name](), {**random_gradients(0), "a": jnp.ones((4, 3))}, PARAMS)


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match="tolerance must be None or a finite"):
    ddi_jax.danskin_direction(tolerance=-1)
  with pytest.raises(
    ValueError, match="max_iterations must be None or an integer >= 1"
  ):
    ddi_jax.danskin_direction(max_iterations=0)
  with pytest.raises(ValueError, match="solver must be one of active_set"):
    ddi_jax.danskin_direction(solver="newton")
  with pytest.raises(ValueError, match="bundle_step must be None or a number > 0"):
    ddi_jax.danskin_direction(bundle_step=0.0)
  with pytest.raises(ValueError, match="loss_tolerance must be None or a number >= 0"):
    ddi_jax.danskin_direction(loss_tolerance=float("nan"))
  with pytest.raises(ValueError, match=r"two forms.*; got 1.0 and 0.1"):
    ddi_jax.danskin_direction(bundle_step=1.0, loss_tolerance=0.1)


@pytest.mark.parametrize("form", ["bundle_step", "loss_tolerance"])
def test_losses_are_asked_for(form):
  transformation = ddi_jax.danskin_direction(**{form: 0.1})
  with pytest.raises(ValueError, match=f"{form} needs the candidates' losses"):
    transformation.update(random_gradients(0), transformation.init(PARAMS))
  with pytest.raises(ValueError, match=r"shape \[K\] = \(4,\).*got \(4, 8\)"):
    combine(transformation, random_gradients(0), losses=jnp.ones((4, 8)))


def random_losses(seed):
  rng = np.random.default_rng(seed)
  return rng.choice([0.01, 1.0, 30.0]) * jnp.asarray(rng.normal(size=4), jnp.float32)


@functools.cache
def jitted(form):
  def update(gradients, losses, size):
    transformation = ddi_jax.danskin_direction(normalize=False, **{form: size})
    return combine(transformation, gradients, losses=losses)

  return jax.jit(update)


@pytest.mark.slow
@hypothesis.given(seed=st.integers(0, 2**32 - 1), step=st.sampled_from([0.01, 1, 100]))
def test_bundle_lowers_every_linearised_loss_as_promised(seed, step):
  """l_k - t <g_k, z> <= max l - (t ||z||^2 + sum_j a_j e_j), which no d betters."""
  gradients, losses = random_gradients(seed), random_losses(seed)
  direction, _ = jitted("bundle_step")(gradients, losses, step)
  matrix, z = as_matrix(gradients), as_vector(direction)
  losses = np.asarray(losses, float)

  def model(d):
    return np.max(losses + matrix @ d) + d @ d / (2 * step)

  largest = np.square(matrix).sum(1).max()
  rounding = 1e-5 * (step * largest + np.ptp(losses))
  # The dual value bounds the model from below: equality proves both optimal.
  expected, weights = min_norm_by_enumeration(
    matrix @ matrix.T, (losses.max() - losses) / step
  )
  dual = losses.max() - step * expected / 2
  np.testing.assert_allclose(model(-step * z), dual, atol=rounding)
  drop = step * (z @ z) + weights @ (losses.max() - losses)
  assert np.all(losses - step * matrix @ z <= losses.max() - drop + 3 * rounding)


@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_bundle_descends_on_the_greatest_loss(seed):
  gradients, losses = random_gradients(seed), random_losses(seed)
  direction, state = jitted("bundle_step")(gradients, losses, 0.3)
  matrix, z = as_matrix(gradients), as_vector(direction)
  assert matrix[np.argmax(losses)] @ z >= z @ z * (1 - 1e-3)
  assert state.gap <= 1e-3


@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_active_set_is_the_min_norm_point_of_the_worst_candidates(seed):
  gradients, losses = random_gradients(seed), random_losses(seed)
  tolerance = float(np.ptp(losses)) / 2
  direction, _ = jitted("loss_tolerance")(gradients, losses, tolerance)
  active = np.asarray(losses) >= np.float32(losses.max()) - np.float32(tolerance)
  matrix, z = as_matrix(gradients)[active], as_vector(direction)
  value, _ = min_norm_by_enumeration(matrix @ matrix.T)
  largest = np.square(matrix).sum(1).max()
  np.testing.assert_allclose(z @ z, value, rtol=1e-4, atol=1e-5 * largest)
  assert np.all(matrix @ z >= z @ z - 1e-5 * largest)
  # The others stay below for steps s (||z||^2 - <z, g_k>) <= tolerance.
  everyone, losses = as_matrix(gradients), np.asarray(losses, float)
  excess = np.max(z @ z - everyone[~active] @ z, initial=0)
  step = tolerance / max(excess, 1e-3 * largest)
  after = losses - step * everyone @ z
  rounding = 1e-5 * (step * largest + np.ptp(losses))
  assert np.all(after <= losses.max() - step * (z @ z) + rounding)


def test_forms_are_the_plain_one_in_the_limit():
  gradients, losses = random_gradients(2), jnp.array([1.0, 1.3, 0.7, 1.1])
  plain, _ = combine(ddi_jax.danskin_direction(normalize=False), gradients)
  for form, size in (("bundle_step", 1e8), ("loss_tolerance", 1.0)):
    direction, _ = jitted(form)(gradients, losses, size)
    np.testing.assert_allclose(as_vector(direction), as_vector(plain), rtol=1e-4)
  for form, size in (("bundle_step", 1e-8), ("loss_tolerance", 0.0)):
    direction, _ = jitted(form)(gradients, losses, size)
    np.testing.assert_allclose(as_vector(direction), as_matrix(gradients)[1], rtol=1e-5)
  equal, _ = jitted("bundle_step")(gradients, jnp.ones(4), 0.1)
  np.testing.assert_allclose(as_vector(equal), as_vector(plain), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["bundle_step", "loss_tolerance"])
def test_losses_that_are_not_finite_are_visible(form, bad):
  losses = jnp.array([1.0, bad, 0.7, 1.1])
  direction, _ = jitted(form)(random_gradients(2), losses, 1.0)
  assert np.all(np.isnan(as_vector(direction)))
