"""The change of the robust loss along directions, where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax

U, V = np.array([1.0, 0.0]), np.array([-1.0, -1.0]) / np.sqrt(2)
LENGTHS = (0.02, 0.1)
ATTACK = ddi_jax.pgd(ddi_jax.linf(0.5), steps=8, step_size=0.2)
DIRECTIONS = {
  "PGD": ddi_jax.TriedDirection(ddi_jax.first_restart_direction()),
  "average": ddi_jax.TriedDirection(ddi_jax.average_direction(normalize=False)),
  "worst restart": ddi_jax.TriedDirection(ddi_jax.first_restart_direction(), True),
  "DDi": ddi_jax.TriedDirection(ddi_jax.danskin_direction()),
}


def loss_fn(params, inputs, labels):
  """The counterexample of Latorre et al. (2023), one adversarial number an example."""
  d = inputs[:, 0]
  along_u, along_v = params @ U, params @ V
  return d * along_u + (1 - d) * along_v + d * (d - 1) + labels


def effects_at(params, **changes):
  settings = {
    "attack": ATTACK,
    "num_restarts": 8,
    "evaluation_attack": ATTACK,
    "evaluation_restarts": 16,
  } | changes
  effects_fn = jax.jit(ddi_jax.step_effects(loss_fn, DIRECTIONS, LENGTHS, **settings))
  batch = (jnp.full((1, 1), 0.5), jnp.zeros(1))
  tests = (jnp.full((2, 1, 1), 0.5), jnp.array([[0.0], [3.0]]))  # The second: 3 more.
  return effects_fn(params, batch, tests, jax.random.key(0))


@pytest.mark.slow
def test_the_counterexample():
  effects = effects_at(jnp.zeros(2))
  np.testing.assert_allclose(effects.before, [0, 3], atol=1e-5)
  change = np.asarray(effects.after) - np.asarray(effects.before)
  np.testing.assert_allclose(change[..., 0], change[..., 1], atol=1e-5)
  slopes = dict(zip(DIRECTIONS, change[..., 0] / np.array(LENGTHS), strict=True))
  # At 0 the maximisers' gradients are u and v; each alone raises the robust loss.
  np.testing.assert_allclose(slopes["PGD"], np.sqrt(0.5), rtol=1e-3)
  np.testing.assert_allclose(slopes["worst restart"], np.sqrt(0.5), rtol=1e-3)
  np.testing.assert_allclose(slopes["DDi"], -np.linalg.norm(U + V) / 2, rtol=1e-3)
  assert np.all(slopes["average"] < np.sqrt(0.5))


def test_directions_are_compared_at_unit_norm():
  effects = effects_at(jnp.zeros(2))
  np.testing.assert_allclose(np.diag(effects.cosines), 1, rtol=1e-5)
  danskin = list(DIRECTIONS).index("DDi")
  np.testing.assert_allclose(
    effects.states.norm[danskin], np.linalg.norm(U + V) / 2, rtol=1e-4
  )
  # <(u + v) / |u + v|, u> = |u + v| / 2, as of every maximiser's gradient.
  np.testing.assert_allclose(
    effects.cosines[danskin, 0], np.linalg.norm(U + V) / 2, rtol=1e-4
  )
  assert effects.states.support[danskin] == 2
  assert effects.losses.shape == (8, 1)


@pytest.mark.slow
def test_a_stationary_point_stays_where_it_is():
  only = {"DDi": DIRECTIONS["DDi"]}
  effects_fn = ddi_jax.step_effects(
    lambda params, inputs, labels: labels + 0 * params.sum() + inputs[:, 0],
    only,
    LENGTHS,
    attack=ATTACK,
    num_restarts=2,
    evaluation_attack=ATTACK,
    evaluation_restarts=1,
  )
  batch = (jnp.full((1, 1), 0.5), jnp.zeros(1))
  tests = jax.tree.map(lambda leaf: leaf[None], batch)
  effects = jax.jit(effects_fn)(jnp.ones(2), batch, tests, jax.random.key(0))
  np.testing.assert_array_equal(effects.after[0, :, 0], effects.before[0])
  np.testing.assert_array_equal(effects.cosines, [[0.0]])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"num_restarts": 0}, "num_restarts must be an integer >= 1, got 0"),
    ({"evaluation_restarts": 0}, "evaluation_restarts must be an integer >= 1, got 0"),
  ],
)
def test_bad_settings_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    effects_at(jnp.zeros(2), **changes)


def test_nothing_to_compare():
  settings = {
    "attack": ATTACK,
    "num_restarts": 1,
    "evaluation_attack": ATTACK,
    "evaluation_restarts": 1,
  }
  with pytest.raises(ValueError, match="a direction and a list of step lengths, got 0"):
    ddi_jax.step_effects(loss_fn, {}, LENGTHS, **settings)
