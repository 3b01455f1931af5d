"""Attacks that go on where earlier ones ended: ATTA."""

from typing import Any

import jax
import jax.numpy as jnp

from ddi_jax import losses
from ddi_jax.attacks.pgd import start_in_batch
from ddi_jax.sources.base import Source, pgd_from
from ddi_jax.sources.restarts import LossOfLogits
from ddi_jax.threat_models import Bounds, ThreatModel


def warm_restarts(
  threat_model: ThreatModel,
  moves: jax.Array,
  *,
  loss: LossOfLogits = losses.cross_entropy,
  loop: str = "auto",
  at_a_time: int | None = None,
  pgd_loop: str = "auto",
  bounds: Bounds = (0.0, 1.0),
  **settings: Any,
) -> Source:
  """PGD from what was found before for the same inputs.

  With the moves of the last epoch, few steps do: ATTA, Zheng et al. (2020), "Efficient
  adversarial training with transferable adversarial examples".

  Args:
    threat_model: see `ddi_jax.pgd`.
    moves: perturbations `[K, B, ...]`, candidates - inputs of an earlier step; what is
      out of the threat model or the box is projected back, and where all are 0, as in a
      memory that is still empty, the attack starts at random.
    loss: (logits, labels) -> losses `[B]`, to be increased.
    loop: arrangement of the K runs.
    at_a_time: see `ddi_jax.restart_candidates`.
    pgd_loop: `loop` of `ddi_jax.pgd`, over its steps.
    bounds: the box `(low, high)` that holds the inputs, or None.
    **settings: steps, step_size and so on, of `ddi_jax.pgd`.

  Returns:
    A `Source` of K candidates.

  Raises:
    ValueError: when it runs, if `moves` does not fit the inputs.
  """
  batch_axis = settings.get("batch_axis")

  def starts(key, logits_fn, inputs, labels, count):
    del logits_fn, labels
    if moves.shape[1:] != inputs.shape:
      raise ValueError(
        f"moves must be [K, *{inputs.shape}], as the inputs; got {moves.shape}."
      )
    at_random = jax.vmap(
      lambda key: start_in_batch(threat_model, key, inputs, bounds, batch_axis)
    )
    known = jnp.any(moves != 0, axis=tuple(range(2, moves.ndim)), keepdims=True)
    remembered = (inputs[None] + moves).astype(inputs.dtype)
    return jnp.where(known, remembered, at_random(jax.random.split(key, count)))

  return pgd_from(
    starts,
    threat_model,
    len(moves),
    loss,
    {"bounds": bounds, **settings},
    loop=loop,
    at_a_time=at_a_time,
    pgd_loop=pgd_loop,
  )
