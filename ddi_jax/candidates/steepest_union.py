"""One attack in the union of several threat models (Maini et al., 2020)."""

from collections.abc import Sequence
import math
from typing import Any

import jax
import jax.numpy as jnp

from ddi_jax import losses
from ddi_jax.attacks.classifier import LogitsFn
from ddi_jax.attacks.remaining import select
from ddi_jax.candidates.repeated_attacks import worst_candidate
from ddi_jax.candidates.source import LossOfLogits, Source
from ddi_jax.checks import (
  check_array,
  check_bounds,
  check_inside,
  check_positive,
  check_positive_int,
)
from ddi_jax.numerics import loops
from ddi_jax.numerics.finite import finite_or
from ddi_jax.threat_models import ThreatModel, check_radius, check_threat_model


def msd(
  threat_models: Sequence[ThreatModel],
  *,
  steps: int,
  step_sizes: Sequence[float | jax.Array],
  loss: LossOfLogits = losses.cross_entropy,
  bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Source:
  """Multi steepest descent: every step uses the norm that gains the most.

  The attack starts from the inputs.  Each step takes one gradient, makes a PGD step
  from it in each of the threat models, and keeps, for each example, the point with the
  greatest loss.  Maini, Wong and Kolter (2020), "Adversarial robustness against the
  union of multiple perturbation models", algorithm 1.  A step costs a gradient and P
  forward passes.

  Args:
    threat_models: P >= 1 threat models, see `ddi_jax.pgd`.
    steps: number of steps, >= 1.
    step_sizes: P lengths, each in its threat model's norm.
    loss: (logits, labels) -> losses `[B]`, to be increased.
    bounds: the box that holds the inputs, or None.

  Returns:
    A `Source` of one candidate.  Its key is not used.

  Raises:
    ValueError: if there are no threat models, if the number of step sizes is not P, or
      if `steps` is not an integer >= 1.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> from ddi_jax import candidates
    >>> source = candidates.msd(
    ...     [ddi_jax.linf(0.1), ddi_jax.l2(0.3)], steps=2, step_sizes=[0.1, 0.3])
    >>> inputs, labels = jnp.full((1, 4), 0.5), jnp.zeros(1, int)
    >>> source(None, lambda x: x @ jnp.ones((4, 2)) * jnp.array([[-1.0, 0]]),
    ...     inputs, labels).round(2)
    Array([[[0.65, 0.65, 0.65, 0.65]]], dtype=float32)
  """
  check_positive_int("steps", steps)
  if isinstance(threat_models, ThreatModel) or not hasattr(step_sizes, "__len__"):
    raise ValueError(
      "threat_models and step_sizes must be lists, such as [ddi_jax.linf(0.1)] and "
      f"[0.02]; got {type(threat_models).__name__} and {step_sizes!r}."
    )
  if not threat_models or len(step_sizes) != len(threat_models):
    raise ValueError(
      "msd needs a threat model, and a step size for each; got "
      f"{len(threat_models)} and {len(step_sizes)}."
    )
  check_bounds(bounds)
  for index, threat_model in enumerate(threat_models):
    check_threat_model(threat_model)
    check_radius(threat_model, bounds, None)
    check_positive(f"step_sizes[{index}]", step_sizes[index])

  def source(
    key: jax.Array | None, logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array
  ) -> jax.Array:
    del key
    check_array("inputs", inputs)
    inputs = jnp.asarray(inputs, inputs.dtype)  # Not weakly typed.
    check_inside(inputs, bounds)
    for threat_model in threat_models:
      check_radius(threat_model, bounds, math.prod(inputs.shape[1:]))

    def losses_of(points: jax.Array) -> jax.Array:
      return loss(logits_fn(points), labels)

    gradient = loops.Traced(jax.grad(lambda points: jnp.sum(losses_of(points))), inputs)

    def advance(_: Any, points: jax.Array) -> jax.Array:
      gradients = finite_or(gradient(points), 0)
      moved = []
      for threat_model, step_size in zip(threat_models, step_sizes, strict=True):
        ascent = threat_model.steepest_ascent(gradients, points, bounds)
        target = points + step_size * ascent
        moved.append(threat_model.project(target, inputs, bounds).astype(inputs.dtype))
      moved_losses = jnp.stack([losses_of(candidate) for candidate in moved])
      any_finite = jnp.isfinite(moved_losses).any(axis=0)
      return select(any_finite, worst_candidate(jnp.stack(moved), moved_losses), points)

    points = loops.repeat(steps, advance, inputs, gradient)
    return points[None]

  return source
