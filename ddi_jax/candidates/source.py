"""The interface of a source of candidates, and a source made of several others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp

from ddi_jax.attacks.classifier import LogitsFn
from ddi_jax.checks import check_array, check_key

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

LossOfLogits = Callable[[jax.Array, jax.Array], jax.Array]


class Source(Protocol):
  """A function that makes candidates: adversarial copies of a batch.

  Any function of this form is a source; `ddi_jax.candidates` holds several.

  Args:
    key: a key; consumed.
    logits_fn: inputs `[B, ...]` -> logits `[B, C]`.
    inputs: `[B, ...]`, floating point.
    labels: integers `[B]` in [0, C).

  Returns:
    Candidates `[K, B, ...]`, of the inputs' dtype; each source chooses its own K.
  """

  def __call__(
    self,
    key: jax.Array,
    logits_fn: LogitsFn,
    inputs: Float[Array, " B *example"],
    labels: Int[Array, " B"],
  ) -> Float[Array, "K B *example"]: ...


def combine(*sources: Source) -> Source:
  """The candidates of several sources, one after the other.

  Args:
    *sources: at least one source; a source's key does not depend on how many follow it.

  Returns:
    A source of K_1 + K_2 + ... candidates.

  Raises:
    ValueError: if there are no sources; when the combined source runs, for candidates
      that are not `[K, B, ...]` or have another dtype than the inputs.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from ddi_jax import candidates
    >>> def clean(key, logits_fn, inputs, labels):
    ...   return inputs[None]
    >>> def grey(key, logits_fn, inputs, labels):
    ...   return jnp.full_like(inputs, 0.5)[None]
    >>> inputs, labels = jnp.ones((4, 3)), jnp.zeros(4, int)
    >>> both = candidates.combine(clean, grey)
    >>> both(jax.random.key(0), lambda x: x, inputs, labels).shape
    (2, 4, 3)
  """
  if not sources:
    raise ValueError("combine needs a source, got none.")
  for index, part in enumerate(sources):
    if not callable(part):
      raise ValueError(
        "combine takes sources as arguments, combine(first, second), got "
        f"{type(part).__name__} as number {index}."
      )

  def source(
    key: jax.Array, logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array
  ) -> jax.Array:
    check_key(key)
    check_array("inputs", inputs)
    parts = []
    for index, part in enumerate(sources):
      points = part(jax.random.fold_in(key, index), logits_fn, inputs, labels)
      check_array(f"the candidates of source {index}", points)
      if points.shape[1:] != inputs.shape or points.dtype != inputs.dtype:
        raise ValueError(
          f"source {index} must return candidates [K, *{inputs.shape}] of "
          f"{inputs.dtype}, got {points.shape} of {points.dtype}."
        )
      parts.append(points)
    return jnp.concatenate(parts)

  return source
