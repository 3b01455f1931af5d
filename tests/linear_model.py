"""A linear classifier, whose distances to the decision boundary are known."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ddi_jax

MAKERS = {"linf": ddi_jax.linf, "l2": ddi_jax.l2, "l1": ddi_jax.l1}
DUAL_ORDERS = {"linf": 1, "l2": 2, "l1": np.inf}
KEY = jax.random.key(0)
# Radii that break about half of the examples and never reach the box.
EPSILONS = {"linf": 0.0265, "l2": 0.07, "l1": 0.107}


class Problem(NamedTuple):
  """Examples in the middle of the box, all classified right."""

  weights: jax.Array  # [n, C]
  inputs: jax.Array  # [B, n]
  labels: jax.Array  # [B]

  @property
  def logits_fn(self):
    return jax.tree_util.Partial(linear, self.weights)

  def distances(self, norm):
    """To the nearest of the other classes, `[B]`."""
    weights = np.asarray(self.weights, np.float64)
    logits = np.asarray(self.inputs, np.float64) @ weights
    labels = np.asarray(self.labels)
    rows = np.arange(len(labels))
    gaps = logits[rows, labels][:, None] - logits
    normals = weights.T[None] - weights.T[labels][:, None]
    lengths = np.linalg.norm(normals, DUAL_ORDERS[norm], axis=2)
    lengths[rows, labels] = 1
    distances = gaps / lengths
    distances[rows, labels] = np.inf
    return distances.min(axis=1)


def linear(weights, inputs):
  return inputs.reshape(len(inputs), -1) @ weights


@functools.cache
def compiled(make, norm, **settings):
  """An attack as fn(epsilon, key, logits_fn, inputs, labels), compiled once for all."""

  @jax.jit
  def attack(epsilon, key, logits_fn, inputs, labels):
    return make(MAKERS[norm](epsilon), **settings)(key, logits_fn, inputs, labels)

  return attack


def problem(batch=16, size=10, classes=5, seed=0) -> Problem:
  rng = np.random.default_rng(seed)
  weights = jnp.asarray(rng.normal(size=(size, classes)), jnp.float32)
  inputs = jnp.asarray(rng.uniform(0.3, 0.7, size=(batch, size)), jnp.float32)
  return Problem(weights, inputs, jnp.argmax(inputs @ weights, axis=1))


def is_right(logits_fn, points, labels):
  return np.asarray(jnp.argmax(logits_fn(points), axis=1) == labels)


def assert_inside(threat_model, points, inputs, bounds=(0.0, 1.0)):
  """In the box exactly, in the ball up to rounding."""
  sizes = threat_model.size(points - inputs)
  assert np.all(sizes <= threat_model.epsilon * (1 + 1e-5) + 1e-6)
  assert points.min() >= bounds[0]
  assert points.max() <= bounds[1]
