"""The proximal step on the robust loss, linearised at candidates of every example."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddi_jax.candidates.repeated_attacks import chosen_candidates
from ddi_jax.checks import (
  check_array,
  check_choice,
  check_non_negative_int,
  check_number,
  check_positive,
  check_positive_int,
  is_concrete,
)
from ddi_jax.directions.min_norm import solve
from ddi_jax.gradients.gram import KeptGradients
from ddi_jax.gradients.per_candidate import (
  LossFn,
  check_candidates,
  checked_losses,
  widened,
)
from ddi_jax.numerics import loops
from ddi_jax.numerics.precision import at_least_float32
from ddi_jax.tables import printed_as_table

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int, PyTree

PER = ("example", "batch")


@printed_as_table
class ProximalInfo(NamedTuple):
  """Diagnostics of a proximal step.

  Attributes:
    weights: A, `[K, B]`; each example's weights (a column) sum to 1.  With
      `per="batch"` all columns are equal.
    losses: `loss_fn` on each candidate, `[K, B]`.
    aux: the auxiliary output of `loss_fn`, leaves `[K, ...]`; None without `has_aux`.
    predicted_decrease: the decrease that the linearised losses predict for the step -t
      z; at least t ||z||^2 - gap.  It is the decrease of the mean of the examples'
      greatest losses or, with `per="batch"`, of the greatest of the K batches' mean
      losses.
    gap: the duality gap >= 0, in units of the loss: the model's value, proximal term
      included, is above its minimum by at most the gap.
    iterations: number of vertices added.
    passes: the cost in forward passes over B examples: a gradient counts as 3, a
      Jacobian-vector product as 2.
  """

  weights: Float[Array, "K B"]
  losses: Float[Array, "K B"]
  aux: Any
  predicted_decrease: Float[Array, ""]
  gap: Float[Array, ""]
  iterations: Int[Array, ""]
  passes: Int[Array, ""]


class _Problem(NamedTuple):
  """The model of the robust loss; G is B, or 1 with one weight vector per batch."""

  losses_of: Callable[[chex.ArrayTree, jax.Array], tuple[jax.Array, Any]]
  params: chex.ArrayTree
  candidates: jax.Array  # [K, B, ...]
  valid: jax.Array | None  # [K, B] bool
  step: float | jax.Array  # t
  per_example: bool
  mixes_examples: bool
  at_a_time: int | None
  shortfall: jax.Array  # [K, G], how far losses are below the greatest of their group


class _State(NamedTuple):
  # Slot 0 is the current point, the others are past vertices; leaves [slots, *param].
  gradients: chex.ArrayTree
  weights: jax.Array  # [slots, K, G]
  used: jax.Array  # [slots] bool
  linearised: jax.Array  # [K, G], losses after the step -t z minus the worst before it
  gap: jax.Array
  decrease: jax.Array
  iterations: jax.Array


def proximal_danskin_gradient(
  loss_fn: LossFn,
  params: PyTree,
  candidates: Float[Array, "K B ..."],
  labels: Any,
  *,
  step: float | jax.Array,
  per: str = "example",
  valid: Bool[Array, "K B"] | None = None,
  iterations: int = 8,
  tolerance: float = 0.01,
  memory: int = 4,
  mixes_examples: bool = False,
  has_aux: bool = False,
  at_a_time: int | None = None,
) -> tuple[chex.ArrayTree, ProximalInfo]:
  """Compute the gradient z whose step -t z minimises a model of the robust loss.

  The model linearises every example's loss at each of its candidates, where the loss is
  l_bk and its gradient is g_bk:

    min over d of (1/B) sum_b max_k [l_bk + <g_bk, d>] + ||d||^2 / (2 t)

  Its dual is over A, a point of the simplex for each example: minimise t/2 ||z||^2 -
  (1/B) sum_bk A_bk l_bk, with z = (1/B) sum_bk A_bk g_bk; then d = -t z.  As
  t -> 0, z becomes the gradient at each example's worst candidate.  As t -> infinity,
  it becomes the minimum-norm point of the hull of the gradients of all K^B batches that
  can be formed from the candidates.  With `per="batch"`, one weight vector is shared by
  all examples, and the model is that of `ddi_jax.danskin_direction` with `bundle_step`.
  (Prox-linear and bundle methods: Lemarechal, 1975; Kiwiel, 1990.  Model-based
  stochastic optimisation: Davis and Drusvyatskiy, 2019; Asi and Duchi, 2019.)

  The direction can be differentiated (in `params`, `candidates`, `step`) if the losses
  can be differentiated twice.  The derivative holds the chosen vertices fixed, as that
  of a minimiser holds its support fixed.

  No example's own gradient is computed.  The method makes Frank-Wolfe steps, starting
  from the worst candidates.  One Jacobian-vector product of all K B losses along z
  gives every <g_bk, z>.  The next vertex takes each example's candidate of greatest
  l_bk - t <g_bk, z>, and one gradient of the batch of these candidates is the vertex'
  gradient.  Then z becomes the best combination, found exactly, of the old z, the new
  vertex and the last few vertices before it (`memory`).

  Args:
    loss_fn: (params, inputs `[B, ...]`, labels) -> losses `[B]`, or (losses, aux);
      differentiable in forward and in reverse mode.
    params: pytree of floating-point arrays; lower precision is cast to float32.
    candidates: `[K, B, ...]`, from one source or several, concatenated.
    labels: a pytree with leaves `[B, ...]`, passed to `loss_fn`.
    step: t > 0, the length for which the model is made; with plain SGD, the learning
      rate.  A scalar array is allowed.
    per: "example" for one weight vector per example, or "batch" for one weight vector
      shared by all examples.
    valid: bool `[K, B]`, False where an example has no such candidate; the values there
      must be finite, but do not count.  Each example needs at least one valid
      candidate.  None: all are valid.  Not allowed with `per="batch"`.
    iterations: greatest number of vertices after the first, >= 0.
    tolerance: stop once the gap is at most this fraction of the predicted decrease,
      >= 0.
    memory: number of vertices kept beside z, >= 1.  With 1 the method is plain
      Frank-Wolfe with exact line search; with `iterations` it is the fully corrective
      form, which needs fewer iterations for a small gap.  Each vertex takes the memory
      of a gradient.
    mixes_examples: whether an example's loss depends on the rest of its batch, as with
      BatchNorm in training mode.  If so, a vertex' gradient is summed over the K
      batches of candidates as they are, at K times the cost.
    has_aux: whether `loss_fn` returns (losses, aux).
    at_a_time: compute at most this many candidates at once, see
      `ddi_jax.restart_candidates`.

  Returns:
    (z, leaves `[*param]` in float32 at least; `ProximalInfo`).

  Raises:
    ValueError: for an argument outside its range, losses or a mask of another shape,
      or parameters that are not floating point.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> loss_fn = lambda params, x, y: (x @ params - y) ** 2
    >>> candidates = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])  # K = 2, B = 1
    >>> gradient, info = ddi_jax.proximal_danskin_gradient(
    ...     loss_fn, jnp.array([2.0, 1.9]), candidates, jnp.zeros(1), step=0.1)
    >>> [round(float(weight), 2) for weight in info.weights.ravel()]
    [0.6, 0.4]
    >>> [round(float(part), 2) for part in gradient]
    [2.41, 1.51]
  """
  check_settings(step, per, iterations, tolerance, memory)
  check_positive_int("at_a_time", at_a_time, optional=True)
  params = widened(params)
  check_candidates(candidates, labels)
  num_candidates, batch = candidates.shape[:2]
  _check_valid(valid, per, (num_candidates, batch))

  def losses_of(params: chex.ArrayTree, inputs: jax.Array) -> tuple[jax.Array, Any]:
    losses, aux = checked_losses(loss_fn, has_aux, params, inputs, labels)
    return at_least_float32(losses), aux

  losses, aux = loops.map_leading(
    lambda inputs: losses_of(params, inputs), candidates, at_a_time
  )
  group_losses = _grouped(losses, per == "example")
  worst = jnp.max(_masked(group_losses, valid), axis=0)
  problem = _Problem(
    losses_of,
    params,
    candidates,
    valid,
    step,
    per == "example",
    mixes_examples,
    at_a_time,
    shortfall=worst[None] - group_losses,
  )
  state = _start(problem, group_losses, slots=1 + min(memory, max(iterations, 1)))
  if iterations and num_candidates > 1:

    def advance(state: _State, _: None) -> tuple[_State, None]:
      unfinished = state.gap > jnp.maximum(tolerance * state.decrease, 0)
      advanced = jax.lax.cond(
        unfinished, lambda state: _advance(problem, state), lambda same: same, state
      )
      return advanced, None

    # Unlike a loop that ends early, a scan can be differentiated in reverse mode.
    state, _ = jax.lax.scan(advance, state, length=iterations)
  gradient_passes = 3 * num_candidates if mixes_examples and per == "example" else 3
  return jax.tree.map(lambda leaf: leaf[0], state.gradients), ProximalInfo(
    weights=jnp.broadcast_to(state.weights[0], losses.shape),
    losses=losses,
    aux=aux,
    predicted_decrease=state.decrease,
    gap=state.gap,
    iterations=state.iterations,
    passes=num_candidates
    + (state.iterations + 1) * (gradient_passes + 2 * num_candidates),
  )


def _start(problem: _Problem, group_losses: jax.Array, slots: int) -> _State:
  """The state at each group's worst candidate (MAX)."""
  choice = jnp.argmax(_masked(group_losses, problem.valid), axis=0)
  gradient = _vertex_gradient(problem, choice)
  weights = _one_hot(choice, group_losses)

  def in_all_slots(leaf: Any) -> jax.Array:
    return jnp.broadcast_to(leaf, (slots, *leaf.shape))

  return _State(
    jax.tree.map(in_all_slots, gradient),
    in_all_slots(weights),
    jnp.arange(slots) == 0,
    *_assess(problem, gradient, weights),
    jnp.zeros((), jnp.int32),
  )


def _advance(problem: _Problem, state: _State) -> _State:
  """One Frank-Wolfe step: add a vertex, and go to the best combination of slots."""
  choice = jnp.argmax(_masked(state.linearised, problem.valid), axis=0)
  slot = 1 + state.iterations % (len(state.used) - 1)
  gradients = jax.tree.map(
    lambda kept, new: kept.at[slot].set(new),
    state.gradients,
    _vertex_gradient(problem, choice),
  )
  weights = state.weights.at[slot].set(_one_hot(choice, state.weights[0]))
  used = state.used.at[slot].set(True)
  # For every slot, how far its mean loss is below the mean of the greatest losses.
  below = jax.vmap(_mean_under, (0, None))(weights, problem.shortfall)
  best = _best_combination(gradients, below, used, problem.step)
  gradient = jax.tree.map(
    lambda new, kept: new.astype(kept.dtype),
    KeptGradients(gradients).combine(best),
    gradients,
  )
  point = jnp.tensordot(best.astype(weights.dtype), weights, 1, precision="highest")
  return _State(
    jax.tree.map(lambda kept, new: kept.at[0].set(new), gradients, gradient),
    weights.at[0].set(point),
    used,
    *_assess(problem, gradient, point),
    state.iterations + 1,
  )


def _assess(
  problem: _Problem, gradient: chex.ArrayTree, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(Losses `[K, G]` after the step -t z, gap, decrease), linearised."""

  def slopes_at(inputs: jax.Array) -> jax.Array:
    def losses_at(params: chex.ArrayTree) -> jax.Array:
      return problem.losses_of(params, inputs)[0]

    return jax.jvp(losses_at, (problem.params,), (gradient,))[1]

  slopes = loops.map_leading(slopes_at, problem.candidates, problem.at_a_time)
  # Relative to the worst loss before: a small change would be lost in a loss' rounding.
  slopes = _grouped(slopes, problem.per_example)
  after = -problem.shortfall - problem.step * slopes
  greatest = jnp.max(_masked(after, problem.valid), axis=0)
  gap = _mean_under(weights, greatest[None] - after)
  return after, gap, -jnp.mean(greatest)


def _vertex_gradient(problem: _Problem, choice: jax.Array) -> chex.ArrayTree:
  """The gradient of the batch that takes candidate choice[g] for each group g."""
  num_candidates, batch = problem.candidates.shape[:2]
  if not problem.mixes_examples or not problem.per_example:
    chosen = chosen_candidates(problem.candidates, jnp.broadcast_to(choice, batch))
    return _weighted_gradient(problem, chosen, jnp.ones(batch))
  is_chosen = jax.nn.one_hot(choice, num_candidates, axis=0)

  return loops.scan(
    lambda total, gradient: jax.tree.map(jnp.add, total, gradient),
    jax.tree.map(jnp.zeros_like, problem.params),
    (problem.candidates, is_chosen),
    lambda pair: _weighted_gradient(problem, *pair),
  )


def _weighted_gradient(
  problem: _Problem, inputs: jax.Array, weights: jax.Array
) -> chex.ArrayTree:
  """The gradient of the mean over B of weights times losses, both `[B]`."""

  def total(params: chex.ArrayTree) -> jax.Array:
    return jnp.sum(weights * problem.losses_of(params, inputs)[0]) / len(inputs)

  return jax.grad(total)(problem.params)


def _grouped(values: jax.Array, per_example: bool) -> jax.Array:
  """`[K, B]` -> `[K, G]`: the mean over the examples that share their weights."""
  return values if per_example else values.mean(axis=1, keepdims=True)


def _one_hot(choice: jax.Array, like: jax.Array) -> jax.Array:
  """One-hot columns, `[G]` -> `[K, G]`."""
  return jax.nn.one_hot(choice, len(like), axis=0, dtype=like.dtype)


def _best_combination(
  gradients: chex.ArrayTree, below: jax.Array, used: jax.Array, step: Any
) -> jax.Array:
  """Weights of the used slots that minimise t/2 ||z||^2 + the combined `below`."""
  inner, scale = KeptGradients(gradients).inner
  # If the quotient overflows, the slot is excluded; at least one slot stays finite.
  largest = jnp.finfo(inner.offsets.dtype).max / 2
  above = jnp.where(used, below - jnp.min(below, where=used, initial=jnp.inf), 0)
  slacks = jnp.minimum(above / step / scale / scale, largest)
  return solve(inner, jnp.where(used, slacks, largest)).weights


def _mean_under(weights: jax.Array, values: jax.Array) -> jax.Array:
  """The mean over the examples of the sum weighted by `weights`, both `[K, G]`."""
  # If the weight is 0, the value may be anything.
  return jnp.mean(jnp.sum(jnp.where(weights > 0, weights * values, 0), axis=0))


def _masked(values: jax.Array, valid: jax.Array | None) -> jax.Array:
  return values if valid is None else jnp.where(valid, values, -jnp.inf)


def check_settings(
  step: float | jax.Array,
  per: str,
  iterations: int,
  tolerance: float | jax.Array,
  memory: int,
) -> None:
  """Raise ValueError, naming the setting, for a setting out of its range."""
  check_positive("step", step)
  check_choice("per", per, PER)
  check_non_negative_int("iterations", iterations)
  check_positive_int("memory", memory)
  check_number("tolerance", tolerance, "[0, inf)")


def _check_valid(valid: jax.Array | None, per: str, shape: tuple[int, ...]) -> None:
  if valid is None:
    return
  if per == "batch":
    raise ValueError('valid must be None with per="batch", got a mask.')
  check_array("valid", valid)
  if valid.shape != shape or valid.dtype != bool:
    raise ValueError(
      f"valid must be bool of shape [K, B] = {shape}, got {valid.dtype} of shape "
      f"{valid.shape}."
    )
  if not is_concrete(valid):
    return
  without = np.flatnonzero(~np.asarray(valid).any(axis=0))
  if len(without):
    raise ValueError(
      f"valid must be True for at least one candidate of each example, got none for "
      f"example {without[0]}, the first of {len(without)} such examples."
    )
