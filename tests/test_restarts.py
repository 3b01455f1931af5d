"""Restarts: candidates, gradients, and that every loop form means the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax

FORMS = ("unroll", "loop", "vmap")
PARAMS = {
  "kernel": 0.3 * jax.random.normal(jax.random.key(1), (3, 3, 1, 4)),
  "dense": 0.3 * jax.random.normal(jax.random.key(2), (4, 3)),
}
INPUTS = jax.random.uniform(jax.random.key(3), (5, 6, 6, 1))
LABELS = jnp.arange(5) % 3
ATTACK = ddi_jax.pgd(ddi_jax.linf(0.2), steps=2, step_size=0.1)
KEY = jax.random.key(0)


def loss_fn(params, inputs, labels):
  kernel = params["kernel"].astype(inputs.dtype)
  x = jax.lax.conv_general_dilated(
    inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  logits = jnp.tanh(x).mean((1, 2)) @ params["dense"].astype(x.dtype)
  return ddi_jax.losses.cross_entropy(logits, labels)


def dense_loss(params, inputs, labels):
  return (inputs.reshape(len(inputs), -1) @ params - labels) ** 2


def assert_trees_close(first, second, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second
  )


@pytest.fixture(scope="module", params=[3, 4])
def reference(request):
  """One restart after the other, in plain Python."""
  gradients, candidates = [], []
  for key in jax.random.split(KEY, request.param):
    points = ATTACK(key, lambda x: loss_fn(PARAMS, x, LABELS), INPUTS)
    gradients.append(jax.grad(lambda p, x=points: loss_fn(p, x, LABELS).mean())(PARAMS))
    candidates.append(points)
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
  return stacked, jnp.stack(candidates)


@pytest.mark.parametrize(
  "form, at_a_time",
  [
    *((form, None) for form in (*FORMS, "auto")),
    *(("loop", size) for size in (1, 2, 3)),
    ("vmap", 2),
    ("auto", 2),
  ],
)
def test_every_form_gives_the_same(form, at_a_time, reference):
  expected_gradients, expected_candidates = reference
  gradients_fn = ddi_jax.restart_gradients(
    loss_fn,
    ATTACK,
    len(expected_candidates),
    loop=form,
    attack_loop=form,
    restarts_at_a_time=at_a_time,
  )
  gradients, info = jax.jit(gradients_fn)(PARAMS, INPUTS, LABELS, KEY)
  np.testing.assert_allclose(info.candidates, expected_candidates, atol=1e-6)
  assert_trees_close(gradients, expected_gradients, atol=1e-6)
  for losses, points in zip(info.losses, expected_candidates, strict=True):
    np.testing.assert_allclose(losses, loss_fn(PARAMS, points, LABELS), rtol=1e-5)
  assert info.aux is None


@pytest.mark.parametrize("form", ["auto", "loop", "merge", "vmap"])
def test_at_most_so_many_restarts_at_a_time(form):
  """Of 6 restarts at most 4: the objective sees 3 batches, or a batch of them."""
  seen = set()

  def objective(inputs, labels):
    seen.add((inputs.shape[0], labels.shape[0]))
    return loss_fn(PARAMS, inputs, labels)

  def count_convolutions(at_a_time):
    def attack(key):
      return ddi_jax.restart_candidates(
        ATTACK, objective, INPUTS, LABELS, key, 6, loop=form, at_a_time=at_a_time
      )

    assert jax.eval_shape(attack, KEY).shape == (6, *INPUTS.shape)
    distance = np.abs(np.asarray(jax.jit(attack)(KEY)) - np.asarray(INPUTS))
    assert 0.1 < distance.max() <= 0.2 + 1e-6
    return str(jax.make_jaxpr(attack)(KEY)).count("conv_general_dilated[")

  three, one = count_convolutions(4), count_convolutions(1)
  assert seen == {(15, 15), (5, 5)} if form == "merge" else {(5, 5)}
  if form in ("auto", "loop"):
    assert three > 2 * one


@pytest.mark.parametrize("at_a_time", [0, 1.5, True])
def test_at_a_time_out_of_range(at_a_time):
  with pytest.raises(ValueError, match="restarts_at_a_time must be an integer >= 1"):
    ddi_jax.restart_gradients(loss_fn, ATTACK, 3, restarts_at_a_time=at_a_time)


def test_at_a_time_and_unroll_contradict():
  with pytest.raises(ValueError, match='must be None with loop form "unroll"'):
    ddi_jax.restart_gradients(loss_fn, ATTACK, 3, loop="unroll", restarts_at_a_time=2)


def test_merged_attack_is_an_attack_per_restart():
  def objective(inputs, labels):
    return loss_fn(PARAMS, inputs, labels)

  merged = ddi_jax.restart_candidates(
    ATTACK, objective, INPUTS, LABELS, KEY, 3, loop="merge"
  )
  assert merged.shape == (3, *INPUTS.shape)
  clean = loss_fn(PARAMS, INPUTS, LABELS)
  for candidate in merged:
    assert np.all(loss_fn(PARAMS, candidate, LABELS) > clean)
    assert jnp.abs(candidate - INPUTS).max() <= 0.2 + 1e-6
  assert not np.allclose(merged[0], merged[1])


def test_candidates_differ_and_depend_on_the_key():
  gradients_fn = ddi_jax.restart_gradients(loss_fn, ATTACK, 2)
  _, first = gradients_fn(PARAMS, INPUTS, LABELS, jax.random.key(0))
  _, second = gradients_fn(PARAMS, INPUTS, LABELS, jax.random.key(1))
  assert not np.allclose(first.candidates[0], first.candidates[1])
  assert not np.allclose(first.candidates, second.candidates)


def test_aux_is_stacked_and_ignored_by_the_attack():
  def with_aux(params, inputs, labels):
    return loss_fn(params, inputs, labels), {"mean": inputs.mean()}

  plain = ddi_jax.restart_gradients(loss_fn, ATTACK, 3)
  gradients_fn = ddi_jax.restart_gradients(with_aux, ATTACK, 3, has_aux=True)
  gradients, info = gradients_fn(PARAMS, INPUTS, LABELS, KEY)
  expected, _ = plain(PARAMS, INPUTS, LABELS, KEY)
  assert_trees_close(gradients, expected, atol=1e-6)
  np.testing.assert_allclose(info.aux["mean"], info.candidates.mean((1, 2, 3, 4)))


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
  assert_trees_close(gradients, expected, atol=1e-6)


def test_worst_candidate_is_per_example():
  candidates = jnp.arange(6.0).reshape(2, 3, 1)
  losses = jnp.array([[1.0, 5.0, 2.0], [3.0, 4.0, 2.5]])
  worst = ddi_jax.worst_candidate(candidates, losses)
  np.testing.assert_array_equal(worst, [[3.0], [1.0], [5.0]])


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
  with pytest.raises(ValueError, match="restarts need a key, got None"):
    gradients_fn(PARAMS, INPUTS, LABELS, None)
  with pytest.raises(ValueError, match=r"params\['steps'\] must be floating point"):
    ddi_jax.candidate_gradients(
      loss_fn, {**PARAMS, "steps": jnp.zeros(2, int)}, INPUTS[None], LABELS
    )


def test_bad_loop_and_loss_shape():
  with pytest.raises(ValueError, match="attack_loop must be one of"):
    ddi_jax.restart_gradients(loss_fn, ATTACK, 2, attack_loop="scan")
  with pytest.raises(ValueError, match="loop must be one of auto, unroll, loop, vmap"):
    ddi_jax.restart_gradients(loss_fn, ATTACK, 2, loop="merge")
  scalar = ddi_jax.restart_gradients(
    lambda *a: loss_fn(*a).mean(), ATTACK, 2, attack_loss_fn=loss_fn
  )
  with pytest.raises(ValueError, match="one per example"):
    scalar(PARAMS, INPUTS, LABELS, KEY)


@pytest.mark.parametrize("loop", ["loop", "vmap"])
def test_keys_of_some_restarts_give_these_restarts(loop):
  def candidates(key, num_restarts):
    return ddi_jax.restart_candidates(
      ATTACK,
      lambda x, labels: loss_fn(PARAMS, x, labels),
      INPUTS,
      LABELS,
      key,
      num_restarts,
      loop=loop,
    )

  np.testing.assert_allclose(
    candidates(jax.random.split(KEY, 4)[1:3], 2), candidates(KEY, 4)[1:3], atol=1e-6
  )
  with pytest.raises(ValueError, match=r"num_restarts = 3 of them, got shape \(2,\)"):
    candidates(jax.random.split(KEY, 2), 3)
