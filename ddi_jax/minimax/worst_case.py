"""Minimisation of the worst case over a continuous set, which an attack finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from ddi_jax.attacks.projected_gradient import Attack
from ddi_jax.checks import check_key, check_positive, check_positive_int
from ddi_jax.minimax.solver import minimize_max
from ddi_jax.tables import printed_as_table

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int, PyTree

LossOfPoint = Callable[[Any, jax.Array], jax.Array]


@printed_as_table
class WorstCaseSolution(NamedTuple):
  """The result of `minimize_worst_case`.

  Attributes:
    params: the parameters.
    value: the greatest loss at `params` over all points found.
    excess: how far the greatest loss of the last attack is above that of the points
      found before; at most 0 if the attack found nothing new.  It is only as reliable
      as the attack: the true worst case is at least `value`.
    points: `[P, ...]`, the pool; entries that were not needed are copies of others.
    losses: `[P]`, at `params`.
    weights: `[P]`, the multipliers of the last finite problem.
    gap: the gap of the last finite problem, see `ddi_jax.MinimaxSolution`.
    rounds: number of rounds.
    evaluations: number of evaluations of `loss_fn` on the pool, without those of the
      attacks.
    converged: whether `excess` is within the tolerance.
  """

  params: PyTree
  value: Float[Array, ""]
  excess: Float[Array, ""]
  points: Float[Array, " P *point"]
  losses: Float[Array, " P"]
  weights: Float[Array, " P"]
  gap: Float[Array, ""]
  rounds: Int[Array, ""]
  evaluations: Int[Array, ""]
  converged: Bool[Array, ""]


class _State(NamedTuple):
  params: Any
  points: jax.Array  # [P, ...]
  weights: jax.Array  # [P]
  losses: jax.Array  # [P], at params
  found: jax.Array  # [K, ...], the points of the last attack
  found_losses: jax.Array  # [K]
  gap: jax.Array
  rounds: jax.Array
  evaluations: jax.Array
  done: jax.Array


def minimize_worst_case(
  loss_fn: LossOfPoint,
  attack: Attack,
  params: PyTree,
  point: Float[Array, " *point"],
  key: jax.Array,
  *,
  num_restarts: int = 16,
  pool_size: int = 64,
  max_rounds: int = 50,
  tolerance: float | None = None,
  max_steps: int = 500,
  memory: int = 30,
) -> WorstCaseSolution:
  """Minimise the greatest loss over a set of points, max_x loss_fn(params, x).

  A round has two halves.  The attack looks for points of great loss, from
  `num_restarts` random starts, and `minimize_max` minimises the greatest loss over the
  pool of all points found.  The method ends when the attack finds nothing above the
  pool's greatest loss (the exchange or cutting-set method: Blankenship and Falk, 1976;
  Mutapcic and Boyd, 2009).  If the attack finds the exact worst case and the losses are
  convex in the parameters, the result is the minimum of the worst case.

  The function is pure and works under `jax.jit`.

  Args:
    loss_fn: (params, one point) -> loss, a scalar, differentiable in both.
    attack: the attack that looks for points; it also determines the set.
      `ddi_jax.pgd`, for example, searches a ball around `point`.
    params: the start: a pytree of float32 or float64 arrays.
    point: the point that the attack perturbs, of any shape; the first of the pool.
    key: a key, from which one key per round is derived; consumed.
    num_restarts: K >= 1, number of runs of the attack per round.
    pool_size: P > K, number of points in the pool.  A full pool drops points without
      weight, those of least loss first.
    max_rounds: greatest number of rounds, >= 1.
    tolerance: the excess of the last attack over the pool's greatest loss that counts
      as converged, as a fraction of that loss.  Default 1e-5 in float32, 1e-8 in
      float64.
    max_steps: steps of `minimize_max` per round.
    memory: see `ddi_jax.minimize_max`.

  Returns:
    A `WorstCaseSolution`.

  Raises:
    ValueError: for an argument outside its range; see also `minimize_max`.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> def loss_fn(slope, x):  # The line through 0 that is closest to exp on [.5, 1].
    ...   return (slope * x[0] - jnp.exp(x[0])) ** 2
    >>> attack = ddi_jax.pgd(ddi_jax.linf(0.25), steps=20, step_size=0.05)
    >>> solution = ddi_jax.minimize_worst_case(
    ...   loss_fn, attack, jnp.array(1.0), jnp.array([0.75]), jax.random.key(0))
    >>> print(f"slope {solution.params:.3f}, squared error {solution.value:.4f}")
    slope 2.911, squared error 0.0373
  """
  for name, count in (
    ("num_restarts", num_restarts),
    ("pool_size", pool_size),
    ("max_rounds", max_rounds),
  ):
    check_positive_int(name, count)
  if pool_size <= num_restarts:
    raise ValueError(
      f"pool_size must be above num_restarts ({num_restarts}), got {pool_size}."
    )
  point = jnp.asarray(point)
  if not jnp.issubdtype(point.dtype, jnp.floating):
    raise ValueError(f"point must be floating point, got {point.dtype}.")
  if tolerance is None:
    tolerance = 1e-5 if jnp.finfo(point.dtype).bits == 32 else 1e-8
  check_positive("tolerance", tolerance)
  check_key(key)

  def losses_at(params: Any, points: jax.Array) -> jax.Array:
    return jax.vmap(loss_fn, (None, 0))(params, points)

  starts = jnp.broadcast_to(point, (num_restarts, *point.shape))

  def look(index: Any, params: Any) -> tuple[jax.Array, jax.Array]:
    attack_key = jax.random.fold_in(key, index)
    found = attack(attack_key, lambda points: losses_at(params, points), starts)
    return found, losses_at(params, found)

  def excess_of(losses: jax.Array, found: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(Excess of the new points over the pool, whether it is within the tolerance)."""
    value = jnp.max(losses)
    excess = jnp.max(found) - value
    return excess, excess <= tolerance * jnp.abs(value)

  def take_round(state: _State) -> _State:
    points = _exchange(state)
    solution = minimize_max(
      lambda params: losses_at(params, points),
      state.params,
      max_steps=max_steps,
      memory=memory,
    )
    found, found_losses = look(state.rounds + 1, solution.params)
    _, close = excess_of(solution.losses, found_losses)
    rounds = state.rounds + 1
    return _State(
      solution.params,
      points,
      solution.weights,
      solution.losses,
      found,
      found_losses,
      solution.gap,
      rounds=rounds,
      evaluations=state.evaluations + solution.evaluations,
      done=close | (rounds >= max_rounds) | ~jnp.isfinite(solution.value),
    )

  points = jnp.broadcast_to(point, (pool_size, *point.shape))
  found, found_losses = look(0, params)
  no_losses = jnp.full(pool_size, -jnp.inf, found_losses.dtype)
  state = _State(
    params=params,
    points=points,
    weights=jnp.zeros_like(no_losses),
    losses=no_losses,
    found=found,
    found_losses=found_losses,
    gap=jnp.full_like(found_losses[0], jnp.inf),
    rounds=jnp.zeros((), int),
    evaluations=jnp.zeros((), int),
    done=jnp.zeros((), bool),
  )
  state = jax.lax.while_loop(lambda state: ~state.done, take_round, state)
  excess, close = excess_of(state.losses, state.found_losses)
  return WorstCaseSolution(
    params=state.params,
    value=jnp.maximum(jnp.max(state.losses), jnp.max(state.found_losses)),
    excess=excess,
    points=state.points,
    losses=state.losses,
    weights=state.weights,
    gap=state.gap,
    rounds=state.rounds,
    evaluations=state.evaluations,
    converged=close,
  )


def _exchange(state: _State) -> jax.Array:
  """The next pool: points with weight, then the worst of the rest and the new ones."""
  points = jnp.concatenate([state.points, state.found])
  losses = jnp.concatenate([state.losses, state.found_losses])
  needed = jnp.concatenate(
    [state.weights > 0, jnp.zeros_like(state.found_losses, bool)]
  )
  flat = points.reshape(len(points), -1)
  indices = jnp.arange(len(points))
  near = jnp.sqrt(jnp.finfo(flat.dtype).eps) * jnp.max(jnp.abs(flat))

  def is_copy(index: jax.Array) -> jax.Array:
    distances = jnp.max(jnp.abs(flat - flat[index][None]), axis=1)
    return jnp.any((distances <= near) & (indices < index))

  copies = jax.lax.map(is_copy, indices)
  score = jnp.where(needed, jnp.inf, jnp.where(copies, -jnp.inf, losses))
  _, kept = jax.lax.top_k(score, len(state.points))
  return points[kept]
