"""ATTA: attacks that start where earlier attacks ended."""

from typing import Any

import jax
import jax.numpy as jnp

from ddi_jax import losses
from ddi_jax.attacks import pgd
from ddi_jax.attacks.classifier import LogitsFn
from ddi_jax.candidates.source import LossOfLogits, Source
from ddi_jax.checks import check_array, check_key, check_positive_int
from ddi_jax.numerics import loops
from ddi_jax.threat_models import Bounds, ThreatModel


def warm_restarts(
  threat_model: ThreatModel,
  perturbations: jax.Array,
  *,
  loss: LossOfLogits = losses.cross_entropy,
  at_a_time: int | None = None,
  bounds: Bounds = (0.0, 1.0),
  **settings: Any,
) -> Source:
  """Make candidates by PGD that starts where earlier attacks on the inputs ended.

  With the perturbations of the last epoch, few steps suffice: ATTA, Zheng et al.
  (2020), "Efficient adversarial training with transferable adversarial examples".

  Args:
    threat_model: see `ddi_jax.pgd`.
    perturbations: `[K, B, ...]`, candidates minus inputs of an earlier step.  Points
      outside the threat model or the box are projected back.  If all entries of an
      example's perturbation are 0 (the memory is still empty), the attack starts at
      random.
    loss: (logits, labels) -> losses `[B]`, to be increased.
    at_a_time: see `ddi_jax.restart_candidates`.
    bounds: the box `(low, high)` that holds the inputs, or None.
    **settings: settings of `ddi_jax.pgd`, such as `steps` and `step_size`, but not
      `random_start`.

  Returns:
    A `Source` of K candidates.

  Raises:
    ValueError: for a setting that `ddi_jax.pgd` refuses; when it runs, if
      `perturbations` does not fit the inputs.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> from ddi_jax import candidates
    >>> inputs, labels = jnp.full((1, 2), 0.5), jnp.zeros(1, int)
    >>> source = candidates.warm_restarts(
    ...     ddi_jax.linf(0.1), jnp.array([[[-0.05, 0.05]]]), steps=1, step_size=0.02)
    >>> source(jax.random.key(0), lambda x: x * jnp.array([-1.0, 1.0]), inputs, labels)
    Array([[[0.47, 0.57]]], dtype=float32)
  """
  check_positive_int("at_a_time", at_a_time, optional=True)
  check_array("perturbations", perturbations)
  if "random_start" in settings:
    raise ValueError(
      "random_start cannot be set: warm_restarts starts at the given perturbations, "
      "and at random where they are 0; leave it out."
    )
  pgd(threat_model, bounds=bounds, **settings)  # Checks the settings now.

  def source(
    key: jax.Array, logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array
  ) -> jax.Array:
    check_key(key)
    check_array("inputs", inputs)
    if perturbations.shape[1:] != inputs.shape:
      raise ValueError(
        f"perturbations must be [K, *{inputs.shape}], as the inputs; got "
        f"{perturbations.shape}."
      )
    keys = jax.random.split(key, len(perturbations))
    random_starts = jax.vmap(lambda key: threat_model.random_start(key, inputs, bounds))
    is_known = jnp.any(
      perturbations != 0, axis=tuple(range(2, perturbations.ndim)), keepdims=True
    )
    remembered = (inputs[None] + perturbations).astype(inputs.dtype)
    starts = jnp.where(is_known, remembered, random_starts(keys))

    def attack_from(start: jax.Array) -> jax.Array:
      attack = pgd(
        threat_model, bounds=bounds, random_start=lambda key, inputs: start, **settings
      )
      return attack(key, lambda x: loss(logits_fn(x), labels), inputs)

    return loops.map_leading(attack_from, starts, at_a_time)

  return source
