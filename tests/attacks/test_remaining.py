"""Runs on what remains of a batch: who takes part, and at what cost."""

import jax
import jax.numpy as jnp
import numpy as np
from platforms import compiling_for
import pytest

from ddi_jax.attacks.remaining import group_size, run_on_remaining

NEEDS = np.array([0, 3, 1, 9, 0, 2, 9, 1])


def count_runs(size, runs):
  """(how often each example ran, its last run's index, the groups' sizes)."""
  groups = []

  def run(index, arguments, found):
    groups.append(len(arguments))
    count, _, need = found
    np.testing.assert_array_equal(arguments, 10 * need)
    return count + 1, jnp.full_like(count, index), need

  zero = jnp.zeros(len(NEEDS), int)
  with jax.disable_jit():
    count, last, _ = run_on_remaining(
      run,
      runs,
      (zero, zero - 1, jnp.asarray(NEEDS)),
      lambda found: found[0] < found[2],
      jnp.asarray(10 * NEEDS),
      size,
    )
  return count, last, groups


@pytest.mark.parametrize("size", [1, 3, 8, 20])
def test_everyone_runs_until_done_and_nobody_longer(size):
  count, last, groups = count_runs(size, 4)
  np.testing.assert_array_equal(count, np.minimum(NEEDS, 4))
  np.testing.assert_array_equal(last, np.minimum(NEEDS, 4) - 1)
  left = [np.sum(index < NEEDS) for index in range(4)]
  width = min(size, 8)
  assert groups == [width] * sum(-(-count // width) for count in left)


def test_nothing_runs_when_nothing_remains():
  assert len(count_runs(3, 100)[2]) == 2 + 2 + 1 + 6
  assert count_runs(3, 0)[2] == []


def test_groups_divide_a_batch_evenly_on_a_cpu():
  sizes = [group_size(batch) for batch in (1, 49, 60, 100, 250, 256, 1000)]
  assert sizes == [1, 49, 60, 50, 50, 52, 50]
  with compiling_for("gpu"):
    assert group_size(250) == 250
