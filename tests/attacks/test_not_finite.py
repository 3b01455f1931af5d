"""Gradients, losses and logits that are not finite at some examples of a batch."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax
from ddi_jax import attacks, candidates

KEY = jax.random.key(0)
NORMS = {"linf": ddi_jax.linf(0.1), "l2": ddi_jax.l2(0.3), "l1": ddi_jax.l1(0.8)}
WEIGHTS = jax.random.normal(jax.random.key(1), (6, 4)) / 2
# Pixel 0 of example 0 is where the models below are at fault, in SPOILED only.
SOUND = jax.random.uniform(jax.random.key(2), (5, 6), minval=0.2, maxval=0.8)
SPOILED = SOUND.at[0, 0].set(0.0)
LABELS = jnp.argmax(SOUND @ WEIGHTS, axis=1)


FAULTS = {
  "infinite gradient": jnp.sqrt,
  "NaN gradient": lambda pixel: jnp.sqrt(pixel**2),
  "NaN logits": lambda pixel: jnp.where(pixel < 0.15, jnp.nan, pixel),
  "infinite logits": lambda pixel: jnp.where(pixel < 0.15, jnp.inf, pixel),
}


def logits_of(fault, inputs):
  """Logits of a model with one of the faults, by its index: one program for all."""
  pixel = jax.lax.switch(fault, list(FAULTS.values()), inputs[:, :1])
  return jnp.concatenate([pixel, inputs[:, 1:]], axis=1) @ WEIGHTS


MODELS = {
  name: jax.tree_util.Partial(logits_of, index) for index, name in enumerate(FAULTS)
}


def pgd_sources(threat_model, **settings):
  settings = {"steps": 3, "step_size": 0.1, **settings}
  return candidates.restarts(ddi_jax.pgd(threat_model, **settings), 2)


SOURCES = {
  "pgd": pgd_sources,
  "pgd, best": lambda ball: pgd_sources(ball, iterate="best"),
  "pgd, no start": lambda ball: pgd_sources(ball, random_start=False),
  "pgd, while moving": lambda ball: pgd_sources(ball, stop_below=0.0),
  "targeted": lambda ball: candidates.targeted(
    ddi_jax.pgd(ball, steps=2, step_size=0.1), 2
  ),
  "msd": lambda ball: candidates.msd(
    [ball, ddi_jax.linf(0.05)], steps=2, step_sizes=[0.1, 0.05]
  ),
  "warm": lambda ball: candidates.warm_restarts(
    ball, jnp.full((2, 5, 6), jnp.nan), steps=2, step_size=0.1
  ),
}


def as_source(attack):
  return lambda key, logits_fn, inputs, labels: attack(key, logits_fn, inputs, labels)[
    None
  ]


ATTACKS = {
  "apgd-ce": lambda ball: attacks.apgd(ball, steps=5),
  "apgd-t": lambda ball: attacks.apgd(ball, loss="targeted_dlr", steps=4, targets=2),
  "fab": lambda ball: attacks.fab(ball, targets=None, steps=3),
  "fab-t": lambda ball: attacks.fab(ball, targets=2, steps=3, restarts=2),
  "square": lambda ball: attacks.square(ball, queries=10),
  "multi-targeted": lambda ball: attacks.multi_targeted_pgd(
    ball, steps=2, step_size=0.1, targets=2
  ),
}
ALL = SOURCES | {
  name: lambda ball, make=make: as_source(make(ball)) for name, make in ATTACKS.items()
}


@pytest.mark.parametrize(
  "norm",
  [pytest.param(norm, marks=[pytest.mark.slow] * (norm != "l2")) for norm in NORMS],
)
@pytest.mark.parametrize("name", ALL)
def test_a_fault_stays_where_it_is(name, norm):
  """All points are finite and allowed, and those of other examples are the same."""
  ball = NORMS[norm]
  source = ALL[name](ball)
  run = jax.jit(lambda logits_fn, inputs: source(KEY, logits_fn, inputs, LABELS))
  for fault, logits_fn in MODELS.items():
    found, sound = run(logits_fn, SPOILED), run(logits_fn, SOUND)
    assert np.all(np.isfinite(found)), fault
    np.testing.assert_array_equal(found[:, 1:], sound[:, 1:], err_msg=fault)
    if name != "msd":  # It attacks in another ball too.
      sizes = jax.vmap(lambda points: ball.size(points - SPOILED))(found)
      assert np.all(sizes <= ball.epsilon * (1 + 1e-5)), fault
    assert np.all((found >= 0) & (found <= 1)), fault


@pytest.mark.slow
@pytest.mark.parametrize("iterate", ["last", "best"])
@pytest.mark.parametrize("norm", NORMS)
def test_only_the_pixel_at_fault_stays(norm, iterate):
  attack = ddi_jax.pgd(
    NORMS[norm], steps=1, step_size=0.1, random_start=False, iterate=iterate
  )
  for fault in ("infinite gradient", "NaN gradient"):
    found = attack(
      KEY,
      lambda x, f=fault: ddi_jax.losses.cross_entropy(MODELS[f](x), LABELS),
      SPOILED,
    )
    assert found[0, 0] == 0
    assert np.any(found[0, 1:] != SPOILED[0, 1:])


def test_an_ascent_that_is_not_finite_moves_nothing():
  attack = ddi_jax.pgd(
    ddi_jax.l2(0.3),
    steps=2,
    step_size=0.1,
    random_start=False,
    ascent=lambda gradients, *_: gradients / jnp.zeros(6).at[1:].set(1)[None],
  )
  found = attack(KEY, lambda x: jnp.sum(x, axis=1), SOUND)
  np.testing.assert_array_equal(found[:, 0], SOUND[:, 0])
  assert np.all(found[:, 1:] > SOUND[:, 1:])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_candidate_without_a_finite_loss_replaces_none(bad):
  points = jnp.arange(6.0).reshape(3, 2, 1)
  losses = jnp.array([[1.0, bad], [2.0, 3.0], [bad, 1.0]])
  np.testing.assert_array_equal(ddi_jax.worst_candidate(points, losses), [[2.0], [3.0]])


def test_transformed_images_without_a_finite_loss_replace_none():
  images = jnp.linspace(0, 1, 64).reshape(1, 8, 8, 1)

  def loss(logits, labels):
    del labels  # NaN for all but the image as it is.
    return jnp.where(logits[:, 0] == images.mean(), 1.0, jnp.nan)

  source = candidates.spatial(2, tries=2, loss=loss)
  found = source(KEY, lambda x: x.mean((1, 2)), images, jnp.zeros(1, int))
  np.testing.assert_array_equal(found, jnp.stack([images, images]))


@pytest.mark.slow
def test_the_evaluation_counts_the_examples():
  evaluate = ddi_jax.autoattack(
    NORMS["l2"], {"pgd": ATTACKS["multi-targeted"](NORMS["l2"])}, batch_size=2
  )
  spoiled = SOUND.at[jnp.array([0, 4]), 0].set(0.0)
  for fault, expected in (
    ("NaN gradient", "gradients of cross entropy are not finite at 2 of 5 inputs"),
    ("NaN logits", "logits are not finite at 2 of 5 inputs"),
  ):
    with warnings.catch_warnings(action="ignore"):
      result = evaluate(KEY, MODELS[fault], spoiled, LABELS)
    assert any(expected in message for message in result.warnings), result.warnings


def test_an_attack_that_returns_nan_is_named():
  def attack(key, logits_fn, inputs, labels):
    del key, logits_fn, labels
    return inputs.at[1].set(jnp.nan)

  evaluate = ddi_jax.autoattack(NORMS["linf"], {"mine": attack})
  with pytest.raises(ValueError, match="mine returned 1 points that are not finite"):
    evaluate(KEY, MODELS["infinite gradient"], SOUND, LABELS)


@pytest.mark.slow
def test_a_training_steps_gradients_are_finite():
  def loss_fn(params, inputs, labels):
    return ddi_jax.losses.cross_entropy(
      MODELS["NaN gradient"](inputs) * params["scale"][None], labels
    )

  for ball in NORMS.values():
    gradients_fn = ddi_jax.restart_gradients(
      loss_fn, ddi_jax.pgd(ball, steps=2, step_size=0.1), num_restarts=2
    )
    gradients, info = gradients_fn({"scale": jnp.ones(4)}, SPOILED, LABELS, KEY)
    assert np.all(np.isfinite(gradients["scale"]))
    assert np.all(np.isfinite(info.candidates))
