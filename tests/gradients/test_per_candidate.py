"""Gradients at K restarts, however many are computed at a time."""

import functools

import chex
from convolutional import ATTACK, INPUTS, KEY, LABELS, NETWORKS, PARAMS, loss_fn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax


@functools.cache
def reference(network, count):
  """One restart after the other, in plain Python: (gradients, candidates)."""

  def loss(params, points):
    return loss_fn(params, points, LABELS, network)

  @jax.jit
  def restart(key):
    points = ATTACK(key, lambda x: loss(PARAMS, x), INPUTS)
    return jax.grad(lambda params: loss(params, points).mean())(PARAMS), points

  results = [restart(key) for key in jax.random.split(KEY, count)]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("count", "at_a_time"), [(4, None), (4, 1), (4, 2), (3, None), (3, 2)]
)
@pytest.mark.parametrize("network", NETWORKS)
def test_results_do_not_depend_on_how_many_are_computed_at_a_time(
  network, count, at_a_time
):
  expected_gradients, expected_candidates = reference(network, count)
  loss = functools.partial(loss_fn, network=network)
  gradients_fn = ddi_jax.restart_gradients(
    loss, ATTACK, count, restarts_at_a_time=at_a_time
  )
  gradients, info = jax.jit(gradients_fn)(PARAMS, INPUTS, LABELS, KEY)
  chex.assert_trees_all_close(info.candidates, expected_candidates, atol=1e-6)
  chex.assert_trees_all_close(gradients, expected_gradients, atol=1e-6)
  for losses, points in zip(info.losses, expected_candidates, strict=True):
    np.testing.assert_allclose(losses, loss(PARAMS, points, LABELS), rtol=1e-5)
  assert info.aux is None


@pytest.mark.slow
@pytest.mark.parametrize("at_a_time", [None, 1, 2, 4])
@pytest.mark.parametrize("network", NETWORKS)
def test_candidate_gradients_at_a_time(network, at_a_time):
  expected, candidates = reference(network, 4)

  def with_aux(params, inputs, labels):
    return loss_fn(params, inputs, labels, network), {"first": inputs[0]}

  @jax.jit
  def compute(params, candidates):
    return ddi_jax.candidate_gradients(
      with_aux, params, candidates, LABELS, has_aux=True, at_a_time=at_a_time
    )

  found, info = compute(PARAMS, candidates)
  chex.assert_trees_all_close(found, expected, atol=1e-6)
  np.testing.assert_array_equal(info.aux["first"], candidates[:, 0])
  chex.assert_shape(info.losses, (4, len(INPUTS)))


@pytest.mark.parametrize("at_a_time", [0, 1.5, True])
def test_at_a_time_out_of_range(at_a_time):
  message = "restarts_at_a_time must be None or an integer >= 1"
  with pytest.raises(ValueError, match=message):
    ddi_jax.restart_gradients(loss_fn, ATTACK, 3, restarts_at_a_time=at_a_time)
  with pytest.raises(ValueError, match="at_a_time must be None or an integer >= 1"):
    ddi_jax.candidate_gradients(
      loss_fn, PARAMS, INPUTS[None], LABELS, at_a_time=at_a_time
    )


def test_candidates_differ_and_depend_on_the_key():
  gradients_fn = jax.jit(ddi_jax.restart_gradients(loss_fn, ATTACK, 2))
  _, first = gradients_fn(PARAMS, INPUTS, LABELS, jax.random.key(0))
  _, second = gradients_fn(PARAMS, INPUTS, LABELS, jax.random.key(1))
  assert not np.allclose(first.candidates[0], first.candidates[1])
  assert not np.allclose(first.candidates, second.candidates)


@pytest.mark.slow
def test_aux_is_stacked_and_ignored_by_the_attack():
  def with_aux(params, inputs, labels):
    return loss_fn(params, inputs, labels), {"mean": inputs.mean()}

  plain = jax.jit(ddi_jax.restart_gradients(loss_fn, ATTACK, 3))
  gradients_fn = jax.jit(ddi_jax.restart_gradients(with_aux, ATTACK, 3, has_aux=True))
  gradients, info = gradients_fn(PARAMS, INPUTS, LABELS, KEY)
  expected, _ = plain(PARAMS, INPUTS, LABELS, KEY)
  chex.assert_trees_all_close(gradients, expected, atol=1e-6)
  means = info.candidates.mean((1, 2, 3, 4))
  np.testing.assert_allclose(info.aux["mean"], means, rtol=1e-6)


@pytest.mark.slow
def test_attack_loss_replaces_the_loss():
  def opposite(params, inputs, labels):
    return -loss_fn(params, inputs, labels)

  gradients_fn = ddi_jax.restart_gradients(loss_fn, ATTACK, 2, attack_loss_fn=opposite)
  _, info = gradients_fn(PARAMS, INPUTS, LABELS, KEY)
  assert np.all(info.losses < loss_fn(PARAMS, INPUTS, LABELS)[None])


def test_bfloat16_parameters_get_float32_gradients():
  params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
  wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  gradients_fn = ddi_jax.restart_gradients(loss_fn, ATTACK, 2)
  gradients, info = gradients_fn(params, INPUTS, LABELS, KEY)
  expected, _ = ddi_jax.candidate_gradients(loss_fn, wide, info.candidates, LABELS)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))
  chex.assert_trees_all_close(gradients, expected, atol=1e-6)


def test_one_restart_is_plain_pgd():
  gradients, info = ddi_jax.restart_gradients(loss_fn, ATTACK, 1)(
    PARAMS, INPUTS, LABELS, KEY
  )
  assert gradients["dense"].shape == (1, 4, 3)
  assert info.losses.shape == (1, 5)


@pytest.mark.parametrize("num_restarts", [0, -1, 2.0, True])
def test_bad_number_of_restarts(num_restarts):
  with pytest.raises(ValueError, match="num_restarts must be an integer >= 1"):
    ddi_jax.restart_gradients(loss_fn, ATTACK, num_restarts)


def test_bad_parameters_and_missing_key():
  gradients_fn = ddi_jax.restart_gradients(loss_fn, ATTACK, 2)
  with pytest.raises(ValueError, match=r"key must be a key such as .*, got None"):
    gradients_fn(PARAMS, INPUTS, LABELS, None)
  with pytest.raises(ValueError, match=r"params\['steps'\] must be floating point"):
    ddi_jax.candidate_gradients(
      loss_fn, {**PARAMS, "steps": jnp.zeros(2, int)}, INPUTS[None], LABELS
    )


def test_bad_loss_shape():
  scalar = ddi_jax.restart_gradients(
    lambda *a: loss_fn(*a).mean(), ATTACK, 2, attack_loss_fn=loss_fn
  )
  with pytest.raises(ValueError, match="one per example"):
    scalar(PARAMS, INPUTS, LABELS, KEY)
