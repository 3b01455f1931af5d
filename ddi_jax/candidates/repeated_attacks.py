"""Candidates from restarts: independent runs of one attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ddi_jax import losses
from ddi_jax.attacks import Attack
from ddi_jax.attacks.classifier import LogitsFn
from ddi_jax.attacks.projected_gradient import check_attack
from ddi_jax.candidates.source import LossOfLogits, Source
from ddi_jax.checks import check_array, check_key, check_positive_int
from ddi_jax.numerics import loops
from ddi_jax.numerics.finite import finite_or

if TYPE_CHECKING:
  from jaxtyping import Array, Float


def restart_candidates(
  attack: Attack,
  objective: Callable[[jax.Array, Any], jax.Array],
  inputs: Float[Array, " B *example"],
  labels: Any,
  key: jax.Array,
  num_restarts: int,
  *,
  at_a_time: int | None = None,
) -> Float[Array, "K B *example"]:
  """Run an attack K times on the whole batch, each time with a different key.

  Args:
    attack: see `ddi_jax.attacks`.
    objective: (inputs `[B, ...]`, labels `[B, ...]`) -> losses `[B]`.
    inputs: `[B, ...]`.
    labels: a pytree with leaves `[B, ...]`, passed to the objective.
    key: one key, which is split into one key per restart, or K keys, `[K]`; consumed.
    num_restarts: K >= 1.
    at_a_time: run at most this many at once (the largest such divisor of K), which
      bounds the memory.  None runs all at once if the network has no convolutions, and
      otherwise one at a time, except on a CPU.  There it runs two at once, which uses
      the cores better, or all at once if some convolutions are not those of
      `ddi_jax.models.conv_general_dilated`.

  Returns:
    Candidates `[K, B, ...]`, each a joint perturbation of the batch.

  Raises:
    ValueError: if `num_restarts` or `at_a_time` is not an integer >= 1, the key is
      None, or the number of keys is neither one nor K.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=2, step_size=0.1)
    >>> ddi_jax.restart_candidates(
    ...     attack, lambda x, y: (x.sum(axis=1) - y) ** 2, jnp.full((4, 3), 0.5),
    ...     jnp.ones(4), jax.random.key(0), num_restarts=2).shape
    (2, 4, 3)
  """
  check_positive_int("num_restarts", num_restarts)
  check_key(key, single=False)
  check_attack(attack)
  check_array("inputs", inputs)
  check_positive_int("at_a_time", at_a_time, optional=True)
  are_keys = jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim > 0
  if are_keys and key.shape != (num_restarts,):
    raise ValueError(
      f"key must be one key or {num_restarts} of them, one per candidate, got keys of "
      f"shape {key.shape}."
    )
  keys = key if are_keys else jax.random.split(key, num_restarts)

  def attack_once(restart_key: jax.Array) -> jax.Array:
    return attack(restart_key, lambda x: objective(x, labels), inputs)

  def attack_side_by_side(keys: jax.Array) -> jax.Array:
    repeated = loops.repeated_by_vmap(lambda x: objective(x, labels), inputs)
    return jax.vmap(lambda key: attack(key, repeated, inputs))(keys)

  if num_restarts == 1:
    return attack_once(keys[0])[None]
  traced = loops.Traced(attack_once, keys[0])
  arrangement = loops.arrange(num_restarts, at_a_time, traced)

  def attack_together(keys: jax.Array) -> jax.Array:
    if arrangement.batched:
      return jax.vmap(traced)(keys)
    return attack_side_by_side(keys) if len(keys) > 1 else traced(keys[0])[None]

  return loops.map_groups(attack_together, keys, arrangement.group_size)


def worst_candidate(
  candidates: Float[Array, "K B *example"], losses: Float[Array, "K B"]
) -> Float[Array, " B *example"]:
  """Select for each example the candidate with the largest loss.

  Args:
    candidates: `[K, B, ...]`.
    losses: `[K, B]`.

  Returns:
    Inputs `[B, ...]`: the "max ensemble" of Latorre et al. (2023), section 5; MAX of
    Tramer and Boneh (2019).  A loss that is not finite is never selected, unless no
    candidate of the example has a finite loss.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> candidates = jnp.array([[[0.1], [0.2]], [[0.3], [0.4]]])
    >>> ddi_jax.worst_candidate(candidates, jnp.array([[2.0, 1.0], [1.0, 3.0]]))
    Array([[0.1],
           [0.4]], dtype=float32)
  """
  check_array("candidates", candidates)
  check_array("losses", losses)
  return chosen_candidates(candidates, worst_indices(losses))


def worst_indices(losses: jax.Array) -> jax.Array:
  """The index of each example's greatest finite loss, `[K, B]` -> `[B]`."""
  return jnp.argmax(finite_or(losses, -jnp.inf), axis=0)


def chosen_candidates(candidates: jax.Array, choice: jax.Array) -> jax.Array:
  """Select candidate choice[i] of each example i: `[K, B, ...]` -> `[B, ...]`.

  Entries of `choice` are in [0, K).
  """
  # With candidates[choice, jnp.arange(B)], XLA would send the batch to all devices.
  return jax.vmap(lambda points, index: points[index], in_axes=(1, 0))(
    candidates, choice
  )


def restarts(
  attack: Attack,
  count: int,
  *,
  loss: LossOfLogits = losses.cross_entropy,
  at_a_time: int | None = None,
) -> Source:
  """Make candidates by independent runs of an attack.

  For several threat models, make one such source for each and join them by `combine`.

  Args:
    attack: an attack, for example `ddi_jax.pgd(...)`; random, if `count` > 1.
    count: K >= 1, the number of runs.
    loss: (logits, labels) -> losses `[B]`, to be increased.
    at_a_time: see `ddi_jax.restart_candidates`.

  Returns:
    A `Source` of K candidates.

  Raises:
    ValueError: if `count` or `at_a_time` is not an integer >= 1.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> import ddi_jax
    >>> from ddi_jax import candidates
    >>> both = candidates.combine(
    ...     candidates.restarts(
    ...         ddi_jax.pgd(ddi_jax.linf(0.1), steps=2, step_size=0.1), 2),
    ...     candidates.restarts(
    ...         ddi_jax.pgd(ddi_jax.l2(0.5), steps=2, step_size=0.5), 1))
    >>> inputs, labels = jnp.full((4, 3), 0.5), jnp.zeros(4, int)
    >>> both(jax.random.key(0), lambda x: x @ jnp.eye(3), inputs, labels).shape
    (3, 4, 3)
  """
  check_positive_int("count", count)
  check_positive_int("at_a_time", at_a_time, optional=True)

  def source(
    key: jax.Array, logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array
  ) -> jax.Array:
    def objective(points: jax.Array, labels: jax.Array) -> jax.Array:
      return loss(logits_fn(points), labels)

    return restart_candidates(
      attack, objective, inputs, labels, key, count, at_a_time=at_a_time
    )

  return source
