"""Restarts of an attack: independent runs, or from corners or orthogonal starts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddi_jax import losses
from ddi_jax.attacks import Attack
from ddi_jax.restarts import restart_candidates
from ddi_jax.sources.base import Source, check_count, pgd_from
from ddi_jax.threat_models import ThreatModel

LossOfLogits = Callable[[jax.Array, jax.Array], jax.Array]
STARTS = ("corner", "orthogonal")


def restarts(
  attack: Attack,
  count: int,
  *,
  loss: LossOfLogits = losses.cross_entropy,
  loop: str = "auto",
  at_a_time: int | None = None,
) -> Source:
  """Independent runs of an attack; several threat models are several of these.

  Args:
    attack: random, if `count` > 1; `ddi_jax.pgd(...)` say.
    count: K >= 1.
    loss: (logits, labels) -> losses `[B]`, to be increased.
    loop: see `ddi_jax.restart_candidates`.
    at_a_time: likewise.

  Returns:
    A `Source` of K candidates.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import ddi_jax
    >>> from ddi_jax import sources
    >>> both = sources.combine(
    ...     sources.restarts(ddi_jax.pgd(ddi_jax.linf(0.1), steps=2, step_size=0.1), 2),
    ...     sources.restarts(ddi_jax.pgd(ddi_jax.l2(0.5), steps=2, step_size=0.5), 1))
    >>> inputs, labels = jnp.full((4, 3), 0.5), jnp.zeros(4, int)
    >>> both(jax.random.key(0), lambda x: x @ jnp.eye(3), inputs, labels).shape
    (3, 4, 3)
  """
  check_count("count", count)

  def source(key, logits_fn, inputs, labels):
    def objective(points, labels):
      return loss(logits_fn(points), labels)

    return restart_candidates(
      attack, objective, inputs, labels, key, count, loop=loop, at_a_time=at_a_time
    )

  return source


def spread_restarts(
  threat_model: ThreatModel,
  count: int,
  *,
  start: str,
  loss: LossOfLogits = losses.cross_entropy,
  loop: str = "auto",
  at_a_time: int | None = None,
  pgd_loop: str = "auto",
  **settings: Any,
) -> Source:
  """PGD from the edge of the ball.

  Args:
    threat_model: see `ddi_jax.pgd`.
    count: K >= 1.
    start: "corner": all coordinates move equally far, with random signs; or
      "orthogonal": the K starts of an example are orthogonal to each other.
    loss: (logits, labels) -> losses `[B]`, to be increased.
    loop: arrangement of the K runs.
    at_a_time: see `ddi_jax.restart_candidates`.
    pgd_loop: `loop` of `ddi_jax.pgd`, over its steps.
    **settings: steps, step_size and so on, of `ddi_jax.pgd`.

  Returns:
    A `Source` of K candidates.

  Raises:
    ValueError: for another start; when it runs, for more orthogonal starts than an
      input has coordinates.
  """
  if start not in STARTS:
    raise ValueError(f"start must be one of {', '.join(STARTS)}, got {start!r}.")
  directions = _corners if start == "corner" else _orthogonal

  def starts(key, logits_fn, inputs, labels, count):
    del logits_fn, labels
    found = directions(key, inputs.reshape(len(inputs), -1), count)

    def at_the_edge(directions):
      sizes = threat_model.size(directions)[:, None]
      return inputs + (threat_model.epsilon * directions / sizes).reshape(inputs.shape)

    return jax.vmap(at_the_edge)(found).astype(inputs.dtype)

  return pgd_from(
    starts,
    threat_model,
    count,
    loss,
    settings,
    loop=loop,
    at_a_time=at_a_time,
    pgd_loop=pgd_loop,
  )


def _corners(key, flat, count):
  return jax.random.rademacher(key, (count, *flat.shape), flat.dtype)


def _orthogonal(key, flat, count):
  size = flat.shape[1]
  if count > size:
    raise ValueError(f"count must be at most {size} orthogonal starts, got {count}.")
  noise = jax.random.normal(key, (len(flat), size, count), flat.dtype)
  return jnp.moveaxis(jnp.linalg.qr(noise)[0], -1, 0)
