"""Ordinary attacks on a classifier: the worst case of each example."""

import jax
import jax.numpy as jnp
from linear_model import EPSILONS, KEY, MAKERS, assert_inside, is_right, problem
import numpy as np
import pytest

import ddi_jax
from ddi_jax import losses
from ddi_jax.attacks import (
  apgd,
  classifier,
  classifier_attack,
  fab,
  multi_targeted_pgd,
  square,
)


@pytest.mark.slow
@pytest.mark.parametrize("norm", MAKERS)
def test_multi_targeted_pgd_breaks_what_a_linear_model_allows(norm):
  p = problem()
  epsilon = EPSILONS[norm]
  threat_model = MAKERS[norm](epsilon)
  attack = multi_targeted_pgd(threat_model, steps=30, step_size=epsilon / 4)
  found = jax.jit(attack, static_argnums=1)(KEY, p.logits_fn, p.inputs, p.labels)
  assert_inside(threat_model, found, p.inputs)
  robust = p.distances(norm) > epsilon
  np.testing.assert_array_equal(is_right(p.logits_fn, found, p.labels), robust)


def test_multi_targeted_pgd_takes_the_likeliest_targets_first():
  p = problem()
  seen = []
  for targets in (1, 4, 9):
    attack = multi_targeted_pgd(
      ddi_jax.linf(0.03), steps=10, step_size=0.01, targets=targets, restarts=2
    )
    found = jax.jit(attack, static_argnums=1)(KEY, p.logits_fn, p.inputs, p.labels)
    seen.append(is_right(p.logits_fn, found, p.labels))
  assert np.all(seen[0] >= seen[1])
  np.testing.assert_array_equal(seen[1], seen[2])  # There are only four.


@pytest.mark.slow
def test_worst_case_over_restarts_is_per_example():
  p = problem()
  starts = []

  def attack(key, objective, inputs):
    # Each run shows only some examples the way.
    lucky = jax.random.bernoulli(key, 0.5, inputs.shape[:1])
    gradient = jax.grad(lambda x: objective(x).sum())(inputs)
    starts.append(lucky.shape)
    return jnp.where(lucky[:, None], inputs + 0.3 * jnp.sign(gradient), inputs)

  once, often = (
    classifier_attack(attack, losses.margin, restarts=count)(
      KEY, p.logits_fn, p.inputs, p.labels
    )
    for count in (1, 30)
  )
  assert 0 < is_right(p.logits_fn, once, p.labels).sum() < 16
  assert not is_right(p.logits_fn, often, p.labels).any()
  # What one run broke is kept.
  wrong = ~is_right(p.logits_fn, once, p.labels)
  np.testing.assert_array_equal(often[wrong], once[wrong])


def test_a_worse_result_is_not_taken():
  p = problem()

  def backwards(key, objective, inputs):
    del key
    gradient = jax.grad(lambda x: objective(x).sum())(inputs)
    return inputs - 1e-3 * jnp.sign(gradient)

  attack = classifier_attack(backwards, losses.margin)
  found = attack(KEY, p.logits_fn, p.inputs, p.labels)
  np.testing.assert_array_equal(found, p.inputs)


def test_targets_are_ordered_by_the_clean_logits():
  logits = jnp.array([[1.0, 4.0, 3.0, 2.0], [9.0, 1.0, 2.0, 3.0]])
  labels = jnp.array([1, 2])
  found = [classifier.targets_by_rank(logits, labels, rank) for rank in range(3)]
  np.testing.assert_array_equal(found, [[2, 0], [3, 3], [0, 1]])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("make", "settings"),
  [(apgd, {"steps": 3}), (fab, {"steps": 3}), (square, {"queries": 5})],
)
def test_dtype_is_kept(make, settings):
  p = problem(batch=4)
  inputs, weights = p.inputs.astype(jnp.bfloat16), p.weights.astype(jnp.bfloat16)
  attack = make(ddi_jax.l1(0.1), **settings)
  found = jax.jit(attack, static_argnums=1)(
    KEY, lambda x: x @ weights, inputs, p.labels
  )
  assert found.dtype == jnp.bfloat16


def test_old_style_keys_are_accepted():
  inputs = jnp.ones((3, 2))
  old = classifier.example_keys(jax.random.PRNGKey(5), inputs)
  new = classifier.example_keys(jax.random.key(5), inputs)
  assert jnp.all(jax.random.key_data(old) == jax.random.key_data(new))


def test_bad_calls_are_refused():
  p = problem()
  attack = classifier_attack(ddi_jax.pgd(ddi_jax.linf(0.1), steps=1, step_size=0.1))
  with pytest.raises(ValueError, match=r"key must be a key such as .*, got None"):
    attack(None, p.logits_fn, p.inputs, p.labels)
  with pytest.raises(ValueError, match="one key per example"):
    attack(jax.random.split(KEY, 3), p.logits_fn, p.inputs, p.labels)
  with pytest.raises(ValueError, match="floating point, got int32"):
    attack(KEY, p.logits_fn, jnp.ones((16, 10), int), p.labels)
  with pytest.raises(ValueError, match=r"labels must be integers of shape \(16,\)"):
    attack(KEY, p.logits_fn, p.inputs, p.labels[:3])
  with pytest.raises(ValueError, match="C >= 2"):
    attack(KEY, lambda x: x[:, :1], p.inputs, p.labels)
  with pytest.raises(ValueError, match="restarts must be an integer >= 1"):
    classifier_attack(lambda key, objective, inputs: inputs, restarts=0)
