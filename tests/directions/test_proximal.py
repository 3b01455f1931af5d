"""The proximal step per example: against the explicit problem, and in its limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import min_norm_by_enumeration, proximal_by_slsqp

import ddi_jax

BATCH, COUNT = 4, 3
EXACT = {"iterations": 2000, "tolerance": 1e-7, "memory": 12}
RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(3, 3)), "bias": RNG.normal(size=3)}
CANDIDATES = RNG.normal(size=(COUNT, BATCH, 3))
LABELS = np.arange(BATCH) % 3


def loss_fn(params, inputs, labels):
  logits = jnp.tanh(inputs @ params["kernel"]) + params["bias"][None]
  return ddi_jax.losses.cross_entropy(logits, labels)


def mixing_loss(params, inputs, labels):
  """As with BatchNorm: every example's loss depends on the others'."""
  return loss_fn(params, inputs - inputs.mean(axis=0, keepdims=True), labels)


def single(tree):
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


@functools.cache  # Compiling takes longer than all else here.
def compiled(loss, **settings):
  def compute(step, tolerance, params, candidates, valid):
    return ddi_jax.proximal_danskin_gradient(
      loss,
      params,
      candidates,
      jnp.asarray(LABELS),
      step=step,
      tolerance=tolerance,
      valid=valid,
      **settings,
    )

  return jax.jit(compute)


def solve(step, loss=loss_fn, candidates=CANDIDATES, valid=None, **options):
  settings = EXACT | options
  tolerance = settings.pop("tolerance")
  compute = compiled(loss, **settings)
  return compute(step, tolerance, PARAMS, jnp.asarray(candidates), valid)


def flat(tree):
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def linearised(loss=loss_fn, candidates=CANDIDATES):
  """(Gradients `[K, B, n]`, losses `[K, B]`)."""
  gradients, losses = [], []
  for inputs in candidates:
    losses.append(loss(PARAMS, inputs, LABELS))
    rows = jax.tree.leaves(jax.jacrev(loss)(PARAMS, inputs, LABELS))
    gradients.append(np.concatenate([row.reshape(BATCH, -1) for row in rows], axis=1))
  return np.stack(gradients), np.stack(losses)


def model_value(gradients, losses, step, direction):
  after = losses + gradients @ direction
  return after.max(axis=0).mean() + direction @ direction / (2 * step)


@pytest.mark.slow
@pytest.mark.parametrize("step", [0.03, 0.5, 10.0])
@pytest.mark.parametrize("loss", [loss_fn, mixing_loss])
def test_against_the_explicit_problem(step, loss, x64):
  gradient, info = solve(step, loss, mixes_examples=loss is mixing_loss)
  gradients, losses = linearised(loss)
  expected, direction = proximal_by_slsqp(gradients, losses, step)
  found = model_value(gradients, losses, step, -step * flat(gradient))
  decrease = losses.max(axis=0).mean() - expected
  assert expected - 1e-6 * decrease <= found <= expected + 1e-6 * decrease
  np.testing.assert_allclose(-step * flat(gradient), direction, rtol=1e-2, atol=1e-4)
  np.testing.assert_allclose(info.losses, losses)
  np.testing.assert_allclose(info.weights.sum(axis=0), 1)
  combined = np.einsum("kb,kbn->n", info.weights, gradients) / BATCH
  np.testing.assert_allclose(combined, flat(gradient), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "iterations"), [(1, 0), (1, 1), (3, 5)])
def test_gap_and_promise(memory, iterations, x64):
  """The gap bounds the distance to the least value, the decrease is the true one."""
  step = 2.0
  options = {"iterations": iterations, "tolerance": 0.0, "memory": memory}
  gradient, info = solve(step, **options)
  assert info.iterations == iterations
  assert info.passes == COUNT + (iterations + 1) * (3 + 2 * COUNT)
  gradients, losses = linearised()
  direction = -step * flat(gradient)
  found = model_value(gradients, losses, step, direction)
  least, _ = proximal_by_slsqp(gradients, losses, step)
  assert found - least <= info.gap + 1e-9
  after = (losses + gradients @ direction).max(axis=0).mean()
  decrease = losses.max(axis=0).mean() - after
  np.testing.assert_allclose(info.predicted_decrease, decrease, rtol=1e-6)
  squared_norm = flat(gradient) @ flat(gradient)
  assert decrease >= step * squared_norm - info.gap - 1e-9


def test_memory_needs_fewer_iterations_and_the_tolerance_ends_them(x64):
  taken = {}
  for memory in (1, 12):
    _, info = solve(2.0, memory=memory, tolerance=1e-3)
    assert info.gap <= 1e-3 * info.predicted_decrease
    taken[memory] = int(info.iterations)
  assert 1 <= taken[12] < taken[1] < EXACT["iterations"]


def test_a_vanishing_step_is_the_worst_case_of_each_example(x64):
  gradient, info = solve(1e-9)
  gradients, losses = linearised()
  worst = losses.argmax(axis=0)
  np.testing.assert_array_equal(info.weights, np.eye(COUNT)[worst].T)
  expected = gradients[worst, np.arange(BATCH)].mean(axis=0)
  np.testing.assert_allclose(flat(gradient), expected, rtol=1e-9)
  assert info.iterations == 0


def test_an_endless_step_is_the_min_norm_point_of_every_mixed_batch(x64):
  """Of all K^B batches that can be made from the candidates."""
  choices = np.stack(np.meshgrid(*[[0, 1]] * BATCH), axis=-1).reshape(-1, BATCH)
  gradients, _ = linearised()
  mixed = gradients[choices, np.arange(BATCH)].mean(axis=1)
  gradient, _ = solve(1e9, candidates=CANDIDATES[:2], tolerance=1e-9)
  norm = np.linalg.norm(flat(gradient))
  assert np.all(mixed @ flat(gradient) >= (1 - 1e-6) * norm**2)
  solution = ddi_jax.min_norm_weights(jnp.asarray(mixed @ mixed.T))
  np.testing.assert_allclose(norm**2, solution.squared_norm, rtol=1e-6)


@pytest.mark.slow
def test_per_batch_is_the_bundle(x64):
  step = 5.0
  options = {"per": "batch", "tolerance": 1e-9, "mixes_examples": True}
  gradient, info = solve(step, mixing_loss, **options)
  gradients, losses = linearised(mixing_loss)
  rows = jnp.asarray(gradients.mean(axis=1))
  expected, _ = ddi_jax.danskin_direction(normalize=False, bundle_step=step).update(
    rows, None, losses=jnp.asarray(losses.mean(axis=1))
  )
  np.testing.assert_allclose(flat(gradient), expected, atol=1e-6)
  weights = np.asarray(info.weights)
  np.testing.assert_array_equal(weights, np.broadcast_to(weights[:, :1], weights.shape))
  assert np.sum(weights[:, 0] > 1e-6) > 1


def test_per_batch_with_equal_losses_is_danskin_s_direction(x64):
  def level(params, inputs, labels):
    losses = loss_fn(params, inputs, labels)
    return losses - jax.lax.stop_gradient(losses)

  gradient, _ = solve(0.3, level, per="batch", tolerance=1e-9)
  rows = linearised()[0].mean(axis=1)
  _, weights = min_norm_by_enumeration(rows @ rows.T)
  np.testing.assert_allclose(flat(gradient), weights @ rows, atol=1e-6)


def test_one_candidate_is_its_gradient(x64):
  gradient, info = solve(0.5, candidates=CANDIDATES[:1])
  expected = linearised()[0][0].mean(axis=0)
  np.testing.assert_allclose(flat(gradient), expected)
  np.testing.assert_allclose(info.predicted_decrease, 0.5 * expected @ expected)
  np.testing.assert_allclose(info.gap, 0, atol=1e-12)


@pytest.mark.slow
def test_some_examples_have_fewer_candidates(x64):
  """As if what is not valid repeated a candidate that is."""
  valid = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]], bool)
  repeated = np.where(
    valid[..., None], CANDIDATES, CANDIDATES[valid.argmax(axis=0), np.arange(BATCH)]
  )
  junk = np.where(valid[..., None], CANDIDATES, 100.0)
  expected, _ = solve(1.0, candidates=repeated, tolerance=1e-11)
  gradient, info = solve(1.0, candidates=junk, valid=valid, tolerance=1e-11)
  np.testing.assert_allclose(flat(gradient), flat(expected), atol=1e-5)
  assert np.all(np.asarray(info.weights)[~valid] == 0)


@pytest.mark.slow
def test_at_a_time_changes_nothing_in_single_precision():
  def with_aux(params, inputs, labels):
    return mixing_loss(params, inputs, labels), {"mean": inputs.mean()}

  params, candidates = single((PARAMS, CANDIDATES))
  options = {"step": 1.0, "iterations": 3, "mixes_examples": True, "tolerance": 0.0}
  found = {
    at_a_time: ddi_jax.proximal_danskin_gradient(
      with_aux, params, candidates, LABELS, at_a_time=at_a_time, has_aux=True, **options
    )
    for at_a_time in (None, 1, COUNT)
  }
  expected, _ = found[None]
  for gradient, info in found.values():
    np.testing.assert_allclose(flat(gradient), flat(expected), atol=1e-4)
    np.testing.assert_allclose(info.aux["mean"], candidates.mean((1, 2)), rtol=1e-5)
    assert gradient["bias"].dtype == jnp.float32


@functools.cache
def of_linear_losses():
  def linear(params, inputs, labels):
    """Losses l + g'params, with (l, g) as the inputs."""
    del labels
    return inputs[:, 0] + inputs[:, 1:] @ params["w"]

  def compute(params, inputs, step):
    return ddi_jax.proximal_danskin_gradient(
      linear, params, inputs, None, step=step, iterations=20, tolerance=0.0
    )

  return jax.jit(compute)


@pytest.mark.parametrize("level", [0.0, 1e4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e18])
def test_single_precision_at_any_scale(scale, level):
  """Orthogonal gradients whose losses differ by a little, far above zero.

  With t = 1 / scale^2, over w in [0, 1]: (w^2 + 9 (1 - w)^2) / 2 - (1 - w) / 2.
  """
  rows = [[level, scale, 0.0], [level + 0.5, 0.0, 3 * scale]]
  inputs = jnp.asarray(rows, jnp.float32)[:, None]
  step = jnp.float32(1 / scale**2)
  gradient, info = of_linear_losses()({"w": jnp.zeros(2)}, inputs, step)
  np.testing.assert_allclose(info.weights[:, 0], [0.85, 0.15], rtol=1e-4)
  np.testing.assert_allclose(flat(gradient) / scale, [0.85, 0.45], rtol=1e-4)
  assert 0 <= info.gap <= 1e-5
  # Each loss falls by t <z, g>: from (0, .5) to (-.85, -.85).
  np.testing.assert_allclose(info.predicted_decrease, 1.35, rtol=1e-4)


@pytest.mark.parametrize("step", [0.0, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize(
  "rows",
  [[[1.0, 0.0, 0.0]] * 2, [[1.0, 2.0, 3.0]] * 2, [[0.5, 1.0, 0.0], [0.5, -1.0, 0.0]]],
  ids=["no gradient", "the same twice", "opposite gradients"],
)
def test_degenerate_candidates(rows, step):
  inputs = jnp.asarray(rows, jnp.float32)[:, None]
  gradient, info = of_linear_losses()({"w": jnp.zeros(2)}, inputs, jnp.float32(step))
  found, expected = flat(gradient), np.asarray(rows)[0, 1:]
  if rows[0] != rows[1] and step > 0:
    expected = np.zeros(2)  # Stationary.
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_allclose(info.weights.sum(axis=0), 1, rtol=1e-6)
  assert 0 <= info.gap <= 1e-6 * max(1.0, step)


@pytest.mark.slow
def test_a_traced_step_does_not_recompile_and_nan_shows():
  @jax.jit
  def compute(params, step):
    return ddi_jax.proximal_danskin_gradient(
      loss_fn, params, single(CANDIDATES), LABELS, step=step
    )

  first, _ = compute(single(PARAMS), 0.1)
  second, _ = compute(single(PARAMS), 10.0)
  assert compute._cache_size() == 1
  assert np.linalg.norm(flat(second)) < np.linalg.norm(flat(first))
  broken, _ = compute(single(PARAMS) | {"bias": jnp.full(3, jnp.nan)}, 0.1)
  assert np.isnan(flat(broken)).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"step": 0.0}, "step must be a finite number > 0, got 0.0"),
    ({"per": "class"}, "per must be one of example, batch; got 'class'"),
    ({"iterations": -1}, "iterations must be an integer >= 0, got -1"),
    ({"memory": 0}, "memory must be an integer >= 1, got 0"),
    ({"tolerance": -1.0}, "tolerance must be a finite number >= 0, got -1.0"),
    ({"at_a_time": 0}, "at_a_time must be None or an integer >= 1, got 0"),
    ({"valid": jnp.ones((2, 2), bool)}, "valid must be bool of shape"),
    ({"valid": jnp.zeros((COUNT, BATCH), bool)}, "got none for example 0"),
    (
      {"valid": jnp.ones((COUNT, BATCH), bool), "per": "batch"},
      'must be None with per="batch"',
    ),
  ],
)
def test_bad_settings(options, message):
  with pytest.raises(ValueError, match=message):
    ddi_jax.proximal_danskin_gradient(
      loss_fn, single(PARAMS), single(CANDIDATES), LABELS, **({"step": 1.0} | options)
    )


def test_a_step_in_double_precision_changes_no_dtype(x64):
  del x64
  rows = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 3.0]], np.float32)
  params = {"w": jnp.zeros(2, jnp.float32)}
  compute = of_linear_losses()
  found, info = compute(params, rows[:, None], np.float64(0.5))
  expected, _ = compute(params, rows[:, None], np.float32(0.5))
  dtypes = {found["w"].dtype, info.weights.dtype, info.losses.dtype}
  assert dtypes == {np.dtype(np.float32)}
  np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-6)
