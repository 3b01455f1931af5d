"""Iterates of one PGD run: K candidates at the price of one attack."""

import jax

from ddi_jax import loops, losses
from ddi_jax.attacks import pgd
from ddi_jax.sources.base import Source, check_count
from ddi_jax.sources.restarts import LossOfLogits
from ddi_jax.threat_models import ThreatModel


def trajectory(
  threat_model: ThreatModel,
  count: int,
  *,
  steps: int,
  step_size: float | jax.Array,
  loss: LossOfLogits = losses.cross_entropy,
  bounds: tuple[float, float] | None = (0.0, 1.0),
  loop: str = "auto",
) -> Source:
  """K points of one PGD run from a random start, equally far apart, the last its end.

  Args:
    threat_model: see `ddi_jax.pgd`.
    count: K >= 1.
    steps: of the whole run, a multiple of K.
    step_size: see `ddi_jax.pgd`.
    loss: (logits, labels) -> losses `[B]`, to be increased.
    bounds: see `ddi_jax.pgd`.
    loop: "loop", "unroll" or "auto".

  Returns:
    A `Source` of K candidates.

  Raises:
    ValueError: if K does not divide `steps`.
  """
  check_count("count", count)
  check_count("steps", steps)
  loops.check_form("loop", loop, ("auto", "unroll", "loop"))
  if steps % count:
    raise ValueError(f"steps must be a multiple of count = {count}, got {steps!r}.")

  def source(key, logits_fn, inputs, labels):
    def advance(point):
      attack = pgd(
        threat_model,
        steps=steps // count,
        step_size=step_size,
        bounds=bounds,
        random_start=lambda key, inputs: point,
        loop=loop,
      )
      return attack(key, lambda x: loss(logits_fn(x), labels), inputs)

    start = threat_model.random_start(key, inputs, bounds).astype(inputs.dtype)
    unroll = loops.resolve(loop, advance, start) == "unroll"
    _, points = jax.lax.scan(
      lambda point, _: (advance(point),) * 2, start, length=count, unroll=unroll
    )
    return points

  return source
