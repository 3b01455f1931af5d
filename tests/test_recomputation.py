"""Gradients that are recomputed give the directions of those that are kept."""

from gradient_trees import DIRECTIONS
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddi_jax

K, BATCH, FEATURES = 5, 6, 4


def loss_fn(params, inputs, labels):
  hidden = jnp.tanh(inputs @ params["first"])
  logits = hidden @ params["second"] + params["bias"][None]
  losses = ddi_jax.losses.cross_entropy(logits, labels)
  return losses, {"mean": inputs.mean(), "hidden": hidden[0]}


def problem(spread):
  keys = jax.random.split(jax.random.key(0), 4)
  params = {
    "first": jax.random.normal(keys[0], (FEATURES, 8)),
    "second": jax.random.normal(keys[1], (8, 3)),
    "bias": jnp.zeros(3),
  }
  candidates = jax.random.normal(keys[2], (1, BATCH, FEATURES)) + spread * (
    jax.random.normal(keys[3], (K, BATCH, FEATURES))
  )
  labels = jnp.array([0, 1, 2, 0, 1, 2])
  return params, candidates, labels


def direction_of(transformation, at_a_time, spread):
  @jax.jit
  def compute(params, candidates, labels):
    gradients, info = ddi_jax.candidate_gradients(
      loss_fn, params, candidates, labels, has_aux=True, gradients_at_a_time=at_a_time
    )
    updates, state = transformation.update(
      gradients,
      transformation.init(params),
      params,
      losses=info.losses.mean(1),
      key=jax.random.key(0),
    )
    return updates, state, info

  return compute(*problem(spread))


@pytest.mark.parametrize("spread", [0.01, 1.0])
@pytest.mark.parametrize("at_a_time", [1, 2, 5, 9])
def test_recomputed_is_what_is_kept(at_a_time, spread):
  transformation = ddi_jax.danskin_direction(normalize=False)
  kept, kept_state, kept_info = direction_of(transformation, None, spread)
  found, state, info = direction_of(transformation, at_a_time, spread)
  for name, leaf in kept.items():
    np.testing.assert_allclose(found[name], leaf, rtol=1e-3, atol=1e-5)
  for name in ("norm", "cosine", "min_cosine", "support", "relative_norm"):
    np.testing.assert_allclose(
      getattr(state, name), getattr(kept_state, name), rtol=1e-4
    )
  np.testing.assert_allclose(info.losses, kept_info.losses, rtol=1e-5)
  np.testing.assert_allclose(info.aux["hidden"], kept_info.aux["hidden"], rtol=1e-5)
  np.testing.assert_allclose(info.aux["mean"], kept_info.aux["mean"], rtol=1e-4)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_direction_takes_them(name):
  transformation = DIRECTIONS[name](normalize=True)
  kept, _, _ = direction_of(transformation, None, 1.0)
  found, _, _ = direction_of(transformation, 2, 1.0)
  for leaf_name, leaf in kept.items():
    np.testing.assert_allclose(found[leaf_name], leaf, rtol=1e-3, atol=1e-5)


def test_in_a_chain():
  optimizer = optax.chain(ddi_jax.danskin_direction(), optax.sgd(0.1, momentum=0.9))
  attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=2, step_size=0.1)
  params, candidates, labels = problem(0.0)
  results = []
  for at_a_time in (None, 1):
    gradients_fn = ddi_jax.restart_gradients(
      loss_fn, attack, 3, has_aux=True, gradients_at_a_time=at_a_time
    )

    @jax.jit
    def step(params, inputs, key, gradients_fn=gradients_fn):
      gradients, _ = gradients_fn(params, inputs, labels, key)
      updates, _ = optimizer.update(gradients, optimizer.init(params), params)
      return optax.apply_updates(params, updates)

    results.append(step(params, candidates[0], jax.random.key(1)))
  kept, found = results
  for name, leaf in kept.items():
    np.testing.assert_allclose(found[name], leaf, rtol=1e-3, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_candidates():
  params = {"w": jnp.zeros((400, 400))}

  def wide_loss(params, inputs, labels):
    return jnp.square(inputs @ params["w"]).mean(1) - labels

  transformation = ddi_jax.danskin_direction()

  def temporaries(count, at_a_time):
    @jax.jit
    def compute(params, candidates):
      gradients, _ = ddi_jax.candidate_gradients(
        wide_loss,
        params,
        candidates,
        jnp.zeros(2),
        gradients_at_a_time=at_a_time,
      )
      return transformation.update(gradients, transformation.init(params), params)[0]

    compiled = compute.lower(params, jnp.zeros((count, 2, 400))).compile()
    return compiled.memory_analysis().temp_size_in_bytes / params["w"].nbytes

  assert temporaries(32, None) >= 32
  assert temporaries(32, 1) < temporaries(4, 1) + 0.5
  assert temporaries(32, 1) <= 7
  assert temporaries(32, 4) < 20


def test_bad_number():
  with pytest.raises(ValueError, match="gradients_at_a_time must be an integer >= 1"):
    direction_of(ddi_jax.danskin_direction(), 0, 1.0)
