"""The step of `minimize_max` as an optax transformation, for a custom loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import optax

from ddi_jax.checks import check_non_negative_int, check_positive_int
from ddi_jax.gradients.gram import check_gradients
from ddi_jax.minimax.metric import Metric, add_pair, empty_metric
from ddi_jax.minimax.search import find_step, linear_model
from ddi_jax.numerics.precision import matmul

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int

LossesFn = Callable[[Any], jax.Array]
_RECENT = 6  # A step must end below the greatest of this many values, newest included.


class MinimaxState(NamedTuple):
  """The state of `minimax_lbfgs` after an update; D is the number of parameters.

  Attributes:
    metric: the metric of the observed curvature.
    position: `[D]`, the parameters of the last update.
    step: `[D]`, the last update; zeros if no step lowered the greatest loss.
    lagrangian: `[D]`, the weighted sum of the gradients at `position`.
    metric_step: `[D]`, the step times the inverse of the metric.
    weights: `[K]`, the multipliers of the losses.
    losses: `[K]`, after the step, as `losses_fn` gave them.
    recent: the greatest losses at the last positions, the newest last; -inf before the
      start.
    gap: what could be gained at `position` according to the model, see
      `ddi_jax.MinimaxSolution`.
    found: whether a step was found.
    evaluations: number of evaluations of `losses_fn` in all updates.
    updates: number of updates.
  """

  metric: Metric
  position: Float[Array, " D"]
  step: Float[Array, " D"]
  lagrangian: Float[Array, " D"]
  metric_step: Float[Array, " D"]
  weights: Float[Array, " K"]
  losses: Float[Array, " K"]
  recent: Float[Array, " M"]
  gap: Float[Array, ""]
  found: Bool[Array, ""]
  evaluations: Int[Array, ""]
  updates: Int[Array, ""]


def minimax_lbfgs(
  num_losses: int, *, memory: int = 30, max_trials: int = 30
) -> optax.GradientTransformationExtraArgs:
  """Make the step of `ddi_jax.minimize_max` a transformation, like `optax.lbfgs`.

  The updates are to be added to the parameters, and include the step's length.  The
  greatest loss may rise for a few steps, but every step ends below the greatest of its
  last six values.
  Later transformations of a chain may scale the updates: the metric learns from the
  step that was taken.  After a projection or a mask a step need not descend any more,
  as after any quasi-Newton step.

  Args:
    num_losses: K >= 1.
    memory: number of pairs in the metric, >= 0.
    max_trials: greatest number of times that one step computes the losses before it
      gives up, >= 1.

  Returns:
    A transformation.  `update(gradients, state, params, losses=, losses_fn=)` takes the
    K gradients, leaves `[K, *param]`; the losses `[K]` at the parameters; and the
    function params -> losses `[K]`, for the search of a step.

  Raises:
    ValueError: for an argument outside its range; from `update`, for gradients or
      losses of another K, or for a missing argument.

  Example:
    >>> import jax, jax.numpy as jnp, optax, ddi_jax
    >>> def losses_fn(x):  # The greatest is least, 1, at x = 0.
    ...   return jnp.array([1 + x[0], 1 - x[0]]) + x[1] ** 2
    >>> optimizer = ddi_jax.minimax_lbfgs(num_losses=2)
    >>> x = jnp.array([1.0, 2.0])
    >>> state = optimizer.init(x)
    >>> for _ in range(10):
    ...   gradients = jax.jacrev(losses_fn)(x)
    ...   updates, state = optimizer.update(
    ...     gradients, state, x, losses=losses_fn(x), losses_fn=losses_fn)
    ...   x = optax.apply_updates(x, updates)
    >>> print(f"{losses_fn(x).max():.4f}")
    1.0000
  """
  check_positive_int("num_losses", num_losses)
  check_positive_int("max_trials", max_trials)
  check_non_negative_int("memory", memory)

  def init(params: chex.ArrayTree) -> MinimaxState:
    position, _ = ravel_pytree(params)
    zeros, zero = jnp.zeros_like(position), jnp.zeros((), position.dtype)
    return MinimaxState(
      metric=empty_metric(memory, zero, position.size),
      position=position,
      step=zeros,
      lagrangian=zeros,
      metric_step=zeros,
      weights=jnp.full(num_losses, 1 / num_losses, position.dtype),
      losses=jnp.zeros(num_losses, position.dtype),
      recent=jnp.full(_RECENT, -jnp.inf, position.dtype),
      gap=zero + jnp.inf,
      found=jnp.ones((), bool),
      evaluations=jnp.zeros((), int),
      updates=jnp.zeros((), int),
    )

  def update(
    updates: Any,
    state: MinimaxState,
    params: Any = None,
    *,
    losses: Any = None,
    losses_fn: LossesFn | None = None,
    **extra_args: Any,
  ) -> tuple[chex.ArrayTree, MinimaxState]:
    del extra_args
    given = {"params": params, "losses": losses, "losses_fn": losses_fn}
    for name, value in given.items():
      if value is None:
        raise ValueError(
          f"minimax_lbfgs needs {name}, got None: update(gradients, state, params, "
          "losses=losses, losses_fn=losses_fn)."
        )
    assert losses_fn is not None  # For the type checker.
    _check_size(num_losses, updates, losses)
    position, unravel = ravel_pytree(params)
    gradients = jax.vmap(lambda gradient: ravel_pytree(gradient)[0])(updates)
    losses = jnp.asarray(losses, position.dtype)
    metric = _learned(state, memory, position, losses, gradients)
    model = linear_model(losses, gradients, metric)
    recent = jnp.append(state.recent[1:], jnp.max(losses))
    result = find_step(
      model,
      lambda step: losses_fn(unravel(position + step)).astype(position.dtype),
      jnp.max(recent),
      max_trials=max_trials,
    )
    step = jnp.where(result.found, result.proposal.step, 0)
    new_state = MinimaxState(
      metric=metric,
      position=position,
      step=step,
      # With the weights of the unshrunk step: those of a shrunk one lean to the
      # greatest loss, and would hide the curvature of the others.
      lagrangian=matmul(result.first.weights, gradients),
      weights=result.first.weights,
      metric_step=-result.factor * matmul(result.proposal.weights, gradients),
      losses=jnp.where(result.found, result.losses, losses),
      recent=recent,
      gap=result.first.gap,
      found=result.found,
      evaluations=state.evaluations + result.trials,
      updates=state.updates + 1,
    )
    return unravel(step), new_state

  return optax.GradientTransformationExtraArgs(init, update)


def _check_size(num_losses: int, gradients: Any, losses: Any) -> None:
  size = check_gradients(gradients)
  if size != num_losses:
    raise ValueError(f"gradients must be those of {num_losses} losses, got {size}.")
  if jnp.shape(losses) != (num_losses,):
    raise ValueError(
      f"losses must have shape [K] = ({num_losses},), got {jnp.shape(losses)}."
    )


def _learned(
  state: MinimaxState,
  memory: int,
  position: jax.Array,
  losses: jax.Array,
  gradients: jax.Array,
) -> Metric:
  """The metric after the last step; a new one at first or if no step was found."""
  taken = position - state.position
  change = matmul(state.weights, gradients) - state.lagrangian
  # Whether the chain only scaled the step.  For any other step, the metric counts as
  # `scale` times identity.
  square = matmul(state.step, state.step)
  factor = matmul(taken, state.step) / jnp.where(square > 0, square, 1)
  difference = jnp.linalg.norm(taken - factor * state.step)
  is_scaled = difference <= 1e-3 * jnp.linalg.norm(taken)
  scale = jnp.where(state.metric.scale > 0, state.metric.scale, 1)
  metric_step = jnp.where(is_scaled, factor * state.metric_step, taken / scale)
  metric = add_pair(state.metric, taken, change, metric_step)
  empty = empty_metric(memory, _first_scale(position, losses, gradients), position.size)
  is_new = (state.updates == 0) | ~state.found
  return jax.tree.map(lambda new, old: jnp.where(is_new, new, old), empty, metric)


def _first_scale(
  position: jax.Array, losses: jax.Array, gradients: jax.Array
) -> jax.Array:
  """The metric's scale for which the first step is as long as the parameters, or 1."""
  length = jnp.linalg.norm(gradients[jnp.argmax(losses)])
  aim = jnp.where(jnp.any(position != 0), jnp.linalg.norm(position), 1)
  return aim / jnp.where(length > 0, length, 1)
