"""Losses against plain numpy formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddi_jax import losses

LOGITS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) * 3
LABELS = np.array([0, 1, 2, 3, 4, 0])
TARGETS = np.array([1, 2, 3, 4, 0, 2])
ROWS = np.arange(6)


def test_cross_entropy():
  exponentials = np.exp(LOGITS.astype(np.float64))
  expected = -np.log(exponentials[ROWS, LABELS] / exponentials.sum(1))
  np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS), expected, rtol=1e-5)


def test_margin_sign_says_misclassified():
  margins = losses.margin(LOGITS, LABELS)
  others = LOGITS.copy()
  others[ROWS, LABELS] = -np.inf
  np.testing.assert_allclose(margins, others.max(1) - LOGITS[ROWS, LABELS], rtol=1e-5)
  np.testing.assert_array_equal(margins > 0, LOGITS.argmax(1) != LABELS)


def test_dlr():
  ordered = np.sort(LOGITS, axis=1)[:, ::-1]
  expected = losses.margin(LOGITS, LABELS) / (ordered[:, 0] - ordered[:, 2])
  found = losses.dlr(LOGITS, LABELS)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  np.testing.assert_allclose(losses.dlr(7 * LOGITS + 3, LABELS), found, rtol=1e-4)
  assert found.min() >= -1


def test_targeted_dlr():
  ordered = np.sort(LOGITS, axis=1)[:, ::-1]
  spread = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
  expected = (LOGITS[ROWS, TARGETS] - LOGITS[ROWS, LABELS]) / spread
  found = losses.targeted_dlr(LOGITS, LABELS, TARGETS)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_kl_divergence():
  other = LOGITS[::-1]
  p = np.exp(other) / np.exp(other).sum(1, keepdims=True)
  q = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
  expected = (p * np.log(p / q)).sum(1)
  np.testing.assert_allclose(losses.kl_divergence(LOGITS, other), expected, rtol=1e-4)
  np.testing.assert_allclose(losses.kl_divergence(LOGITS, LOGITS), 0, atol=1e-6)
  with pytest.raises(ValueError, match="same shape"):
    losses.kl_divergence(LOGITS, LOGITS[:3])


@pytest.mark.parametrize(
  ("loss", "classes"), [("margin", 2), ("dlr", 3), ("targeted_dlr", 4)]
)
def test_too_few_classes(loss, classes):
  arguments = (LABELS % (classes - 1),) * (2 if loss == "targeted_dlr" else 1)
  with pytest.raises(
    ValueError, match=f"at least {classes} classes, got {classes - 1}"
  ):
    getattr(losses, loss)(LOGITS[:, : classes - 1], *arguments)


def test_wrong_labels():
  with pytest.raises(ValueError, match=r"labels \[...\]"):
    losses.cross_entropy(LOGITS, LABELS[:3])
  with pytest.raises(ValueError, match="labels must be integers"):
    losses.cross_entropy(LOGITS, LABELS.astype(float))


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr"])
def test_half_precision_logits_are_widened(name):
  found = getattr(losses, name)(LOGITS.astype(jnp.bfloat16), LABELS)
  assert found.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr"])
def test_leading_axes_and_extreme_logits(name):
  loss = getattr(losses, name)
  stacked = np.stack([LOGITS, 1e4 * LOGITS])
  found = loss(stacked, np.stack([LABELS, LABELS]))
  np.testing.assert_allclose(found[0], loss(LOGITS, LABELS), rtol=1e-6)
  assert np.all(np.isfinite(found))
  gradients = jax.grad(lambda logits: loss(logits, LABELS).sum())(1e4 * LOGITS)
  assert np.all(np.isfinite(gradients))
