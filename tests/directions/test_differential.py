"""The min-norm problem on 10^5 Gram matrices, against enumeration in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddi_jax

pytestmark = pytest.mark.slow
SIZES = (2, 3, 4, 5)
PER_SIZE = 25_000
solve_all = jax.jit(
  jax.vmap(lambda gram, slacks: ddi_jax.min_norm_weights(gram, slacks).weights)
)


def draw_problems(rng, size, count):
  """Gram matrices `[N, K, K]` and slacks `[N, K]`, of many characters."""

  def choose(values, *shape):
    return rng.choice(values, (count, *shape))

  gradients = rng.normal(size=(count, size, 10))
  # Fewer dimensions than vectors, all nearly equal, norms and scales far apart.
  gradients *= np.arange(10) < choose([1, 2, 3, 10], 1, 1)
  common = rng.normal(size=(count, 1, 10))
  gradients = common * choose([0, 1], 1, 1) + gradients * choose(
    [1, 0.3, 1e-2, 1e-4], 1, 1
  )
  gradients *= np.exp(choose([0, 1.5, 4], 1, 1) * rng.normal(size=(count, size, 1)))
  gradients *= 10.0 ** choose([-12, -6, 0, 6, 12], 1, 1)
  copied = choose([0, 1]).astype(bool)
  gradients[copied, 0] = gradients[copied, -1]
  gradients[choose(np.arange(10)) == 0, 1] = 0
  grams = gradients @ gradients.transpose(0, 2, 1)
  largest = grams.diagonal(axis1=1, axis2=2).max(1, keepdims=True)
  slacks = choose([0, 1e-6, 1e-3, 0.1, 3], 1) * rng.exponential(size=(count, size))
  slacks = slacks * largest
  slacks[np.arange(count), choose(np.arange(size))] = 0
  excluded = (choose(np.arange(10)) == 0)[:, None] & (slacks > 0)
  return grams, np.where(excluded, np.inf, slacks)


def values_of(grams, slacks, weights):
  """The objective, where a weight of 0 makes nothing of an infinite slack."""
  linear = np.where(weights > 0, weights * np.where(weights > 0, slacks, 0), 0)
  return np.einsum("ni,nij,nj->n", weights, grams, weights) / 2 + linear.sum(1)


def least_values(grams, slacks):
  """By every support: the affine minimiser there, if it is a convex combination."""
  count, size, _ = grams.shape
  scale = grams.diagonal(axis1=1, axis2=2).max(1)
  scale = np.where(scale > 0, scale, 1)[:, None, None]
  best = np.full(count, np.inf)
  for chosen in range(1, size + 1):
    for support in map(list, itertools.combinations(range(size), chosen)):
      system = np.zeros((count, chosen + 1, chosen + 1))
      system[:, :chosen, :chosen] = grams[:, support][:, :, support] / scale
      # A hair of curvature, for supports that are not needed but singular.
      system[:, :chosen, :chosen] += 1e-15 * np.eye(chosen)
      system[:, chosen, :chosen] = system[:, :chosen, chosen] = 1
      finite = np.minimum(slacks[:, support] / scale[:, 0], 1e3)
      right = np.concatenate([-finite, np.ones((count, 1))], axis=1)
      part = np.linalg.solve(system, right[:, :, None])[:, :chosen, 0]
      allowed = np.all(part > -1e-9, axis=1) & (abs(part.sum(1) - 1) < 1e-6)
      weights = np.zeros((count, size))
      weights[:, support] = np.maximum(part, 0)
      weights /= np.maximum(weights.sum(1, keepdims=True), 1e-300)
      values = values_of(grams, slacks, weights)
      best = np.minimum(best, np.where(allowed & np.isfinite(values), values, np.inf))
  return best


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_is_the_least(dtype, size):
  """To 4 roundings of the largest term."""
  grams, slacks = draw_problems(np.random.default_rng(size), size, PER_SIZE)
  grams, slacks = grams.astype(dtype), slacks.astype(dtype)
  with jax.enable_x64(dtype == np.float64):
    weights = np.asarray(solve_all(jnp.asarray(grams), jnp.asarray(slacks)))
  weights, grams, slacks = (np.asarray(a, np.float64) for a in (weights, grams, slacks))
  eps = np.finfo(dtype).eps
  assert np.all(weights >= 0)
  np.testing.assert_allclose(weights.sum(1), 1, atol=size * eps)
  assert not np.any(weights[np.isinf(slacks)])
  terms = values_of(np.abs(grams), slacks, weights)
  excess = values_of(grams, slacks, weights) - least_values(grams, slacks)
  largest = grams.diagonal(axis1=1, axis2=2).max(1)
  # What is subnormal counts as 0 on most machines.
  ratios = excess / (eps * (terms + largest) + np.finfo(dtype).tiny)
  print(f"{dtype.__name__}, K = {size}: {ratios.max():.2f} roundings at the most")
  assert ratios.max() < 4
