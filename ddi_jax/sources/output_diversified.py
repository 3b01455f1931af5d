"""PGD from output-diversified starts (Tashiro et al., 2020)."""

from typing import Any

import jax
import jax.numpy as jnp

from ddi_jax import loops, losses
from ddi_jax.attacks import pgd
from ddi_jax.sources.base import Source, check_count, pgd_from
from ddi_jax.sources.restarts import LossOfLogits
from ddi_jax.threat_models import Bounds, ThreatModel


def output_diversified(
  threat_model: ThreatModel,
  count: int,
  *,
  start_steps: int = 2,
  start_step_size: float | jax.Array | None = None,
  loss: LossOfLogits = losses.cross_entropy,
  loop: str = "auto",
  at_a_time: int | None = None,
  pgd_loop: str = "auto",
  bounds: Bounds = (0.0, 1.0),
  **settings: Any,
) -> Source:
  """PGD, each run started far off in the space of logits.

  From a uniform start, a few ascent steps on <w, logits>, w uniform in [-1, 1]^C for
  each example: Tashiro, Song and Ermon (2020), "Diversity can be transferred",
  equations 2 and 3.

  Args:
    threat_model: see `ddi_jax.pgd`.
    count: K >= 1.
    start_steps: N_ODI >= 1.
    start_step_size: None: the radius, as in the paper for l_inf.
    loss: (logits, labels) -> losses `[B]`, to be increased by PGD.
    loop: arrangement of the K runs.
    at_a_time: see `ddi_jax.restart_candidates`.
    pgd_loop: `loop` of `ddi_jax.pgd`, over its steps.
    bounds: the box `(low, high)` that holds the inputs, or None.
    **settings: steps, step_size and so on, of `ddi_jax.pgd`.

  Returns:
    A `Source` of K candidates.
  """
  check_count("start_steps", start_steps)
  length = threat_model.epsilon if start_step_size is None else start_step_size

  ascend = pgd(
    threat_model, steps=start_steps, step_size=length, bounds=bounds, loop=pgd_loop
  )

  def starts(key, logits_fn, inputs, labels, count):
    del labels
    shape = jax.eval_shape(logits_fn, inputs)

    def run(key):
      direction_key, start_key = jax.random.split(key)
      weights = jax.random.uniform(
        direction_key, shape.shape, shape.dtype, minval=-1, maxval=1
      )
      return ascend(start_key, lambda x: jnp.sum(weights * logits_fn(x), 1), inputs)

    return loops.map_resolved(run, jax.random.split(key, count), loop, at_a_time)

  return pgd_from(
    starts,
    threat_model,
    count,
    loss,
    {"bounds": bounds, **settings},
    loop=loop,
    at_a_time=at_a_time,
    pgd_loop=pgd_loop,
  )
