"""The parameter gradient of the batch-mean loss at each of K candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddi_jax.attacks import Attack
from ddi_jax.candidates import restart_candidates
from ddi_jax.checks import (
  ARRAYS,
  check_array,
  check_choice,
  check_key,
  check_positive_int,
)
from ddi_jax.numerics import loops
from ddi_jax.numerics.precision import at_least_float32
from ddi_jax.tables import printed_as_table

if TYPE_CHECKING:
  from jaxtyping import Array, Float, PyTree

LossFn = Callable[..., Any]
# How the K candidates share the random numbers of a loss.
LOSS_KEYS = ("per_candidate", "shared")


@printed_as_table
class RestartInfo(NamedTuple):
  """The K candidates, with the losses and auxiliary outputs at them.

  Attributes:
    candidates: the adversarial inputs, `[K, B, ...]`.
    losses: `loss_fn` on each candidate, `[K, B]`.
    aux: the auxiliary output of `loss_fn`, leaves `[K, ...]`; None without `has_aux`.
  """

  candidates: Float[Array, "K B ..."]
  losses: Float[Array, "K B"]
  aux: Any


def candidate_gradients(
  loss_fn: LossFn,
  params: PyTree,
  candidates: Float[Array, "K B ..."],
  labels: Any,
  *,
  has_aux: bool = False,
  at_a_time: int | None = None,
  keys: jax.Array | None = None,
) -> tuple[PyTree[Float[Array, "K ..."]], RestartInfo]:
  """Compute the parameter gradient of the batch-mean loss at each of K candidates.

  Parameters of lower precision are cast to float32 first, so that the differences
  between the K gradients survive.  If `loss_fn` is to compute in bfloat16, it must cast
  inside.

  Args:
    loss_fn: (params, inputs `[B, ...]`, labels) -> losses `[B]`, or (losses, aux).
    params: pytree of floating-point arrays.
    candidates: `[K, B, ...]`, K >= 1.
    labels: passed to `loss_fn`.
    has_aux: whether `loss_fn` returns (losses, aux), as in `jax.grad`.
    at_a_time: compute at most this many candidates at once, see
      `ddi_jax.restart_candidates`.
    keys: for a random loss (Dropout, for example), a key for each candidate, `[K]`;
      `loss_fn` is then a function of (params, inputs, labels, key).

  Returns:
    (gradients with leaves `[K, *param]` in float32 at least, `RestartInfo`).

  Raises:
    ValueError: if the losses do not have shape `[B]`, a parameter is not floating
      point, or the number of keys is not K.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> loss_fn = lambda params, x, y: (x @ params - y) ** 2
    >>> candidates = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])  # K = 2, B = 1
    >>> gradients, info = ddi_jax.candidate_gradients(
    ...     loss_fn, jnp.array([2.0, 1.0]), candidates, jnp.zeros(1))
    >>> gradients
    Array([[4., 0.],
           [0., 2.]], dtype=float32)
  """
  check_positive_int("at_a_time", at_a_time, optional=True)
  check_candidates(candidates, labels)
  params = widened(params)

  def gradient(point: Any) -> tuple[chex.ArrayTree, tuple[jax.Array, Any]]:
    return mean_gradient(loss_fn, has_aux, params, point, labels)

  points = points_of(candidates, keys)
  gradients, (losses, aux) = loops.map_leading(gradient, points, at_a_time)
  return gradients, RestartInfo(candidates, losses, aux)


def restart_gradients(
  loss_fn: LossFn,
  attack: Attack,
  num_restarts: int,
  *,
  has_aux: bool = False,
  attack_loss_fn: LossFn | None = None,
  restarts_at_a_time: int | None = None,
  loss_keys: str | None = None,
) -> Callable[..., tuple[chex.ArrayTree, RestartInfo]]:
  """Attack the batch from K restarts and take the parameter gradient at each.

  The gradients are the input of `danskin_direction` in algorithm 1 of Latorre et al.
  (2023).

  Args:
    loss_fn: (params, inputs `[B, ...]`, labels `[B]`) -> losses `[B]`, or
      (losses, aux) with `has_aux`.
    attack: see `ddi_jax.attacks`.
    num_restarts: K >= 1.
    has_aux: whether `loss_fn` returns (losses, aux).  `aux` may hold new model state,
      BatchNorm statistics for example; the attack ignores it.
    attack_loss_fn: the loss that the attack increases, if it is not `loss_fn`: (params,
      inputs, labels) -> losses `[B]`.  Use it to choose the model's mode during the
      attack.
    restarts_at_a_time: attack, and take gradients, for at most this many restarts at
      once; see `ddi_jax.restart_candidates`.
    loss_keys: for a random loss (Dropout, for example); `loss_fn` is then a function of
      (params, inputs, labels, key).  "per_candidate" draws separately at each
      candidate, "shared" makes one draw for all.  An attack on `loss_fn` itself sees a
      single draw; with "shared" it is the draw of the gradients.  None: there is no
      key.

  Returns:
    fn(params, inputs, labels, key) -> (gradients of the batch-mean loss, leaves
    `[K, *param]`; `RestartInfo`).  The key is consumed.

  Raises:
    ValueError: if `num_restarts` or `restarts_at_a_time` is not an integer >= 1, or
      `loss_keys` is unknown.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> loss_fn = lambda params, x, y: (x @ params["w"] - y) ** 2
    >>> attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=2, step_size=0.1)
    >>> gradients_fn = ddi_jax.restart_gradients(loss_fn, attack, num_restarts=4)
    >>> params = {"w": jnp.ones(3)}
    >>> gradients, info = gradients_fn(
    ...     params, jnp.full((2, 3), 0.5), jnp.zeros(2), jax.random.key(0))
    >>> gradients["w"].shape, info.losses.shape
    ((4, 3), (4, 2))
  """
  check_positive_int("num_restarts", num_restarts)
  check_positive_int("restarts_at_a_time", restarts_at_a_time, optional=True)
  if loss_keys is not None:
    check_choice("loss_keys", loss_keys, LOSS_KEYS)

  def gradients_fn(
    params: chex.ArrayTree, inputs: jax.Array, labels: jax.Array, key: jax.Array
  ) -> tuple[chex.ArrayTree, RestartInfo]:
    keys = None
    draw: list[jax.Array] = []
    if loss_keys is not None:
      check_key(key)
      key, loss_key = jax.random.split(key)
      draw = [loss_key]
      keys = jnp.broadcast_to(loss_key, num_restarts)
      if loss_keys == "per_candidate":
        keys = jax.random.split(loss_key, num_restarts)

    def objective(points: jax.Array, point_labels: jax.Array) -> jax.Array:
      if attack_loss_fn is not None:
        return attack_loss_fn(params, points, point_labels)
      return checked_losses(loss_fn, has_aux, params, points, point_labels, *draw)[0]

    candidates = restart_candidates(
      attack,
      objective,
      inputs,
      labels,
      key,
      num_restarts,
      at_a_time=restarts_at_a_time,
    )
    return candidate_gradients(
      loss_fn,
      params,
      candidates,
      labels,
      has_aux=has_aux,
      at_a_time=restarts_at_a_time,
      keys=keys,
    )

  return gradients_fn


def check_candidates(candidates: Any, labels: Any) -> None:
  """Raise ValueError for candidates that are not `[K, B, ...]`, K >= 1.

  If the labels are classes, integers `[B]`, they determine B.
  """
  check_array("candidates", candidates)
  is_array = isinstance(labels, ARRAYS) and labels.ndim == 1
  are_classes = is_array and jnp.issubdtype(labels.dtype, jnp.integer)
  batch = len(labels) if are_classes else "B"
  is_batch = candidates.ndim >= 2 and batch in ("B", candidates.shape[1])
  if not is_batch or not len(candidates):
    raise ValueError(
      f"candidates must be [K, {batch}, ...], K >= 1 copies of the batch, got shape "
      f"{candidates.shape}.  For one copy of the inputs pass inputs[None]."
    )


def points_of(candidates: jax.Array, keys: jax.Array | None) -> Any:
  """The arguments of K losses: leaves `[K, ...]` of (candidates,) or with keys.

  Raises:
    ValueError: if the number of keys is not K.
  """
  if keys is None:
    return (candidates,)
  check_array("keys", keys)
  if keys.shape != candidates.shape[:1]:
    raise ValueError(
      f"keys must have shape {candidates.shape[:1]}, one for each candidate; got "
      f"{keys.shape}."
    )
  return candidates, keys


def mean_gradient(
  loss_fn: LossFn,
  has_aux: bool,
  params: chex.ArrayTree,
  point: tuple[jax.Array, ...],
  labels: Any,
) -> tuple[chex.ArrayTree, tuple[jax.Array, Any]]:
  """(Gradient of the mean loss, (losses `[B]`, aux)) at (inputs `[B, ...]`, [key])."""
  inputs, *key = point

  def mean_loss(params: chex.ArrayTree) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    losses, aux = checked_losses(loss_fn, has_aux, params, inputs, labels, *key)
    return jnp.mean(at_least_float32(losses)), (losses, aux)

  return jax.grad(mean_loss, has_aux=True)(params)


def checked_losses(
  loss_fn: LossFn,
  has_aux: bool,
  params: chex.ArrayTree,
  inputs: jax.Array,
  labels: Any,
  *key: jax.Array,
) -> tuple[jax.Array, Any]:
  """(Losses, aux) of `loss_fn`, after a check that the losses have shape `[B]`."""
  result = loss_fn(params, inputs, labels, *key)
  if has_aux and not (isinstance(result, tuple) and len(result) == 2):
    several = isinstance(result, tuple | list)
    got = f"{type(result).__name__} of {len(result)}" if several else "one value"
    raise ValueError(
      f"with has_aux=True, loss_fn must return a tuple (losses, aux), got {got}."
    )
  if not has_aux and isinstance(result, tuple):
    raise ValueError(
      f"loss_fn must return losses [B], got a tuple of {len(result)}.  Pass "
      "has_aux=True where it returns (losses, aux)."
    )
  losses, aux = result if has_aux else (result, None)
  check_array("the losses of loss_fn", losses)
  is_floating = jnp.issubdtype(losses.dtype, jnp.floating)
  if losses.shape != inputs.shape[:1] or not is_floating:
    raise ValueError(
      f"loss_fn must return losses of shape {inputs.shape[:1]}, one per example, "
      f"floating point; got {losses.dtype} of shape {losses.shape}."
    )
  return losses, aux


def widened(params: chex.ArrayTree) -> chex.ArrayTree:
  """The parameters in float32 at least.

  Raises:
    ValueError: if one is not floating point.
  """

  def widen(path: Any, param: Any) -> jax.Array:
    if not jnp.issubdtype(jnp.result_type(param), jnp.floating):
      raise ValueError(
        f"params{jax.tree_util.keystr(path)} must be floating point, got "
        f"{jnp.result_type(param)}."
      )
    return at_least_float32(jnp.asarray(param))

  return jax.tree_util.tree_map_with_path(widen, params)
