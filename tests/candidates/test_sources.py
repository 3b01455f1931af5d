"""Sources of candidates, each against what defines it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax
from ddi_jax import candidates as sources
from ddi_jax import losses
from ddi_jax.candidates.transformations import transform

KEY = jax.random.key(0)
EPSILON = 0.1
LINF = ddi_jax.linf(EPSILON)
WEIGHTS = jax.random.normal(jax.random.key(1), (12, 4))
INPUTS = jax.random.uniform(jax.random.key(2), (3, 2, 2, 3), minval=0.3, maxval=0.7)
LABELS = jnp.arange(3)
PGD = {"steps": 4, "step_size": 0.05}


def logits_fn(inputs):
  return jnp.tanh(inputs.reshape(len(inputs), -1) @ WEIGHTS)


def cross_entropy(points):
  return losses.cross_entropy(logits_fn(points), LABELS)


def make_all():
  attack = ddi_jax.pgd(LINF, **PGD)
  return {
    "restarts": (sources.restarts(attack, 2), 2),
    "targeted": (sources.targeted(attack, 3), 3),
    "r_fgsm": (sources.r_fgsm(EPSILON, 2), 2),
    "msd": (sources.msd([LINF], steps=4, step_sizes=[0.05]), 1),
    "warm": (sources.warm_restarts(LINF, jnp.ones((2, *INPUTS.shape)), **PGD), 2),
  }


@pytest.mark.slow
@pytest.mark.parametrize("name", make_all())
def test_candidates_attack_within_the_threat_model(name):
  source, count = make_all()[name]
  candidates = jax.jit(lambda key: source(key, logits_fn, INPUTS, LABELS))(KEY)
  assert candidates.shape == (count, *INPUTS.shape)
  assert candidates.dtype == INPUTS.dtype
  assert jnp.abs(candidates - INPUTS[None]).max() <= EPSILON + 1e-6
  assert candidates.min() >= 0 and candidates.max() <= 1
  clean = np.asarray(cross_entropy(INPUTS))
  found = np.stack([cross_entropy(points) for points in candidates])
  if name == "targeted":  # Not every class is within reach.
    found = found.max(axis=0)
  assert np.all(found > clean)
  other = source(jax.random.key(3), logits_fn, INPUTS, LABELS)
  if name != "targeted":  # It may end at the same corners.
    repeatable = name in ("msd", "warm")
    assert np.allclose(candidates, other, atol=1e-6) == repeatable


@pytest.mark.slow
def test_sources_mix_and_a_function_is_one():
  def halfway(key, logits_fn, inputs, labels):
    return ((inputs + 0.5) / 2)[None]

  parts = [
    sources.restarts(ddi_jax.pgd(LINF, **PGD), 2),
    halfway,
    sources.restarts(ddi_jax.pgd(ddi_jax.l2(0.3), steps=2, step_size=0.2), 1),
  ]
  candidates = sources.combine(*parts)(KEY, logits_fn, INPUTS, LABELS)
  assert candidates.shape == (4, *INPUTS.shape)
  fewer = sources.combine(*parts[:2])(KEY, logits_fn, INPUTS, LABELS)
  np.testing.assert_array_equal(candidates[:3], fewer)
  np.testing.assert_allclose(candidates[2], (INPUTS + 0.5) / 2)
  distances = jnp.linalg.norm((candidates[3] - INPUTS).reshape(3, -1), axis=1)
  np.testing.assert_allclose(distances, 0.3, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("at_a_time", [1, 2, 3])
@pytest.mark.parametrize("name", ["restarts", "targeted", "warm_restarts"])
def test_candidates_do_not_depend_on_how_many_are_computed_at_a_time(name, at_a_time):
  def candidates(**setting):
    attack = ddi_jax.pgd(LINF, **PGD)
    source = {
      "restarts": lambda: sources.restarts(attack, 3, **setting),
      "targeted": lambda: sources.targeted(attack, 3, **setting),
      "warm_restarts": lambda: sources.warm_restarts(
        LINF, 0.01 * jnp.ones((3, *INPUTS.shape)), **PGD, **setting
      ),
    }[name]()
    return jax.jit(lambda key: source(key, logits_fn, INPUTS, LABELS))(KEY)

  found, expected = candidates(at_a_time=at_a_time), candidates()
  np.testing.assert_allclose(found, expected, atol=1e-6)
  with pytest.raises(ValueError, match="at_a_time must be None or an integer >= 1"):
    candidates(at_a_time=0)


def test_targets_are_the_wrong_classes():
  source = sources.targeted(ddi_jax.pgd(ddi_jax.linf(0.3), steps=9, step_size=0.1), 3)
  before = logits_fn(INPUTS)
  rows = np.arange(3)
  order = np.argsort(-np.where(np.eye(3, 4, dtype=bool), -np.inf, before), axis=1)
  for rank, points in enumerate(source(KEY, logits_fn, INPUTS, LABELS)):
    after, target = logits_fn(points), order[:, rank]
    gained = after - after[rows, LABELS][:, None]
    gained -= before - before[rows, LABELS][:, None]
    assert np.all(gained[rows, target] > 0)


@pytest.mark.slow
def test_msd_takes_the_norm_that_gains_most_at_each_step():
  threat_models = (LINF, ddi_jax.l2(0.35), ddi_jax.l1(0.8))
  step_sizes = (0.06, 0.12, 0.3)
  points, chosen = INPUTS, set()
  for _ in range(3):
    gradient = jax.grad(lambda x: cross_entropy(x).sum())(points)
    moved = np.stack(
      [
        model.project(
          points + size * model.steepest_ascent(gradient, points, None), INPUTS, None
        )
        for model, size in zip(threat_models, step_sizes, strict=True)
      ]
    )
    best = np.argmax([cross_entropy(x) for x in moved], axis=0)
    points = jnp.asarray(moved[best, np.arange(3)])
    chosen |= set(best.tolist())
  assert chosen == {0, 1, 2}
  source = sources.msd(threat_models, steps=3, step_sizes=step_sizes, bounds=None)
  (found,) = source(KEY, logits_fn, INPUTS, LABELS)
  np.testing.assert_allclose(found, points, atol=1e-5)


def test_msd_stays_where_every_step_leads_to_a_loss_that_is_not_finite():
  def half_defined(inputs):
    moved = jnp.any((inputs != INPUTS).reshape(3, -1), axis=1)
    return jnp.where(moved[:, None], jnp.nan, logits_fn(inputs))

  source = sources.msd([LINF], steps=2, step_sizes=[0.06], bounds=None)
  (found,) = source(KEY, half_defined, INPUTS, LABELS)
  np.testing.assert_array_equal(found, INPUTS)


def test_warm_restarts_go_on():
  def attacked(steps, start):
    attack = ddi_jax.pgd(LINF, steps=steps, step_size=0.01, random_start=start)
    return attack(KEY, cross_entropy, INPUTS)

  first = attacked(3, False)
  source = sources.warm_restarts(LINF, (first - INPUTS)[None], steps=2, step_size=0.01)
  (found,) = source(KEY, logits_fn, INPUTS, LABELS)
  np.testing.assert_allclose(found, attacked(5, False), atol=1e-6)


def test_an_empty_memory_starts_at_random():
  known = jnp.full_like(INPUTS, 0.01)
  zeros = jnp.zeros_like(INPUTS)
  memory = jnp.stack([zeros, zeros, known])
  source = sources.warm_restarts(LINF, memory, steps=1, step_size=1e-9)
  found = source(KEY, logits_fn, INPUTS, LABELS) - INPUTS[None]
  at_random = jnp.abs(found[:2]).reshape(2, len(INPUTS), -1)
  assert jnp.all(at_random.max(axis=2) > 0.3 * EPSILON)
  assert jnp.any(found[0] != found[1])
  expected = jnp.clip(INPUTS + 0.01, 0, 1) - INPUTS
  np.testing.assert_allclose(found[2], expected, atol=1e-6)


def test_r_fgsm_is_one_projected_step():
  """Of twice the radius: it ends in a corner of the ball, wherever it started."""
  source = sources.r_fgsm(EPSILON, 2, step_ratio=2.0, bounds=None)
  found = source(KEY, logits_fn, INPUTS, LABELS) - INPUTS[None]
  np.testing.assert_allclose(jnp.abs(found), np.full(found.shape, EPSILON), rtol=1e-5)
  short = sources.r_fgsm(EPSILON, 1, step_ratio=1e-6, bounds=None)
  (found,) = short(KEY, logits_fn, INPUTS, LABELS)
  start = LINF.random_start(jax.random.split(KEY, 1)[0], INPUTS, None)
  np.testing.assert_allclose(found, start, atol=1e-6)


def test_transform_turns_and_shifts():
  image = jax.random.uniform(KEY, (5, 5, 2))
  turned = transform(image, jnp.pi / 2, jnp.zeros(2))
  np.testing.assert_allclose(turned, np.rot90(image), atol=1e-5)
  shifted = transform(image, jnp.zeros(()), jnp.array([1.0, -2.0]))
  np.testing.assert_allclose(shifted[1:, :3], image[:-1, 2:], atol=1e-6)
  assert np.all(shifted[0] == 0)


@pytest.mark.slow
def test_spatial_takes_the_worst_of_its_tries():
  settings = {"max_degrees": 45.0, "max_shift": 0.4}
  one = sources.spatial(6, **settings)(KEY, logits_fn, INPUTS, LABELS)
  worst = sources.spatial(6, tries=8, **settings)(KEY, logits_fn, INPUTS, LABELS)
  assert one.shape == worst.shape == (6, *INPUTS.shape)
  assert jax.vmap(cross_entropy)(worst).mean() > jax.vmap(cross_entropy)(one).mean()
  still = sources.spatial(1, max_degrees=0.0, max_shift=0.0)
  np.testing.assert_allclose(
    still(KEY, logits_fn, INPUTS, LABELS)[0], INPUTS, atol=1e-6
  )


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (sources.combine, "combine needs a source, got none"),
    (lambda: sources.restarts(None, 0), "count must be an integer >= 1, got 0"),
    (
      lambda: sources.msd([LINF], steps=1, step_sizes=[0.1, 0.2]),
      "a step size for each; got 1 and 2",
    ),
    (
      lambda: sources.warm_restarts(LINF, INPUTS[None], steps=0, step_size=0.1),
      "steps must be an integer >= 1, got 0",
    ),
    (
      lambda: sources.msd([LINF], steps=0, step_sizes=[0.1]),
      "steps must be an integer >= 1, got 0",
    ),
    (lambda: sources.spatial(1, tries=0), "tries must be an integer >= 1, got 0"),
    (lambda: sources.targeted(None, 0), "count must be an integer >= 1, got 0"),
    (lambda: sources.r_fgsm(0.1, 1, step_ratio=0), "step_ratio must be .* > 0, got 0"),
    (lambda: sources.spatial(1, max_shift=2.0), "max_shift must be in"),
    (lambda: sources.spatial(1, max_degrees=-1.0), "max_degrees must be in"),
  ],
)
def test_bad_settings(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize(
  ("source", "message"),
  [
    (
      sources.targeted(ddi_jax.pgd(LINF, **PGD), 4),
      "count must be at most 3, the wrong classes; got 4",
    ),
    (sources.combine(lambda *arguments: INPUTS), "source 0 must return candidates"),
    (
      sources.warm_restarts(LINF, INPUTS, **PGD),
      "perturbations must be .K, .*3, 2, 2, 3.., as the inputs; got",
    ),
  ],
)
def test_what_does_not_fit_the_batch(source, message):
  with pytest.raises(ValueError, match=message):
    source(KEY, logits_fn, INPUTS, LABELS)


def test_spatial_needs_images():
  with pytest.raises(ValueError, match="spatial needs inputs"):
    sources.spatial(1)(KEY, logits_fn, jnp.ones((3, 12)), LABELS)


def test_warm_restarts_choose_their_start_themselves():
  with pytest.raises(ValueError, match="random_start cannot be set: warm_restarts sta"):
    sources.warm_restarts(
      LINF, INPUTS[None] * 0, steps=1, step_size=0.1, random_start=False
    )
