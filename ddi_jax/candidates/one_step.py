"""R-FGSM: candidates that cost one gradient each."""

import jax

from ddi_jax import losses
from ddi_jax.attacks import pgd
from ddi_jax.candidates.repeated_attacks import restarts
from ddi_jax.candidates.source import LossOfLogits, Source
from ddi_jax.checks import check_positive
from ddi_jax.threat_models import linf


def r_fgsm(
  epsilon: float | jax.Array,
  count: int,
  *,
  step_ratio: float = 1.25,
  loss: LossOfLogits = losses.cross_entropy,
  bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Source:
  """FGSM from a uniform start, projected on the ball.

  Wong, Rice and Kolter (2020), algorithm 3.

  Args:
    epsilon: l_inf radius.
    count: K >= 1, the number of candidates.
    step_ratio: the step as a multiple of epsilon, > 0.
    loss: (logits, labels) -> losses `[B]`, to be increased.
    bounds: the box that holds the inputs, or None.

  Returns:
    A `Source` of K candidates.

  Raises:
    ValueError: for an argument outside its range.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from ddi_jax import candidates
    >>> source = candidates.r_fgsm(0.1, 2)
    >>> inputs, labels = jnp.full((4, 3), 0.5), jnp.zeros(4, int)
    >>> source(jax.random.key(0), lambda x: x @ jnp.eye(3), inputs, labels).shape
    (2, 4, 3)
  """
  check_positive("epsilon", epsilon)
  check_positive("step_ratio", step_ratio)
  step_size = step_ratio * epsilon
  attack = pgd(linf(epsilon), steps=1, step_size=step_size, bounds=bounds)
  return restarts(attack, count, loss=loss)
