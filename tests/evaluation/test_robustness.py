"""Clean and robust accuracy, and PGD at a temperature."""

import re
import warnings

from compilations import compilations
import jax
import jax.numpy as jnp
from linear_model import KEY, linear, problem
import numpy as np
import pytest

import ddi_jax
from ddi_jax import attacks
from ddi_jax.attacks import stages
from ddi_jax.attacks.programs import programs_of

EPSILON = 0.0265  # Breaks about half of the linear model's examples.


def evaluate(model, p, labels=None, epsilon=EPSILON, **settings):
  threat_model = ddi_jax.linf(epsilon)
  # Exact for a linear model, and soon compiled.
  attack = attacks.multi_targeted_pgd(
    threat_model, steps=4, step_size=max(epsilon / 2, 1e-3)
  )
  return ddi_jax.evaluate(
    KEY,
    model,
    p.inputs,
    p.labels if labels is None else labels,
    threat_model,
    version={"towards": attack},
    **settings,
  )


@pytest.mark.slow
def test_figures_of_a_linear_model():
  p = problem(batch=20)
  labels = p.labels.at[0].set((p.labels[0] + 1) % 5)  # One clean mistake.
  told = []
  result = evaluate(p.logits_fn, p, labels, batch_size=8, after_batch=told.append)
  robust = p.distances("linf") > EPSILON
  robust[0] = False
  assert result.finished
  assert result.clean == (19, 20)
  assert result.robust == (robust.sum(), 20)
  assert result.robust.interval == ddi_jax.wilson_interval(int(robust.sum()), 20)
  np.testing.assert_array_equal(result.autoattack.robust, robust)
  # Cross entropy sees all rivals at once, the nearest only in the limit of T -> 0.
  for found in result.pgd.values():
    assert np.all(found.robust >= robust)
    assert 0 <= found.robust.sum() - robust.sum() <= 2
  together = [found.robust for found in result.pgd.values()]
  assert result.worst_pgd == (np.all(together, axis=0).sum(), 20)
  assert result.plain_pgd == (together[0].sum(), 20)
  assert result.calibrated_pgd == (together[1].sum(), 20)
  confidence = jax.nn.softmax(p.logits_fn(p.inputs)).max(axis=1).mean()
  assert result.mean_confidence == pytest.approx(float(confidence))
  temperature = ddi_jax.calibrate_temperature(p.logits_fn(p.inputs), labels)
  assert result.temperature == pytest.approx(float(temperature))
  assert [now.attack for now in told[::3]] == ["towards", *result.pgd]
  assert sorted(np.concatenate([now.indices for now in told[-3:]])) == [*range(1, 20)]


def test_clean_inputs_are_classified_once(monkeypatch):
  p = problem(batch=20)
  clean = np.asarray(p.inputs)
  seen = []

  def counted(*arguments, **settings):
    programs = programs_of(*arguments, **settings)

    def classify(keys, logits_fn, inputs, labels):
      seen.append(np.asarray(inputs))
      return programs.classify(keys, logits_fn, inputs, labels)

    return programs._replace(classify=classify)

  monkeypatch.setattr(stages, "programs_of", counted)
  result = evaluate(p.logits_fn, p, batch_size=8)
  assert result.finished and result.warnings == ()
  of_clean = [batch for batch in seen if np.isin(batch, clean).all()]
  assert len(of_clean) == 3  # Batches of 8.
  assert len(seen) > 6  # And what the attacks found.


@pytest.mark.slow
def test_programs_are_kept():
  """The second evaluation of a model compiles nothing; of a changed one, everything."""
  p = problem(batch=8)
  weights = np.ones((1, *p.inputs.shape[1:]), np.float32)

  def logits_fn(inputs):
    return p.logits_fn(inputs * weights)

  with compilations() as compiled:
    first = evaluate(logits_fn, p)
    assert compiled
    compiled.clear()
    again = evaluate(logits_fn, p)
    assert compiled == []
  jax.tree.map(np.testing.assert_array_equal, again, first)
  weights *= 0  # In place: all logits are equal.
  changed = evaluate(logits_fn, p)
  assert changed.clean.correct != first.clean.correct


@pytest.mark.slow
def test_over_confidence_deceives_plain_pgd_but_not_the_calibrated_one():
  """The illusion of Raina et al. (2024)."""
  p = problem(batch=16)
  epsilon = 0.1
  assert np.all(p.distances("linf") < epsilon)
  said = "AutoAttack: the gradient of cross entropy is exactly zero"
  with pytest.warns(UserWarning, match=said):
    result = evaluate(lambda x: 1e4 * p.logits_fn(x), p, epsilon=epsilon)
  assert any(message.startswith(said) for message in result.warnings)
  assert set(result.autoattack.warnings) <= set(result.warnings)
  assert result.plain_pgd.value > 0.3
  assert result.robust.value == result.calibrated_pgd.value == 0
  assert result.worst_pgd.value == 0
  assert result.mean_confidence > 0.999
  assert result.temperature > 100


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:AutoAttack")  # Of the model's confidence.
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_one_example_s_logits_do_not_spoil_the_figures_of_the_others(bad):
  """A NaN at the first example, or a class that is masked there."""
  p = problem(batch=16)
  first = jnp.asarray(p.inputs[:1])

  def model(value, inputs):
    apart = jnp.abs(inputs - first).reshape(len(inputs), -1).max(axis=1) > 2 * EPSILON
    logits = 1e4 * p.logits_fn(inputs)
    return logits.at[:, 0].add(jnp.where(apart, 0, value))

  sound, faulty = (
    evaluate(jax.tree_util.Partial(model, jnp.float32(value)), p, p.labels)
    for value in (0, bad)
  )
  assert faulty.temperature == pytest.approx(sound.temperature, rel=0.2)
  assert faulty.mean_confidence == pytest.approx(sound.mean_confidence, abs=1e-3)
  for name, result in faulty.pgd.items():
    assert np.mean(result.robust[1:] != sound.pgd[name].robust[1:]) < 0.25


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:AutoAttack")  # Of its constant logits.
def test_examples_that_are_broken_by_nan_are_counted():
  def model(inputs):
    moved = jnp.any(inputs != 0.5, axis=1)
    logits = jnp.array([[9.0, 0, 0, 0]]) + 0 * inputs
    return logits.at[:, 3].add(jnp.where(moved, jnp.nan, 0))

  inputs, labels = jnp.full((2, 4), 0.5), jnp.zeros(2, int)
  run = ddi_jax.autoattack(
    ddi_jax.linf(0.1), {"square": attacks.square(ddi_jax.linf(0.1), queries=2)}
  )
  said = "at 2 of the 2 adversarial points that were found a logit is NaN"
  with pytest.warns(UserWarning, match=said):
    result = run(KEY, model, inputs, labels)
  assert any(said in message for message in result.warnings)


@pytest.mark.slow
def test_stopped_and_resumed_is_the_same_as_never_stopped():
  p = problem(batch=10)
  told = []
  whole = evaluate(p.logits_fn, p, batch_size=4, after_batch=told.append)
  assert len(told) > 8
  assert whole.finished
  count, stops, result = 0, (2, 8), None

  def after_batch(progress):
    nonlocal count
    assert progress.attack == told[count].attack
    count += 1
    return count in stops

  for stop in (*stops, len(told)):  # In the attacks, in PGD, not at all.
    result = evaluate(
      p.logits_fn, p, batch_size=4, after_batch=after_batch, resume=result
    )
    assert count == stop
    assert result.finished == (stop == len(told))
    assert result.robust.value >= whole.robust.value
  jax.tree.map(np.testing.assert_array_equal, result, whole)


def test_what_autoattack_misses_is_said():
  p = problem(batch=8)
  idle = {"idle": lambda key, logits_fn, inputs, labels: inputs}
  with pytest.warns(UserWarning, match="broke 8 examples that AutoAttack had") as shown:
    result = ddi_jax.evaluate(
      KEY, p.logits_fn, p.inputs, p.labels, ddi_jax.linf(0.2), version=idle
    )
  assert result.robust.value == 1
  assert result.worst_pgd.value == 0
  assert result.warnings == tuple(str(warning.message) for warning in shown)
  assert result.autoattack.warnings == result.warnings[:-1]


def test_zero_radius_is_clean_accuracy():
  p = problem()
  labels = p.labels.at[:4].set((p.labels[:4] + 1) % 5)
  result = evaluate(p.logits_fn, p, labels, epsilon=0.0)
  for accuracy in (result.clean, result.robust, result.worst_pgd):
    assert accuracy == (12, 16)


def test_bad_arguments_are_refused():
  p = problem()
  linf = ddi_jax.linf(0.1)
  with pytest.raises(ValueError, match='version must not be "rand"'):
    ddi_jax.evaluate(KEY, p.logits_fn, p.inputs, p.labels, linf, version="rand")
  with pytest.raises(ValueError, match="standard, plus, rand, or a list of"):
    ddi_jax.evaluate(KEY, p.logits_fn, p.inputs, p.labels, linf, version="best")
  with pytest.raises(ValueError, match=r"labels must be integers of shape \(16,\)"):
    ddi_jax.evaluate(KEY, p.logits_fn, p.inputs, jnp.ones(16), linf)


def briefly(*, key=KEY, epsilon=EPSILON, steps=2, factor=1.0, **settings):
  """With attacks that are soon compiled."""
  p = problem(batch=6)
  ball = ddi_jax.linf(epsilon)
  pgd = ddi_jax.pgd(ball, steps=steps, step_size=0.1)
  idle = {"idle": lambda key, logits_fn, inputs, labels: inputs}
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="AutoAttack: PGD broke")
    return ddi_jax.evaluate(
      key,
      jax.tree_util.Partial(linear, factor * p.weights),
      p.inputs,
      p.labels,
      ball,
      version=idle,
      pgd_attack=pgd,
      **settings,
    )


@pytest.fixture(scope="module")
def whole():
  result = briefly()
  assert briefly(resume=result).worst_pgd == result.worst_pgd
  return result


@pytest.mark.slow
@pytest.mark.parametrize(
  ("change", "said"),
  [
    ({"epsilon": 0.2}, "linf(0.0265) in bounds (0, 1), this call has linf(0.2)"),
    ({"pgd_restarts": 2}, "pgd_restarts is 1 there and 2 here"),
    ({"steps": 3}, "pgd_attack.steps is 2 there and 3 here"),
    ({"key": jax.random.key(1)}, "key is 'threefry2x32 "),
    ({"factor": 2.0}, "the model has other logits"),
  ],
)
def test_a_result_of_something_else_is_not_resumed(whole, change, said):
  with pytest.raises(attacks.ResumeError, match=re.escape(said)):
    briefly(resume=whole, **change)


@pytest.mark.parametrize("given", ["AutoAttackResult", "RobustnessCurve", "dict"])
def test_each_function_resumes_its_own_kind_of_result(whole, given):
  p = problem(batch=6)
  ball = ddi_jax.linf(EPSILON)
  others = {
    "AutoAttackResult": whole.autoattack,
    "RobustnessEvaluation": whole,
    "RobustnessCurve": ddi_jax.RobustnessCurve((0.1,), ("fab",), whole.autoattack),
    "dict": {},
  }
  arguments = (KEY, p.logits_fn, p.inputs, p.labels)
  calls = {
    "AutoAttackResult": lambda resume: ddi_jax.autoattack(ball)(
      *arguments, resume=resume
    ),
    "RobustnessEvaluation": lambda resume: briefly(resume=resume),
    "RobustnessCurve": lambda resume: ddi_jax.robustness_curve(
      *arguments, ddi_jax.linf, [0.1], resume=resume
    ),
  }
  for kind, call in calls.items():
    other = "RobustnessEvaluation" if kind == given else given
    with pytest.raises(
      ValueError,
      match=rf"^resume must be .* result of .*ddi_jax\.\w+ \({kind}\), got {other}",
    ):
      call(others[other])
