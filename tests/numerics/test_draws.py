"""Numbers drawn as a vector."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddi_jax.numerics.draws import draw_flat


@pytest.mark.slow
@pytest.mark.parametrize("partitionable", [True, False])
@pytest.mark.parametrize("draw", [jax.random.uniform, jax.random.normal])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 1, 5), (0, 4)])
def test_same_numbers(shape, draw, partitionable):
  key, like = jax.random.key(3), jnp.zeros(shape)
  with jax.threefry_partitionable(partitionable):
    expected = draw(key, shape)
    np.testing.assert_array_equal(draw_flat(draw, key, like), expected)


def test_settings_and_dtype():
  like = jnp.zeros((100, 2), jnp.bfloat16)
  drawn = draw_flat(jax.random.uniform, jax.random.key(0), like, minval=-3.0)
  assert drawn.dtype == jnp.bfloat16
  assert -3 <= drawn.min() < -1
