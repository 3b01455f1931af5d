"""AutoAttack: the ensemble, its bookkeeping, and what it warns of."""

import json
import pickle
import re
import warnings

import jax
import jax.numpy as jnp
from linear_model import EPSILONS, KEY, MAKERS, is_right, linear, problem
import numpy as np
import pytest

import ddi_jax
from ddi_jax import attacks, losses


def small_attacks(threat_model):
  """The four of "standard", short."""
  return {
    "apgd-ce": attacks.apgd(threat_model, steps=20),
    "apgd-t": attacks.apgd(threat_model, loss="targeted_dlr", steps=20),
    "fab-t": attacks.fab(threat_model, steps=20),
    "square": attacks.square(threat_model, queries=400),
  }


def cheap_attacks(probability=0.4):
  """Two that compile at once: the first breaks some examples, the second all."""

  def jump(probability):
    def attack(key, logits_fn, inputs, labels):
      del logits_fn, labels
      noise = jax.vmap(lambda k: jax.random.uniform(k, inputs.shape[1:]))(key)
      chosen = jax.vmap(jax.random.uniform)(key) < probability
      return jnp.where(chosen[:, None], inputs + 0.1 * noise, inputs)

    return attack

  return {"some": jump(probability), "all": jump(1.1)}


def run_cheap(count=11, batch_size=4, stop_after=None, resume=None):
  """(result, shapes that the model was traced with, what the callback was told)."""
  traced, told = [], []

  def touchy(inputs):
    """Right only on the clean inputs, whose coordinates are all 0.5."""
    traced.append(inputs.shape)
    moved = jnp.any(inputs != 0.5, axis=1)
    return jnp.stack([jnp.where(moved, 0.0, 2.0), jnp.ones(len(inputs))], axis=1)

  def after_batch(progress):
    told.append((progress.attack, progress.done, progress.total))
    return len(told) == stop_after

  evaluate = ddi_jax.autoattack(
    ddi_jax.linf(0.1), cheap_attacks(), batch_size=batch_size
  )
  inputs, labels = np.full((count, 3), 0.5, np.float32), np.zeros(count, int)
  with pytest.warns(UserWarning, match="exactly zero") as shown:
    result = evaluate(
      KEY, touchy, inputs, labels, after_batch=after_batch, resume=resume
    )
  assert result.warnings == tuple(str(warning.message) for warning in shown)
  return result, traced, told


@pytest.mark.slow
@pytest.mark.parametrize("norm", MAKERS)
def test_robust_accuracy_of_a_linear_model(norm):
  p = problem(batch=20)
  labels = p.labels.at[0].set((p.labels[0] + 1) % 5)  # One clean mistake.
  epsilon = EPSILONS[norm]
  threat_model = MAKERS[norm](epsilon)
  evaluate = ddi_jax.autoattack(threat_model, small_attacks(threat_model), batch_size=8)
  result = evaluate(KEY, p.logits_fn, p.inputs, labels)
  robust = p.distances(norm) > epsilon
  robust[0] = False
  assert result.finished
  assert result.clean_accuracy == 0.95
  np.testing.assert_array_equal(result.robust, robust)
  assert result.robust_accuracy == robust.mean()
  assert sum(result.broken.values()) == 19 - robust.sum()
  assert result.broken["apgd-ce"] > 0
  right = is_right(p.logits_fn, result.adversarial, labels)
  np.testing.assert_array_equal(right, robust)
  np.testing.assert_array_equal(result.adversarial[robust], p.inputs[robust])
  sizes = threat_model.size(result.adversarial - p.inputs)
  assert np.all(sizes <= epsilon * (1 + 1e-5))
  np.testing.assert_array_equal(result.faced[robust], 4)


@pytest.mark.slow
def test_one_compilation_however_many_are_left():
  result, traced, told = run_cheap()
  assert result.clean_accuracy == 1
  assert result.robust_accuracy == 0
  assert 0 < result.broken["some"] < 11
  left = 11 - result.broken["some"]
  assert [done for name, done, _ in told if name == "some"] == [4, 8, 11]
  assert told[-1] == ("all", left, left)
  # Always one batch shape, and as many traces for a hundred examples as for one batch.
  assert set(traced) == {(4, 3)}
  many = run_cheap(count=103)
  assert len(many[1]) == len(traced) == len(run_cheap(count=4)[1])
  assert len(many[2]) > 30


def test_parameters_as_arguments_are_compiled_once():
  traces = []

  def apply(weights, inputs):
    traces.append(inputs.shape)
    return inputs @ weights

  attack = attacks.classifier_attack(
    ddi_jax.pgd(ddi_jax.linf(0.01), steps=2, step_size=0.01)
  )
  evaluate = ddi_jax.autoattack(ddi_jax.linf(0.01), {"pgd": attack}, batch_size=8)
  p = problem(batch=8)
  counts = []
  for seed in range(3):
    weights = problem(seed=seed).weights
    evaluate(KEY, jax.tree_util.Partial(apply, weights), p.inputs, p.labels)
    counts.append(len(traces))
  # Only the checks trace again.
  assert counts[2] - counts[1] == counts[1] - counts[0] == 2
  assert counts[0] > 4


@pytest.mark.slow
def test_batches_and_padding_change_nothing():
  whole, parts, single = (run_cheap(batch_size=size)[0] for size in (11, 4, 1))
  for other in (parts, single):
    np.testing.assert_array_equal(whole.broken_by, other.broken_by)
    np.testing.assert_array_equal(whole.adversarial, other.adversarial)
  again = run_cheap(batch_size=4)[0]
  np.testing.assert_array_equal(parts.adversarial, again.adversarial)


@pytest.mark.slow
def test_stopped_and_resumed_is_the_same_as_never_stopped():
  whole, _, told = run_cheap()
  assert whole.finished
  for stop_after in range(1, len(told)):
    stopped, _, first = run_cheap(stop_after=stop_after)
    assert len(first) == stop_after
    assert not stopped.finished
    assert stopped.robust_accuracy >= whole.robust_accuracy
    before = jax.tree.map(np.copy, stopped[1:-1])
    resumed, _, second = run_cheap(resume=stopped)
    assert first == told[:stop_after]
    assert len(first) + len(second) == len(told)
    for found, expected in zip(resumed[1:], whole[1:], strict=True):
      np.testing.assert_array_equal(found, expected)
    for array, kept in zip(stopped[1:-1], before, strict=True):
      np.testing.assert_array_equal(array, kept)


def test_versions_are_the_published_ones():
  def names(make, version):
    return tuple(attacks.standard_attacks(make(0.1), version))

  standard = ("apgd-ce", "apgd-t", "fab-t", "square")
  for make in MAKERS.values():
    assert names(make, "standard") == standard
    assert names(make, "rand") == ("apgd-ce", "apgd-dlr")
    assert names(make, "plus") == (
      "apgd-ce",
      "apgd-dlr",
      "fab",
      "square",
      "apgd-t",
      "fab-t",
    )
  with pytest.raises(ValueError, match="standard, plus, rand, or a list of"):
    ddi_jax.autoattack(ddi_jax.linf(0.1), "fast")
  with pytest.raises(ValueError, match=r"attacks must be among .*; got pgd"):
    ddi_jax.autoattack(ddi_jax.linf(0.1), ["apgd-ce", "pgd"])
  with pytest.raises(ValueError, match="at least one"):
    ddi_jax.autoattack(ddi_jax.linf(0.1), [])


@pytest.mark.slow
def test_zero_radius_is_clean_accuracy():
  p = problem()
  labels = p.labels.at[:4].set((p.labels[:4] + 1) % 5)
  evaluate = ddi_jax.autoattack(ddi_jax.linf(0.0), ["apgd-ce"], batch_size=16)
  result = evaluate(KEY, p.logits_fn, p.inputs, labels)
  assert result.robust_accuracy == result.clean_accuracy == 0.75


@pytest.mark.slow
def test_a_randomised_model_is_attacked_by_its_mean():
  p = problem(batch=16)

  def noisy(x, key):
    return x @ p.weights + 0.02 * jax.random.normal(key, (len(x), 5))

  evaluate = ddi_jax.autoattack(ddi_jax.linf(0.1), "rand", batch_size=16)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    result = evaluate(KEY, noisy, p.inputs, p.labels)
  assert result.warnings == ()
  assert result.attacks == ("apgd-ce", "apgd-dlr")
  assert result.clean_accuracy > 0.8
  assert result.robust_accuracy < 0.1


@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes_are_named(classes):
  p = problem(classes=classes)
  evaluate = ddi_jax.autoattack(ddi_jax.linf(0.1), batch_size=16)
  allowed = "apgd-ce, fab" if classes == 2 else "apgd-ce, apgd-dlr, fab"
  message = f"apgd-t cannot attack {classes} classes.*among {allowed}, fab-t, square"
  with pytest.raises(ValueError, match=message):
    evaluate(KEY, p.logits_fn, p.inputs, p.labels)


def test_bad_data_is_refused():
  p = problem()
  evaluate = ddi_jax.autoattack(ddi_jax.linf(0.1), cheap_attacks())
  with pytest.raises(ValueError, match="inputs must be floating point"):
    evaluate(KEY, p.logits_fn, np.zeros((4, 10), np.uint8), p.labels[:4])
  with pytest.raises(ValueError, match=r"labels must be integers of shape \(16,\)"):
    evaluate(KEY, p.logits_fn, p.inputs, p.labels[:4])
  with pytest.raises(
    ValueError, match=r"labels must be in \[0, 5\), .*, got values from 5 to 5"
  ):
    evaluate(KEY, p.logits_fn, p.inputs, np.full(16, 5))
  with pytest.raises(ValueError, match="batch_size must be an integer >= 1"):
    ddi_jax.autoattack(ddi_jax.linf(0.1), batch_size=0)
  with pytest.raises(ValueError, match=r"resume is of \('some', 'all'\)"):
    run_cheap(count=5, resume=run_cheap(count=4)[0])


def test_an_attack_that_leaves_the_ball_or_the_box_is_refused():
  p = problem()
  for move, message in ((0.2, "far left the ball"), (0.05, "far left the box")):
    attack = {"far": lambda key, logits_fn, x, labels, move=move: x + move}
    inputs = jnp.full((16, 10), 0.97)
    evaluate = ddi_jax.autoattack(ddi_jax.linf(0.1), attack)
    with pytest.raises(ValueError, match=message):
      evaluate(KEY, p.logits_fn, inputs, jnp.argmax(p.logits_fn(inputs), axis=1))


def resumed(
  resume=None,
  *,
  key=KEY,
  threat_model=None,
  probability=0.4,
  bounds=(0.0, 1.0),
  factor=1.0,
  shift=0.0,
  label=0,
):
  """A linear model under a cheap attack; in each test one thing is not as before."""
  p = problem(batch=8)
  attack = {"some": cheap_attacks(probability)["some"]}
  evaluate = ddi_jax.autoattack(
    threat_model or ddi_jax.linf(0.1), attack, batch_size=8, bounds=bounds
  )
  model = jax.tree_util.Partial(linear, factor * p.weights)
  labels = p.labels.at[0].add(label) % 5
  return evaluate(key, model, p.inputs + shift, labels, resume=resume)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"key": jax.random.key(1)}, "key is 'threefry2x32 [0, 0]' there and 'threefry"),
    (
      {"threat_model": ddi_jax.linf(0.7)},
      "made with the threat model linf(0.1) in bounds (0, 1), this call has linf(0.7)",
    ),
    (
      {"threat_model": ddi_jax.l2(0.5), "bounds": None},
      "linf(0.1) in bounds (0, 1), this call has l2(0.5) without bounds.",
    ),
    ({"probability": 0.5}, "attacks.some.probability is 0.4 there and 0.5 here"),
    ({"bounds": (0.0, 2.0)}, "bounds (0, 1), this call has linf(0.1) in bounds (0, 2)"),
    ({"bounds": None}, "bounds (0, 1), this call has linf(0.1) without bounds."),
    ({"factor": 1.1}, "the model has other logits on the first examples"),
    ({"shift": 1e-3}, "inputs is 'float32[8, 10] "),
    ({"label": 1}, "labels is 'int64[8] "),
  ],
)
def test_a_result_of_something_else_is_not_resumed(change, said):
  full = resumed()
  for name, array in resumed(full)._asdict().items():
    np.testing.assert_array_equal(array, getattr(full, name))
  with pytest.raises(attacks.ResumeError, match=re.escape(said)):
    resumed(full, **change)


def test_a_result_without_a_record_is_resumed_with_a_warning():
  """Of an earlier version."""
  full = resumed()
  old = type(full)(*full[:5])
  with pytest.warns(UserWarning, match="resume has no record of what made it"):
    again = resumed(old)
  np.testing.assert_array_equal(again.broken_by, full.broken_by)
  assert again.origin == full.origin


def test_a_result_that_was_pickled_is_resumed():
  full = resumed()
  kept = pickle.loads(pickle.dumps(full))
  assert kept.origin == json.loads(json.dumps(full.origin)) == full.origin
  np.testing.assert_array_equal(resumed(kept).broken_by, full.broken_by)


def test_rounding_on_another_device_is_not_another_model():
  full = resumed()
  np.testing.assert_array_equal(resumed(full, factor=1.001).robust, full.robust)


@pytest.mark.parametrize("version", ["standard", "rand"])
def test_a_model_with_other_arguments_is_told_what_to_pass(version):
  p = problem()

  def keyed(inputs, key):
    return p.logits_fn(inputs)

  def not_keyed(inputs):
    return p.logits_fn(inputs)

  model = keyed if version == "standard" else not_keyed
  said = {
    "standard": r"function of \(inputs\), got one of \(inputs, key\).*version=\"rand\"",
    "rand": r"function of \(inputs, key\), got one of \(inputs\).*another version",
  }[version]
  calls = [
    lambda: ddi_jax.autoattack(ddi_jax.linf(0.1), version)(
      KEY, model, p.inputs, p.labels
    ),
    lambda: attacks.check_model(
      model, p.inputs, p.labels, key=KEY if version == "rand" else None
    ),
  ]
  if version == "standard":
    calls += [
      lambda: ddi_jax.evaluate(KEY, model, p.inputs, p.labels, ddi_jax.linf(0.1)),
      lambda: ddi_jax.robustness_curve(
        KEY, model, p.inputs, p.labels, ddi_jax.linf, [0.1]
      ),
      lambda: attacks.apgd(ddi_jax.linf(0.1))(KEY, model, p.inputs, p.labels),
    ]
  for call in calls:
    with pytest.raises(ValueError, match=said):
      call()


def defences(p):
  """Models with the decisions of a linear one, whose gradients say nothing."""
  return {
    "saturated": lambda x: 1e4 * p.logits_fn(x),
    "quantised": lambda x: p.logits_fn(jnp.round(x * 50) / 50),
  }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["saturated", "quantised"])
def test_breaks_weak_defences_that_pgd_believes_in(name):
  p = problem(batch=16)
  epsilon = 0.1
  threat_model = ddi_jax.linf(epsilon)
  model = defences(p)[name]
  assert np.all(p.distances("linf") < epsilon)
  labels = jnp.argmax(model(p.inputs), axis=1)

  attack = ddi_jax.pgd(threat_model, steps=20, step_size=epsilon / 8)
  believed = attack(KEY, lambda x: losses.cross_entropy(model(x), labels), p.inputs)
  assert is_right(model, believed, labels).mean() > 0.3

  fast = small_attacks(threat_model)
  chosen = {"saturated": ["apgd-t", "square"], "quantised": ["apgd-ce", "square"]}[name]
  evaluate = ddi_jax.autoattack(
    threat_model, {key: fast[key] for key in chosen}, batch_size=16
  )
  with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    result = evaluate(KEY, model, p.inputs, labels)
  assert result.robust_accuracy == 0
  said = " ".join(result.warnings)
  assert result.warnings == tuple(str(warning.message) for warning in seen)
  assert "is exactly zero" in said
  assert ("Square, which sees no gradients" in said) == (name == "quantised")
