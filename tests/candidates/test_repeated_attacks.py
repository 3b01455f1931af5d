"""Restarts of an attack: candidates, however many are computed at a time."""

import functools

import chex
from convolutional import ATTACK, INPUTS, KEY, LABELS, NETWORKS, PARAMS, loss_fn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax
from ddi_jax import losses
from ddi_jax.candidates import restarts


def objective(inputs, labels, network="lax"):
  return loss_fn(PARAMS, inputs, labels, network)


def candidates(num_restarts, key=KEY, network="lax", **settings):
  return ddi_jax.restart_candidates(
    ATTACK,
    functools.partial(objective, network=network),
    INPUTS,
    LABELS,
    key,
    num_restarts,
    **settings,
  )


@functools.cache
def reference(network):
  """One restart after the other, in plain Python."""
  attack = jax.jit(
    lambda key: ATTACK(key, lambda x: objective(x, LABELS, network), INPUTS)
  )
  return jnp.stack([attack(key) for key in jax.random.split(KEY, 4)])


def count_convolutions(jaxpr):
  """In a program and all that it calls, each as often as it is called."""
  count = 0
  for equation in jaxpr.eqns:
    count += equation.primitive.name in ("conv_general_dilated", "loop_friendly_conv")
    for value in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(value, "jaxpr", value)
      count += count_convolutions(inner) if hasattr(inner, "eqns") else 0
  return count


@pytest.mark.slow
@pytest.mark.parametrize("at_a_time", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("network", NETWORKS)
def test_candidates_do_not_depend_on_how_many_are_computed_at_a_time(
  network, at_a_time
):
  found = jax.jit(lambda key: candidates(4, key, network, at_a_time=at_a_time))(KEY)
  chex.assert_trees_all_close(found, reference(network), atol=1e-6)


@pytest.mark.parametrize(("network", "by_default"), [("lax", 6), ("canonical", 2)])
def test_restarts_with_convolutions_stand_side_by_side(network, by_default):
  """Each sees the batch as it is.  Of 6 at most 4 are 3 at a time.

  On a CPU convolutions of jax's own are slow in a loop: by default there is none.
  """
  seen = set()

  def counted(inputs, labels):
    seen.add((inputs.shape[0], labels.shape[0]))
    return objective(inputs, labels, network)

  def program(at_a_time):
    def attack(key):
      return ddi_jax.restart_candidates(
        ATTACK, counted, INPUTS, LABELS, key, 6, at_a_time=at_a_time
      )

    assert jax.eval_shape(attack, KEY).shape == (6, *INPUTS.shape)
    return count_convolutions(jax.make_jaxpr(attack)(KEY).jaxpr)

  of_one = program(2) / 2
  assert program(4) == 3 * of_one
  assert program(None) == by_default * of_one
  assert 0 < program(1) <= of_one
  assert seen == {(5, 5)}


@pytest.mark.parametrize("network", NETWORKS)
def test_keys_of_some_restarts_give_these_restarts(network):
  keys = jax.random.split(KEY, 4)[1:3]
  found = jax.jit(lambda keys: candidates(2, keys, network))(keys)
  np.testing.assert_allclose(found, reference(network)[1:3], atol=1e-6)
  with pytest.raises(ValueError, match=r"3 of them, .* of shape \(2,\)"):
    candidates(3, keys)


def test_one_restart_is_the_attack_itself():
  (key,) = jax.random.split(KEY, 1)
  (found,) = candidates(1)
  expected = ATTACK(key, lambda x: objective(x, LABELS), INPUTS)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_candidates_differ():
  found = candidates(3)
  assert not np.allclose(found[0], found[1])
  assert not np.allclose(found[1], found[2])
  distances = jnp.abs(found - INPUTS[None])
  assert 0.1 < distances.max() <= 0.2 + 1e-6


def test_the_source_of_the_same_name_is_these_on_a_loss_of_logits():
  def logits_fn(inputs):
    return jnp.tanh(inputs.mean((1, 2)) @ jnp.array([[1.0, -2.0, 0.5]]))

  source = restarts(ATTACK, 3, at_a_time=2, loss=losses.margin)
  expected = ddi_jax.restart_candidates(
    ATTACK,
    lambda x, labels: losses.margin(logits_fn(x), labels),
    INPUTS,
    LABELS,
    KEY,
    3,
  )
  found = source(KEY, logits_fn, INPUTS, LABELS)
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("number", [0, -1, 2.0, True])
def test_bad_numbers(number):
  with pytest.raises(ValueError, match="num_restarts must be an integer >= 1"):
    candidates(number)
  with pytest.raises(ValueError, match="at_a_time must be None or an integer >= 1"):
    candidates(2, at_a_time=number)
  with pytest.raises(ValueError, match=r"key must be a key such as .*got None"):
    candidates(2, None)
  with pytest.raises(ValueError, match="at_a_time must be None or an integer >= 1"):
    restarts(ATTACK, 2, at_a_time=number)


def test_worst_candidate_is_per_example():
  points = jnp.arange(6.0).reshape(2, 3, 1)
  values = jnp.array([[1.0, 5.0, 2.0], [3.0, 4.0, 2.5]])
  worst = ddi_jax.worst_candidate(points, values)
  np.testing.assert_array_equal(worst, [[3.0], [1.0], [5.0]])
