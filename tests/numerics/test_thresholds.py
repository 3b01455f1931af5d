"""Thresholds found bit by bit, against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddi_jax.numerics.thresholds import kth_largest, largest_threshold


def values_of(dtype, shape=(5, 40)):
  """Over all magnitudes, with zeros, repetitions, subnormal and infinite numbers."""
  rng = np.random.default_rng(0)
  values = np.exp(rng.uniform(-80, 80, shape))
  values[:, :8] = values[:, 8:16]
  values[:, 16:20] = 0
  values[0, 20], values[1, 20] = 1e-42, np.inf
  with np.errstate(over="ignore"):
    return jnp.asarray(values).astype(dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_kth_largest_is_that_of_the_sorted_row(dtype):
  with jax.enable_x64(dtype == "float64"):
    values = values_of(dtype)
    ordered = -np.sort(-np.asarray(values, float), axis=1)
    for count in (1, 2, 9, 24, 40):
      found = kth_largest(values, count)
      assert found.dtype == values.dtype
      np.testing.assert_array_equal(
        np.asarray(found, float)[:, 0], ordered[:, count - 1]
      )
    counts = jnp.array([[1], [3], [40], [20], [2]])
    found = jax.jit(kth_largest)(values, counts)
    expected = np.take_along_axis(ordered, np.asarray(counts) - 1, axis=1)
    np.testing.assert_array_equal(np.asarray(found, float), expected)


def test_a_threshold_that_no_row_reaches_is_0():
  values = values_of("float32")
  none = largest_threshold(values, lambda chosen: jnp.zeros((5, 1), bool))
  np.testing.assert_array_equal(none, np.zeros((5, 1)))
