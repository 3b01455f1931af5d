"""The accuracy of Danskin's direction in float32 for nearly equal gradients.

python benchmarks/nearly_equal.py

The gradients are drawn in float64 with norm about 1 and the given pairwise cosine.
Their lengths differ as much as their directions, so that the min-norm point lies on a
face.  The reference is the min-norm point of the float64 gradients.  Two results from
the same gradients rounded to float32 are compared with it: the min-norm point from an
ordinary float32 Gram matrix, and the result of `ddi_jax.danskin_direction`, which uses
inner products of differences.  The script prints a Markdown table of medians over
seeds.
"""

from absl import app, flags
import jax
import jax.numpy as jnp
from machine import describe_machine
import numpy as np
from progress import progress

import ddi_jax
from ddi_jax.directions import min_norm
from ddi_jax.gradients import gram as gradient_matrix

_SIZE = flags.DEFINE_integer("size", 10, "K.")
_DIMENSION = flags.DEFINE_integer("dimension", 1_000_000, "Parameters.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Draws.")
_COSINES = (0.9, 0.99, 0.999, 0.9999, 0.99999)


def _gradients(seed: int, cosine: float) -> np.ndarray:
  rng = np.random.default_rng(seed)
  noise = rng.normal(size=(_SIZE.value, _DIMENSION.value))
  gradients = rng.normal(size=_DIMENSION.value) + np.sqrt(1 / cosine - 1) * noise
  gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
  return gradients * (1 + (1 - cosine) * rng.normal(size=(_SIZE.value, 1)))


def _angle(first: np.ndarray, second: np.ndarray) -> float:
  first, second = first / np.linalg.norm(first), second / np.linalg.norm(second)
  return 2 * np.arcsin(np.linalg.norm(first - second) / 2)


def _shortfall(direction: np.ndarray, gradients: np.ndarray) -> float:
  """1 - min_k <z, g_k> / ||z||^2."""
  return max(1 - np.min(gradients @ direction) / (direction @ direction), 0)


def _measure(seed: int, cosine: float) -> list[float]:
  gradients = _gradients(seed, cosine)
  with jax.enable_x64(True):
    solution = ddi_jax.min_norm_weights(jnp.asarray(gradients @ gradients.T))
  weights = np.asarray(solution.weights)
  exact = weights @ gradients
  rounded = jnp.asarray(gradients, jnp.float32)
  gram = jnp.matmul(rounded, rounded.T, precision="highest")
  plain_weights = np.asarray(ddi_jax.min_norm_weights(gram).weights, np.float64)
  plain = plain_weights @ gradients
  inner, _ = gradient_matrix.shifted_gram({"w": rounded})
  our_weights = np.asarray(min_norm.solve(inner).weights, np.float64)
  transformation = ddi_jax.danskin_direction(normalize=False)
  ours, _ = jax.jit(transformation.update)({"w": rounded}, transformation.init(None))
  ours = np.asarray(ours["w"], np.float64)
  return [
    _angle(gradients.mean(axis=0), exact),
    _angle(plain, exact),
    _angle(ours, exact),
    _shortfall(plain, gradients),
    _shortfall(ours, gradients),
    np.abs(plain_weights - weights).sum(),
    np.abs(our_weights - weights).sum(),
  ]


def main(_):
  print(
    f"K = {_SIZE.value}, {_DIMENSION.value:,} parameters, {_SEEDS.value} seeds, "
    f"{describe_machine('jax')}.\n"
  )
  print(
    "| cosine | angle (rad) to the exact direction: of the average | float32 Gram "
    "| danskin_direction | 1 - min <z, g_k> / ||z||^2: float32 Gram "
    "| danskin_direction | sum of the weights' errors: float32 Gram "
    "| danskin_direction |"
  )
  print("|---|---|---|---|---|---|---|---|")
  for cosine in progress(_COSINES):
    rows = [_measure(seed, cosine) for seed in range(_SEEDS.value)]
    medians = " | ".join(f"{value:.0e}" for value in np.median(rows, axis=0))
    print(f"| {cosine} | {medians} |", flush=True)


if __name__ == "__main__":
  app.run(main)
