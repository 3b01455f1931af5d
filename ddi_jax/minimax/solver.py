"""Minimisation of the greatest of K smooth losses."""

from __future__ import annotations

from collections.abc import Callable
import enum
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp

from ddi_jax.checks import (
  check_non_negative_int,
  check_positive,
  check_positive_int,
)
from ddi_jax.minimax.transformation import (
  LossesFn,
  MinimaxState,
  minimax_lbfgs,
)
from ddi_jax.tables import Table, printed_as_table, table_of_fields

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int, PyTree


# Give up after this many steps in a row that improve the best value by no more than the
# rounding of the total gain.
_MOST_STALE = 30


class MinimaxStatus(enum.IntEnum):
  """Why `minimize_max` stopped."""

  RUNNING = 0
  CONVERGED = 1  # The gap and the gain of a step are within the tolerance.
  MAX_STEPS = 2
  NO_DESCENT = 3  # No step that lowers the greatest loss was found: rounding or a kink.
  NOT_FINITE = 4  # A loss or a gradient at the start is not finite.


@printed_as_table
class MinimaxSolution(NamedTuple):
  """The result of `minimize_max`.

  Attributes:
    params: the parameters with the least value found.
    value: the greatest loss at `params`, as `losses_fn` gives it.
    losses: `[K]`, at `params`.
    weights: `[K]`, on the simplex: the multipliers of the losses.  At a minimum the
      gradients weighted by them sum to 0, and only greatest losses have weight.
    gap: what can still be gained according to the model of the last step, in units of
      the loss: the greatest loss minus the least value over d of max_k (loss_k +
      <gradient_k, d>) + |d|^2 / 2, where the length |d| is in the metric of the
      observed curvature.  It is 0 at a stationary point and nowhere else.  For convex
      losses, no point within length r has a value below value - gap - r sqrt(2 gap).
    steps: number of steps; each takes the gradients of all losses once.
    evaluations: number of times the losses were computed.
    status: a `MinimaxStatus`.
  """

  params: PyTree
  value: Float[Array, ""]
  losses: Float[Array, " K"]
  weights: Float[Array, " K"]
  gap: Float[Array, ""]
  steps: Int[Array, ""]
  evaluations: Int[Array, ""]
  status: Int[Array, ""]

  @property
  def converged(self) -> Bool[Array, ""]:
    """Whether the gap is within the tolerance."""
    return self.status == MinimaxStatus.CONVERGED

  def table(self) -> Table:
    """The printed table: rows of cells, and notes."""
    (*rows, (_, status)), notes = table_of_fields(self)
    names = {str(status.value): status.name for status in MinimaxStatus}
    return [*rows, ("status", names.get(status, status))], notes


class MinimaxProgress(NamedTuple):
  """The argument of the callback of `minimize_max` after every step.

  Attributes:
    steps: number of steps so far.
    evaluations: number of times the losses were computed so far.
    value: the greatest loss, after the step.
    gap: the gap before the step, see `MinimaxSolution`.
  """

  steps: Int[Array, ""]
  evaluations: Int[Array, ""]
  value: Float[Array, ""]
  gap: Float[Array, ""]


class _Best(NamedTuple):
  position: jax.Array  # [D]
  losses: jax.Array  # [K], at `position`
  weights: jax.Array  # [K], of the step that led there
  gap: jax.Array  # before that step


class _State(NamedTuple):
  position: jax.Array  # [D]
  losses: jax.Array  # [K]
  best: _Best
  stale: jax.Array  # Number of steps in a row that have not improved `best`.
  optimizer: MinimaxState
  close: jax.Array  # Whether the last gap and the last gain were within the tolerance.
  status: jax.Array


def minimize_max(
  losses_fn: LossesFn,
  params: PyTree,
  *,
  max_steps: int = 500,
  tolerance: float | None = None,
  memory: int = 30,
  max_trials: int = 30,
  callback: Callable[[MinimaxProgress], None] | None = None,
) -> MinimaxSolution:
  """Minimise the greatest of K smooth losses, max_k losses_fn(params)[k].

  Every step minimises the greatest of the linearised losses plus half the squared
  length of the step, in a metric of the curvature (limited-memory BFGS of the losses
  weighted by their multipliers).  The dual of that problem has K unknowns: it is the
  minimum-norm problem of `ddi_jax.danskin_direction`, in that metric (Pshenichnyi and
  Danilin, 1978; Han, 1981; Zhou and Tits, 1993).

  The function is pure and works under `jax.jit` and `jax.vmap`.  It is compiled once
  for every `losses_fn` and `callback` (compared by identity), `memory`, `max_trials`
  and shape of `params`.  The scale of the losses does not matter.  The value may rise
  for a few steps, but never above that of the start; the best point is returned.

  Args:
    losses_fn: params -> losses `[K]`, K >= 1, differentiable; a pure function.  Losses
      of random batches are not suitable: differences of gradients from two batches say
      nothing about the curvature.
    params: the start: a pytree of floating-point arrays, float32 or float64.
    max_steps: greatest number of steps, >= 1.
    tolerance: the gap that counts as converged, as a fraction of the value (or, if the
      value is near 0, of the total gain so far).  Default 1e-5 in float32, 1e-10 in
      float64.
    memory: number of pairs in the metric, >= 0.  0: the ordinary metric, with an
      adaptive length.
    max_trials: greatest number of times that one step computes the losses before it
      gives up, >= 1.
    callback: a function that is called on the host with a `MinimaxProgress` after every
      step, to watch long runs; it cannot stop them.

  Returns:
    A `MinimaxSolution`.

  Raises:
    ValueError: for an argument outside its range, parameters that are not floating
      point, or losses that are not a floating-point vector.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> def distances(point):  # to three corners, squared
    ...   corners = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    ...   return jnp.sum((point - corners) ** 2, axis=1)
    >>> solution = ddi_jax.minimize_max(distances, jnp.array([3.0, -1.0]))
    >>> solution.params.round(3), solution.weights.round(3)  # the circle around them
    (Array([1., 1.], dtype=float32), Array([0. , 0.5, 0.5], dtype=float32))
  """
  check_positive_int("max_steps", max_steps)
  check_positive_int("max_trials", max_trials)
  check_non_negative_int("memory", memory)
  if tolerance is not None:
    check_positive("tolerance", tolerance)
  _check_params(params)
  _check_losses(jax.eval_shape(losses_fn, params))
  if tolerance is None:
    is_single = jnp.finfo(jnp.result_type(*jax.tree.leaves(params))).bits == 32
    tolerance = 1e-5 if is_single else 1e-10
  return _minimize(
    losses_fn,
    params,
    tolerance,
    int(max_steps),
    memory=memory,
    max_trials=max_trials,
    callback=callback,
  )


@functools.partial(
  jax.jit,
  static_argnames=("losses_fn", "memory", "max_trials", "callback"),
)
def _minimize(
  losses_fn: LossesFn,
  params: PyTree,
  tolerance: jax.Array | float,
  max_steps: jax.Array | int,
  *,
  memory: int,
  max_trials: int,
  callback: Callable[[MinimaxProgress], None] | None,
) -> MinimaxSolution:
  start, unravel = ravel_pytree(params)
  eps = jnp.finfo(start.dtype).eps

  def losses_of(position: jax.Array) -> jax.Array:
    return losses_fn(unravel(position))

  losses = losses_of(start)
  num_losses = len(losses)
  jacobian = jax.jacrev if num_losses <= start.size else jax.jacfwd
  gradients_of = jacobian(losses_of)
  optimizer = minimax_lbfgs(num_losses, memory=memory, max_trials=max_trials)
  first_value = jnp.max(losses)

  def take_step(state: _State) -> _State:
    value = jnp.max(state.losses)
    gradients = gradients_of(state.position)
    step, known = optimizer.update(
      gradients,
      state.optimizer,
      state.position,
      losses=state.losses,
      losses_fn=losses_of,
    )
    allowed = tolerance * jnp.maximum(jnp.abs(value), eps * (first_value - value))
    gained = value - jnp.max(known.losses)
    improvement = jnp.max(state.best.losses) - jnp.max(known.losses)
    lost = improvement <= 16 * eps * (first_value - value)
    stale = jnp.where(lost, state.stale + 1, 0)
    stuck = (~known.found & known.metric.is_empty) | (stale >= _MOST_STALE)
    undefined = (known.updates == 1) & ~jnp.all(jnp.isfinite(gradients))
    status = jnp.where(
      known.updates >= max_steps, MinimaxStatus.MAX_STEPS, state.status
    )
    status = jnp.where(stuck, MinimaxStatus.NO_DESCENT, status)
    status = jnp.where(undefined, MinimaxStatus.NOT_FINITE, status)
    # A gap within the tolerance is trusted if the next step confirms it, in a metric
    # that has learned more, or if no step was found.
    close = (known.gap <= allowed) & (jnp.abs(gained) <= allowed)
    done = close & (state.close | ~known.found)
    status = jnp.where(done, MinimaxStatus.CONVERGED, status)
    if callback is not None:
      evaluations = known.evaluations + 1
      progress = MinimaxProgress(
        known.updates, evaluations, jnp.max(known.losses), known.gap
      )
      jax.debug.callback(callback, progress)
    position = state.position + step
    reached = _Best(position, known.losses, known.weights, known.gap)
    best = jax.tree.map(
      lambda new, old: jnp.where(improvement >= 0, new, old), reached, state.best
    )
    return _State(position, known.losses, best, stale, known, close, status)

  finite = jnp.all(jnp.isfinite(losses)) & jnp.all(jnp.isfinite(start))
  losses = losses.astype(start.dtype)
  known = optimizer.init(start)
  state = _State(
    position=start,
    losses=losses,
    best=_Best(start, losses, known.weights, known.gap),
    stale=jnp.zeros((), int),
    optimizer=known,
    close=jnp.zeros((), bool),
    status=jnp.where(finite, MinimaxStatus.RUNNING, MinimaxStatus.NOT_FINITE),
  )
  state = jax.lax.while_loop(
    lambda state: state.status == MinimaxStatus.RUNNING, take_step, state
  )
  converged = state.status == MinimaxStatus.CONVERGED
  return MinimaxSolution(
    params=unravel(state.best.position),
    value=jnp.max(state.best.losses),
    losses=state.best.losses,
    weights=jnp.where(converged, state.optimizer.weights, state.best.weights),
    gap=jnp.where(converged, state.optimizer.gap, state.best.gap),
    steps=state.optimizer.updates,
    evaluations=state.optimizer.evaluations + 1,
    status=state.status,
  )


def _check_params(params: Any) -> None:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  for path, leaf in leaves:
    dtype = jnp.result_type(leaf)
    if dtype not in (jnp.float32, jnp.float64):
      name = "params" + jax.tree_util.keystr(path)
      raise ValueError(f"{name} must be float32 or float64, got {dtype}.")
  if not sum(jnp.size(leaf) for _, leaf in leaves):
    raise ValueError("params must hold at least one number, got none.")


def _check_losses(losses: Any) -> None:
  if not isinstance(losses, jax.ShapeDtypeStruct):
    raise ValueError(
      f"losses_fn must return losses [K], one array, got {type(losses).__name__}."
    )
  if losses.ndim != 1 or not losses.size:
    raise ValueError(
      f"losses_fn must return losses [K] with K >= 1, got shape {losses.shape}."
    )
  if not jnp.issubdtype(losses.dtype, jnp.floating):
    raise ValueError(
      f"losses_fn must return floating-point losses, got {losses.dtype}."
    )
