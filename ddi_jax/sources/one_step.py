"""Candidates for one gradient each: R-FGSM and N-FGSM."""

import jax
import jax.numpy as jnp

from ddi_jax import losses
from ddi_jax.attacks import pgd
from ddi_jax.sources.base import Source
from ddi_jax.sources.restarts import LossOfLogits, restarts
from ddi_jax.threat_models import linf


def r_fgsm(
  epsilon: float | jax.Array,
  count: int,
  *,
  step_ratio: float = 1.25,
  loss: LossOfLogits = losses.cross_entropy,
  bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Source:
  """FGSM from a uniform start, projected (Wong, Rice and Kolter, 2020, algorithm 3).

  Args:
    epsilon: l_inf radius.
    count: K >= 1.
    step_ratio: the step as a multiple of epsilon, > 0.
    loss: (logits, labels) -> losses `[B]`, to be increased.
    bounds: the box that holds the inputs, or None.

  Returns:
    A `Source` of K candidates.
  """
  step_size = step_ratio * epsilon
  attack = pgd(linf(epsilon), steps=1, step_size=step_size, bounds=bounds)
  return restarts(attack, count, loss=loss)


def n_fgsm(
  epsilon: float | jax.Array,
  count: int,
  *,
  noise_ratio: float = 2.0,
  loss: LossOfLogits = losses.cross_entropy,
  bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Source:
  """FGSM around noisy inputs, not projected (de Jorge et al., 2022, algorithm 1).

  Candidates are up to (1 + noise_ratio) epsilon away: outside the threat model, on
  purpose.

  Args:
    epsilon: length of the step.
    count: K >= 1.
    noise_ratio: the noise's l_inf radius as a multiple of epsilon, >= 0.
    loss: (logits, labels) -> losses `[B]`, to be increased.
    bounds: the box that holds the inputs, or None.

  Returns:
    A `Source` of K candidates.

  Raises:
    ValueError: if `epsilon` or `noise_ratio` is negative.
  """
  epsilon = linf(epsilon).epsilon
  if not noise_ratio >= 0:
    raise ValueError(f"noise_ratio must be >= 0, got {noise_ratio!r}.")

  def attack(key, objective, inputs):
    noise = jax.random.uniform(key, inputs.shape, inputs.dtype, minval=-1, maxval=1)
    noisy = inputs + noise_ratio * epsilon * noise
    gradient = jax.grad(lambda x: jnp.sum(objective(x)))(noisy)
    points = (noisy + epsilon * jnp.sign(gradient)).astype(inputs.dtype)
    return points if bounds is None else jnp.clip(points, *bounds)

  return restarts(attack, count, loss=loss)
