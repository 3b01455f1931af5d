"""Accuracies and their intervals."""

import pytest
from scipy import stats

import ddi_jax


@pytest.mark.parametrize("total", [1, 7, 360, 10_000])
@pytest.mark.parametrize("fraction", [0, 0.01, 0.5, 0.79, 1])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_wilson_interval_is_scipy_s(total, fraction, confidence):
  successes = round(fraction * total)
  found = ddi_jax.wilson_interval(successes, total, confidence=confidence)
  expected = stats.binomtest(successes, total).proportion_ci(confidence, "wilson")
  assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
  assert 0 <= found[0] <= successes / total <= found[1] <= 1


def test_impossible_counts_are_refused():
  with pytest.raises(ValueError, match=r"successes must be in \[0, total\].*3 of 2"):
    ddi_jax.wilson_interval(3, 2)
  with pytest.raises(ValueError, match="total must be an integer >= 1, got 0"):
    ddi_jax.wilson_interval(0, 0)
  with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
    ddi_jax.wilson_interval(1, 2, confidence=95)


def test_an_accuracy_reads_well():
  accuracy = ddi_jax.Accuracy(79, 100)
  assert accuracy.value == 0.79
  assert accuracy.interval == ddi_jax.wilson_interval(79, 100)
  assert str(accuracy) == "0.790 [0.700, 0.858]"
