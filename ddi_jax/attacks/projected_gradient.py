"""Projected gradient ascent on the inputs."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp

from ddi_jax.checks import (
  check_array,
  check_bounds,
  check_choice,
  check_inside,
  check_key,
  check_number,
  check_positive,
  check_positive_int,
  takes,
)
from ddi_jax.numerics import loops
from ddi_jax.numerics.finite import finite_or
from ddi_jax.reuse import reused
from ddi_jax.threat_models import (
  Bounds,
  ThreatModel,
  check_radius,
  check_threat_model,
)

if TYPE_CHECKING:
  from jaxtyping import Array, Float

Objective = Callable[[jax.Array], jax.Array]
Start = Callable[[jax.Array, jax.Array], jax.Array]
Ascent = Callable[[jax.Array, jax.Array, Bounds], jax.Array]


class Attack(Protocol):
  """An attack that looks for inputs of large objective near the given inputs.

  Args:
    key: a key, which is consumed if the attack is random; otherwise it may be None.
    objective: inputs `[B, ...]` -> losses `[B]`, to be maximised.
    inputs: `[B, ...]`, floating point.

  Returns:
    Adversarial inputs `[B, ...]` of the same dtype.
  """

  def __call__(
    self,
    key: jax.Array | None,
    objective: Objective,
    inputs: Float[Array, " B *example"],
  ) -> Float[Array, " B *example"]: ...


def check_attack(attack: Any) -> None:
  """Raise ValueError unless the argument can be called as an `Attack`."""
  if not callable(attack) or not takes(attack, "key", "objective", "inputs"):
    raise ValueError(
      "attack must be a function (key, objective, inputs) -> inputs, such as "
      f"ddi_jax.pgd(...), got {attack!r}.  Attacks on classifiers, of ddi_jax.attacks, "
      "are for ddi_jax.autoattack."
    )


@reused
def pgd(
  threat_model: ThreatModel,
  *,
  steps: int,
  step_size: float | jax.Array,
  bounds: Bounds = (0.0, 1.0),
  random_start: bool | Start = True,
  iterate: str = "last",
  ascent: Ascent | None = None,
  stop_below: float | None = None,
) -> Attack:
  """PGD: steepest-ascent steps, each projected on the threat model and the box.

    x <- project(x + step_size * steepest_ascent(gradient of the objective at x))

  Madry et al. (2018), section 2.1 and equation 2.  Each step takes one gradient of the
  objective.  `iterate="best"` costs one more evaluation of the objective, without
  gradient.

  Args:
    threat_model: the set of allowed perturbations, for example `ddi_jax.linf(8 / 255)`.
    steps: number of ascent steps, >= 1.
    step_size: length of a step in the threat model's norm, > 0.  A common choice is
      `2.5 * epsilon / steps`.
    bounds: the box `(low, high)` that holds the inputs, or None.  Standardised inputs
      live in a box of another shape: give the attack the original images, and let the
      model standardise them.
    random_start: whether to start at a random point of the threat model instead of the
      input; or a function (key, inputs) -> points, which are projected before use.
    iterate: "last" returns the last iterate; "best" returns, for each example, the
      iterate with the largest objective, the start included.
    ascent: (gradients, points, bounds) -> steps, to replace the threat model's
      `steepest_ascent`; `lambda gradients, *_: gradients` is plain gradient ascent.
    stop_below: None, or a fraction in [0, 1): stop before `steps` once a step changes
      at most this fraction of the coordinates of every example.  With 0 and a
      deterministic objective the result is the same as with None.

  Returns:
    An `Attack`: (key, objective, inputs `[B, ...]`) -> adversarial inputs `[B, ...]`.
    The key is consumed if `random_start` is set.  A coordinate whose gradient is NaN or
    infinite does not move.  "best" ignores losses that are NaN or infinite.

  Raises:
    ValueError: for an argument outside its range.  When the attack runs: for inputs
      that are not floating point or, if their values are known, leave the box; for an
      objective that does not have shape `[B]`; or for a missing key.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=5, step_size=0.05)
    >>> objective = lambda inputs: inputs.sum(axis=1)
    >>> attack(jax.random.key(0), objective, jnp.array([[0.5, 0.95]]))
    Array([[0.6, 1. ]], dtype=float32)
  """
  check_threat_model(threat_model)
  check_positive_int("steps", steps)
  check_positive("step_size", step_size)
  check_bounds(bounds)
  check_radius(threat_model, bounds, None)
  check_choice("iterate", iterate, ("last", "best"))
  check_number("stop_below", stop_below, "[0, 1)", optional=True)
  ascend = threat_model.steepest_ascent if ascent is None else ascent

  def attack(
    key: jax.Array | None, objective: Objective, inputs: jax.Array
  ) -> jax.Array:
    check_array("inputs", inputs)
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
      raise ValueError(f"inputs must be floating point, got {inputs.dtype}.")
    check_inside(inputs, bounds)
    check_radius(threat_model, bounds, math.prod(inputs.shape[1:]))
    if random_start:
      check_key(key)
    some_key: Any = key
    if callable(random_start):
      proposed = random_start(some_key, inputs)
      check_array("the points of random_start", proposed)
      start = threat_model.project(proposed, inputs, bounds)
    elif random_start:
      start = threat_model.random_start(some_key, inputs, bounds)
    else:
      start = inputs

    def total(points: jax.Array) -> tuple[jax.Array, jax.Array]:
      losses = objective(points)
      if isinstance(losses, tuple):
        raise ValueError(
          f"the objective must return losses [B], one array, got {len(losses)} values; "
          "from (losses, aux), return the losses alone."
        )
      check_array("the value of the objective", losses)
      is_floating = jnp.issubdtype(losses.dtype, jnp.floating)
      if losses.shape != inputs.shape[:1] or not is_floating:
        raise ValueError(
          f"the objective must return losses of shape {inputs.shape[:1]}, one per "
          f"example, floating point; got {losses.dtype} of shape {losses.shape}."
        )
      return losses.sum(), losses

    start = finite_or(start, inputs).astype(inputs.dtype)
    gradient = loops.Traced(jax.grad(total, has_aux=True), start)

    def step(_: Any, state: Any) -> Any:
      points, best, best_losses = state
      gradients, losses = gradient(points)
      if iterate == "best":
        best, best_losses = _better(best, best_losses, points, losses)
      moves = step_size * ascend(finite_or(gradients, 0), points, bounds)
      points = finite_or(points + moves, points)
      points = threat_model.project(points, inputs, bounds).astype(inputs.dtype)
      return points, best, best_losses

    state: Any = (start, None, None)
    if iterate == "best":
      _, losses = gradient.result
      state = (start, start, jnp.full(losses.shape, -jnp.inf, losses.dtype))
    if stop_below is not None:
      state = _while_moving(step, state, steps, stop_below)
    else:
      state = loops.repeat(steps, step, state, gradient)
    points, best, best_losses = state
    if iterate == "best":
      best, _ = _better(best, best_losses, points, objective(points))
      return best
    return points

  return attack


def _while_moving(
  step: Callable[[Any, Any], Any], state: Any, steps: int, stop_below: float
) -> Any:
  """Take steps until one changes few of the coordinates of every example.

  A step changes few if the fraction is at most `stop_below`.  At most `steps` are
  taken.
  """

  def goes_on(carry: Any) -> jax.Array:
    index, share, _ = carry
    return (index < steps) & (share > stop_below)

  def advance(carry: Any) -> Any:
    index, _, state = carry
    advanced = step(index, state)
    moved = advanced[0] != state[0]
    share = moved.reshape(len(moved), -1).astype(jnp.float32).mean(axis=1).max()
    return index + 1, share, advanced

  first = (0, jnp.ones((), jnp.float32), state)
  return jax.lax.while_loop(goes_on, advance, first)[2]


def _better(
  best: jax.Array, best_losses: jax.Array, points: jax.Array, losses: jax.Array
) -> tuple[jax.Array, jax.Array]:
  better = (losses > best_losses) & jnp.isfinite(losses)
  mask = better.reshape(better.shape + (1,) * (points.ndim - 1))
  return jnp.where(mask, points, best), jnp.where(better, losses, best_losses)
