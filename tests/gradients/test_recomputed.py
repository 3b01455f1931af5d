"""Gradients that are recomputed give the directions of those that are kept."""

import functools

import chex
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


def gradients_of(at_a_time, params, candidates, labels, loss=loss_fn, has_aux=True):
  """Kept if at_a_time is None, else recomputed; (gradients, info)."""
  if at_a_time is None:
    return ddi_jax.candidate_gradients(
      loss, params, candidates, labels, has_aux=has_aux
    )
  return ddi_jax.recomputed_gradients(
    loss, params, candidates, labels, at_a_time=at_a_time, has_aux=has_aux
  )


def combine(transformation, gradients, info, params):
  return transformation.update(
    gradients,
    transformation.init(params),
    params,
    losses=info.losses.mean(1),
    key=jax.random.key(0),
  )


@functools.cache
def compiled(name, normalize, at_a_time):
  transformation = DIRECTIONS[name](normalize=normalize)

  @jax.jit
  def compute(params, candidates, labels):
    gradients, info = gradients_of(at_a_time, params, candidates, labels)
    return *combine(transformation, gradients, info, params), info

  return compute


def direction_of(name, at_a_time, spread, normalize=True):
  return compiled(name, normalize, at_a_time)(*problem(spread))


@pytest.mark.slow
@pytest.mark.parametrize("at_a_time", [1, 2, 5, 9])
def test_recomputed_is_what_is_kept(at_a_time):
  for spread in (0.01, 1.0):
    kept, kept_state, kept_info = direction_of("danskin", None, spread, False)
    found, state, info = direction_of("danskin", at_a_time, spread, False)
    chex.assert_trees_all_close(found, kept, rtol=1e-3, atol=1e-5)
    for name in ("norm", "cosine", "min_cosine", "support", "relative_norm"):
      np.testing.assert_allclose(
        getattr(state, name), getattr(kept_state, name), rtol=1e-4
      )
    np.testing.assert_allclose(info.losses, kept_info.losses, rtol=1e-5)
    np.testing.assert_allclose(info.aux["hidden"], kept_info.aux["hidden"], rtol=1e-5)
    np.testing.assert_allclose(info.aux["mean"], kept_info.aux["mean"], rtol=1e-4)


@pytest.mark.slow
# The others differ from these in their weights alone.
@pytest.mark.parametrize(
  "name", ["danskin", "bundle", "active set", "mgda loss+", "pcgrad", "nash mtl"]
)
def test_every_direction_takes_them(name):
  kept, _, _ = direction_of(name, None, 1.0)
  found, _, _ = direction_of(name, 2, 1.0)
  chex.assert_trees_all_close(found, kept, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_they_pass_through_jit_as_a_pytree():
  """Made in one program, combined in another, the same as those that are kept."""
  params, candidates, labels = problem(1.0)
  transformation = ddi_jax.danskin_direction()
  make = jax.jit(functools.partial(gradients_of, 2))
  gradients, info = make(params, candidates, labels)
  assert isinstance(gradients, ddi_jax.RecomputedGradients)
  leaves, structure = jax.tree.flatten(gradients)
  assert len(leaves) == 3 + 1 + 1 + 4  # Parameters, candidates, labels, inner products.
  kept, expected_state, kept_info = direction_of("danskin", None, 1.0)
  update = jax.jit(functools.partial(combine, transformation))
  for each in (gradients, jax.tree.unflatten(structure, leaves)):
    found, state = update(each, info, params)
    chex.assert_trees_all_close(found, kept, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(state.norm, expected_state.norm, rtol=1e-4)
  chex.assert_trees_all_close(info, kept_info, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_new_arguments_of_the_same_shape_are_not_compiled_again():
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(n=1)
  def direction(gradients):
    return ddi_jax.danskin_direction().update(gradients, None)[0]

  @jax.jit
  @chex.assert_max_traces(n=1)
  def make(params, candidates, labels):
    return gradients_of(1, params, candidates, labels)[0]

  first, second = (direction(make(*problem(spread))) for spread in (0.5, 1.0))
  assert not np.allclose(first["first"], second["first"])


@pytest.mark.slow
def test_in_a_chain():
  optimizer = optax.chain(ddi_jax.danskin_direction(), optax.sgd(0.1, momentum=0.9))
  attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=2, step_size=0.1)
  params, candidates, labels = problem(0.0)
  results = []
  for at_a_time in (None, 1):

    @jax.jit
    def step(params, inputs, key, at_a_time=at_a_time):
      points = ddi_jax.restart_candidates(
        attack, lambda x, y: loss_fn(params, x, y)[0], inputs, labels, key, 3
      )
      gradients, _ = gradients_of(at_a_time, params, points, labels)
      updates, _ = optimizer.update(gradients, optimizer.init(params), params)
      return optax.apply_updates(params, updates)

    results.append(step(params, candidates[0], jax.random.key(1)))
  kept, found = results
  chex.assert_trees_all_close(found, kept, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_candidates():
  params = {"w": jnp.zeros((400, 400))}

  def wide_loss(params, inputs, labels):
    return jnp.square(inputs @ params["w"]).mean(1) - labels

  transformation = ddi_jax.danskin_direction()

  def temporaries(count, at_a_time):
    @jax.jit
    def compute(params, candidates):
      gradients, _ = gradients_of(
        at_a_time, params, candidates, jnp.zeros(2), wide_loss, has_aux=False
      )
      return transformation.update(gradients, transformation.init(params), params)[0]

    lowered = compute.lower(params, jnp.zeros((count, 2, 400)))
    compiled = lowered.compile(compiler_options={"xla_disable_hlo_passes": ""})
    return compiled.memory_analysis().temp_size_in_bytes / params["w"].nbytes

  assert temporaries(32, None) >= 32
  assert temporaries(32, 1) < temporaries(4, 1) + 0.5
  assert temporaries(32, 1) <= 7
  assert temporaries(32, 4) < 20


@pytest.mark.parametrize("at_a_time", [0, 1.5, True])
def test_bad_number(at_a_time):
  with pytest.raises(ValueError, match="at_a_time must be an integer >= 1, got"):
    gradients_of(at_a_time, *problem(1.0))


def test_bad_losses_and_parameters():
  params, candidates, labels = problem(1.0)
  with pytest.raises(ValueError, match="one per example"):
    gradients_of(
      1, params, candidates, labels, lambda *a: loss_fn(*a)[0].mean(), has_aux=False
    )
  with pytest.raises(ValueError, match=r"params\['bias'\] must be floating point"):
    gradients_of(1, params | {"bias": jnp.zeros(3, int)}, candidates, labels)
