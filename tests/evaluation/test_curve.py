"""Robust accuracy against the radius."""

import jax
from linear_model import EPSILONS, KEY, MAKERS, linear, problem
import numpy as np
import pytest

import ddi_jax
from ddi_jax.attacks import ResumeError


def curve_of(p, norm="linf", model=None, multiples=(0, 0.5, 1, 1.5), **settings):
  radii = [multiple * EPSILONS[norm] for multiple in multiples]
  return ddi_jax.robustness_curve(
    KEY,
    p.logits_fn if model is None else model,
    p.inputs,
    p.labels,
    MAKERS[norm],
    radii,
    attacks=settings.pop("attacks", ["apgd-ce"]),
    **settings,
  )


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_of_a_linear_model(norm):
  p = problem(batch=20)
  p = p._replace(labels=p.labels.at[0].set((p.labels[0] + 1) % 5))
  curve = curve_of(p, norm, batch_size=8, attacks=["apgd-t"])
  distances = p.distances(norm)
  distances[0] = -1  # A clean mistake.
  expected = [int(np.sum(distances > radius)) for radius in curve.epsilons]
  assert all(accuracy.total == 20 for accuracy in curve.accuracies)
  missed = [a.correct - e for a, e in zip(curve.accuracies, expected, strict=True)]
  # The published l1 attack misses an example within some per cent of the radius.
  assert min(missed) == 0
  assert max(missed) <= (1 if norm == "l1" else 0)
  assert expected[0] == 19
  assert expected == sorted(expected, reverse=True)
  assert 0 < expected[2] < 15


def test_each_attack_is_compiled_once_for_all_radii():
  def traces(multiples):
    traced = []

    def model(weights, inputs):
      traced.append(inputs.shape)
      return linear(weights, inputs)

    p = problem(batch=8)
    curve_of(p, model=jax.tree_util.Partial(model, p.weights), multiples=multiples)
    return len(traced)

  assert traces((0, 0.25, 0.5, 1)) == traces((0.25,))


@pytest.mark.slow
def test_a_point_found_at_one_radius_counts_at_all_larger_ones():
  p = problem(batch=12)
  faced = []
  curve = curve_of(p, after_batch=lambda now: faced.append((now.attack, now.total)))
  names = [f"apgd-ce at {radius}" for radius in curve.epsilons[1:]]
  left = [accuracy.correct for accuracy in curve.accuracies]
  assert faced == [pair for pair in zip(names, left[:-1], strict=True) if pair[1]]
  assert curve.result.finished


@pytest.mark.slow
def test_stopped_and_resumed_is_the_same_as_never_stopped():
  p = problem(batch=10)
  whole = curve_of(p, batch_size=4)
  stopped = curve_of(
    p, batch_size=4, after_batch=lambda now: now.attack.endswith(" 0.0265")
  )
  assert not stopped.result.finished
  more = []
  resumed = curve_of(p, batch_size=4, resume=stopped, after_batch=more.append)
  assert all(now.attack.endswith((" 0.0265", " 0.03975")) for now in more)
  assert resumed.accuracies == whole.accuracies
  jax.tree.map(np.testing.assert_array_equal, resumed[2][1:], whole[2][1:])


def test_a_curve_of_something_else_is_not_resumed():
  p = problem(batch=4)

  def curve(
    key=KEY,
    make=ddi_jax.linf,
    p=p,
    epsilons=(0.0, 1e-6),
    names=("apgd-ce",),
    **settings,
  ):
    return ddi_jax.robustness_curve(
      key,
      p.logits_fn,
      p.inputs,
      p.labels,
      make,
      epsilons,
      attacks=names,
      **settings,
    )

  whole = curve()
  assert curve(resume=whole).accuracies == whole.accuracies
  for change, said in (
    ({"key": jax.random.key(1)}, "key is"),
    (
      {"make": ddi_jax.l2},
      r"threat model linf\(1e-06\) in bounds \(0, 1\), this call has l2\(1e-06\) in",
    ),
    ({"bounds": None}, r"in bounds \(0, 1\), this call has .* without bounds"),
    (
      {"epsilons": [0.0, 1e-6, 2e-6]},
      r"epsilons \[0.0, 1e-06\], this call has \[0.0, 1e-06, 2e-06\]",
    ),
    ({"names": ["apgd-t"]}, r"attacks \['apgd-ce'\], this call has \['apgd-t'\]"),
    ({"p": problem(batch=4, seed=1)}, "inputs is"),
    ({"p": p._replace(weights=2 * p.weights)}, "the model has other logits"),
  ):
    with pytest.raises(ResumeError, match=said):
      curve(resume=whole, **change)


def test_a_model_that_masks_its_gradients_is_told_of():
  p = problem(batch=4)
  with pytest.warns(UserWarning, match="AutoAttack: "):
    curve = curve_of(
      p, model=lambda x: jax.nn.softmax(1e4 * p.logits_fn(x)), multiples=(0, 0.5)
    )
  assert any("exactly zero" in message for message in curve.result.warnings)
  assert "<= " in repr(curve) and "upper bounds" in repr(curve)


@pytest.mark.parametrize("radii", [[], [-0.1, 0.1], [0.2, 0.1], [0.1, 0.1], [np.inf]])
def test_impossible_radii_are_refused(radii):
  p = problem()
  with pytest.raises(ValueError, match=r"epsilons.* must be .*finite numbers? >= 0"):
    ddi_jax.robustness_curve(KEY, p.logits_fn, p.inputs, p.labels, ddi_jax.linf, radii)


def test_unknown_attacks_and_too_few_classes_are_refused():
  with pytest.raises(ValueError, match=r"attacks must be among .*; got pgd"):
    curve_of(problem(), attacks=["pgd"])
  with pytest.raises(ValueError, match="apgd-t cannot attack 3 classes"):
    curve_of(problem(classes=3), attacks=["apgd-ce", "apgd-t"])
