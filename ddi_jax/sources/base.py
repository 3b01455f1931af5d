"""What a source of candidates is, and several of them together."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from ddi_jax import loops
from ddi_jax.attacks import pgd
from ddi_jax.attacks.classifier import LogitsFn
from ddi_jax.threat_models import ThreatModel

StartsFn = Callable[[jax.Array, LogitsFn, jax.Array, jax.Array, int], jax.Array]


class Source(Protocol):
  """Makes candidates: adversarial copies of a batch.

  Any function of this form is one; `ddi_jax.sources` holds some.

  Args:
    key: consumed.
    logits_fn: inputs `[B, ...]` -> logits `[B, C]`.
    inputs: `[B, ...]`, floating point.
    labels: integers `[B]` in [0, C).

  Returns:
    Candidates `[K, B, ...]`, of the inputs' dtype; the K of a source is its own affair.
  """

  def __call__(
    self, key: jax.Array, logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array
  ) -> jax.Array: ...


def combine(*sources: Source) -> Source:
  """The candidates of several sources, one after the other.

  Args:
    *sources: at least one; a source's key does not depend on how many follow it.

  Returns:
    A source of K_1 + K_2 + ... candidates.

  Raises:
    ValueError: without sources; when it runs, for candidates that are not
      `[K, B, ...]` or of another dtype than the inputs.
  """
  if not sources:
    raise ValueError("combine needs a source, got none.")

  def source(key, logits_fn, inputs, labels):
    parts = []
    for index, part in enumerate(sources):
      found = part(jax.random.fold_in(key, index), logits_fn, inputs, labels)
      if found.shape[1:] != inputs.shape or found.dtype != inputs.dtype:
        raise ValueError(
          f"source {index} must return candidates [K, *{inputs.shape}] of "
          f"{inputs.dtype}, got {found.shape} of {found.dtype}."
        )
      parts.append(found)
    return jnp.concatenate(parts)

  return source


def pgd_from(
  starts: StartsFn,
  threat_model: ThreatModel,
  count: int,
  loss: Callable[[jax.Array, jax.Array], jax.Array],
  settings: Mapping[str, Any],
  *,
  loop: str,
  at_a_time: int | None,
  pgd_loop: str,
) -> Source:
  """PGD from each of several starts.

  Args:
    starts: (key, logits_fn, inputs, labels, count) -> points `[count, B, ...]`.
    threat_model: see `ddi_jax.pgd`.
    count: K >= 1.
    loss: (logits, labels) -> losses `[B]`, to be increased.
    settings: of `ddi_jax.pgd`: steps, step_size and so on.
    loop: arrangement of the K runs, "unroll", "loop", "vmap" or "auto".
    at_a_time: see `ddi_jax.restart_candidates`.
    pgd_loop: `loop` of `ddi_jax.pgd`, over its steps.
  """
  check_count("count", count)
  loops.check_form("loop", loop, ("auto", "unroll", "loop", "vmap"))
  # Checked now, not when it runs.
  pgd(threat_model, random_start=True, loop=pgd_loop, **settings)

  def source(key, logits_fn, inputs, labels):
    def run(point):
      attack = pgd(
        threat_model,
        random_start=lambda key, inputs: point,
        loop=pgd_loop,
        **settings,
      )
      return attack(key, lambda x: loss(logits_fn(x), labels), inputs)

    points = starts(key, logits_fn, inputs, labels, count)
    return loops.map_resolved(run, points, loop, at_a_time)

  return source


def check_count(name: str, value: int, least: int = 1) -> None:
  """Raises ValueError unless an integer is large enough."""
  if not isinstance(value, int) or isinstance(value, bool) or value < least:
    raise ValueError(f"{name} must be an integer >= {least}, got {value!r}.")
