"""Projected gradient ascent on the inputs."""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from ddi_jax import loops
from ddi_jax.threat_models import Bounds, ThreatModel

Objective = Callable[[jax.Array], jax.Array]
Start = Callable[[jax.Array, jax.Array], jax.Array]
Ascent = Callable[[jax.Array, jax.Array, Bounds], jax.Array]


class Attack(Protocol):
  """Looks for inputs near the given ones on which the objective is large.

  Args:
    key: a key, consumed if the attack is random; otherwise it may be None.
    objective: inputs `[B, ...]` -> losses `[B]`, to be maximised.
    inputs: `[B, ...]`, floating point.

  Returns:
    Adversarial inputs `[B, ...]` of the same dtype.
  """

  def __call__(
    self, key: jax.Array | None, objective: Objective, inputs: jax.Array
  ) -> jax.Array: ...


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
  loop: str = "auto",
  batch_axis: str | tuple[str, ...] | None = None,
) -> Attack:
  """PGD: steepest-ascent steps, each projected on the threat model and the box.

    x <- project(x + step_size * steepest_ascent(gradient of the objective at x))

  Madry et al. (2018), section 2.1 and equation 2.  One gradient of the objective per
  step; `iterate="best"` costs one more evaluation of it, without gradient.

  Args:
    threat_model: the set of allowed perturbations, `ddi_jax.linf(8 / 255)` say.
    steps: number of ascent steps, >= 1.
    step_size: length of a step in the threat model's norm, > 0.  A common choice is
      `2.5 * epsilon / steps`.
    bounds: the box `(low, high)` that holds the inputs, or None.
    random_start: whether to start at a random point of the threat model rather than
      at the input; or a function (key, inputs) -> points, projected before use.
    iterate: "last" returns the last iterate, "best" for each example the iterate with
      the largest objective, the start included.
    ascent: (gradients, points, bounds) -> steps, to replace the threat model's
      `steepest_ascent`; `lambda gradients, *_: gradients` is plain gradient ascent.
    stop_below: end before `steps` once no example of the batch moves any more: once
      the share of its coordinates that a step changes is at most this, in [0, 1).
      With 0 and a deterministic objective the outcome is the same.  Not with
      loop="unroll".
    loop: "loop" (a `lax.fori_loop`), "unroll", or "auto", which unrolls only where
      that is much faster: on a CPU, for gradients of ordinary convolutions.
    batch_axis: inside `jax.shard_map`, the mesh axis (or axes) over which the batch is
      split: the attack is then that of the whole batch, in its random numbers and in
      its end by `stop_below`.  A function `random_start` sees its share only, and the
      same key on every device.

  Returns:
    An `Attack`: (key, objective, inputs `[B, ...]`) -> adversarial inputs `[B, ...]`.
    The key is consumed if `random_start`.

  Raises:
    ValueError: for an argument outside its range; when the attack runs, for inputs
      that are not floating point, an objective without shape `[B]`, or a missing key.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> attack = ddi_jax.pgd(ddi_jax.linf(0.1), steps=5, step_size=0.05)
    >>> objective = lambda inputs: inputs.sum(axis=1)
    >>> attack(jax.random.key(0), objective, jnp.array([[0.5, 0.95]]))
    Array([[0.6, 1. ]], dtype=float32)
  """
  if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
    raise ValueError(f"steps must be an integer >= 1, got {steps!r}.")
  if not isinstance(step_size, jax.core.Tracer) and not 0 < step_size < float("inf"):
    raise ValueError(f"step_size must be a finite number > 0, got {step_size!r}.")
  if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
    raise ValueError(f"bounds must be (low, high) with low < high, got {bounds!r}.")
  if iterate not in ("last", "best"):
    raise ValueError(f'iterate must be "last" or "best", got {iterate!r}.')
  loops.check_form("loop", loop, ("auto", "unroll", "loop"))
  if stop_below is not None:
    if not 0 <= stop_below < 1:
      raise ValueError(f"stop_below must be in [0, 1) or None, got {stop_below!r}.")
    if loop == "unroll":
      raise ValueError(
        f'stop_below must be None with loop="unroll", got {stop_below!r}.'
      )
  ascend = threat_model.steepest_ascent if ascent is None else ascent

  def attack(key, objective, inputs):
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
      raise ValueError(f"inputs must be floating point, got {inputs.dtype}.")
    if random_start and key is None:
      raise ValueError("a random start needs a key, got None.")
    if callable(random_start):
      start = threat_model.project(random_start(key, inputs), inputs, bounds)
    elif random_start:
      start = start_in_batch(threat_model, key, inputs, bounds, batch_axis)
    else:
      start = inputs

    def total(points):
      losses = objective(points)
      if losses.shape != inputs.shape[:1]:
        raise ValueError(
          f"the objective must return losses of shape {inputs.shape[:1]}, one per "
          f"example; got {losses.shape}."
        )
      return losses.sum(), losses

    gradient = jax.grad(total, has_aux=True)

    def step(_, state):
      points, best, best_losses = state
      gradients, losses = gradient(points)
      if iterate == "best":
        best, best_losses = _better(best, best_losses, points, losses)
      points = points + step_size * ascend(gradients, points, bounds)
      points = threat_model.project(points, inputs, bounds).astype(inputs.dtype)
      return points, best, best_losses

    start = start.astype(inputs.dtype)
    state = (start, None, None)
    if iterate == "best":
      losses = jax.eval_shape(objective, start)
      state = (start, start, jnp.full(losses.shape, -jnp.inf, losses.dtype))
    if stop_below is not None:
      state = _while_moving(step, state, steps, stop_below, batch_axis)
    elif loops.resolve(loop, gradient, start) == "unroll":
      for index in range(steps):
        state = step(index, state)
    else:
      state = jax.lax.fori_loop(0, steps, step, state)
    points, best, best_losses = state
    if iterate == "best":
      best, _ = _better(best, best_losses, points, objective(points))
      return best
    return points

  return attack


def start_in_batch(threat_model, key, inputs, bounds, batch_axis):
  """The random starts of these examples among those drawn for the whole batch."""
  if batch_axis is None:
    return threat_model.random_start(key, inputs, bounds)
  count = jax.lax.axis_size(batch_axis)
  batch = jnp.tile(inputs, (count,) + (1,) * (inputs.ndim - 1))
  starts = threat_model.random_start(key, batch, bounds)
  first = jax.lax.axis_index(batch_axis) * len(inputs)
  return jax.lax.dynamic_slice_in_dim(starts, first, len(inputs))


def _while_moving(step, state, steps, stop_below, batch_axis):
  """As many steps as change more than a share of some example's coordinates."""

  def goes_on(carry):
    index, share, _ = carry
    return (index < steps) & (share > stop_below)

  def advance(carry):
    index, _, state = carry
    advanced = step(index, state)
    moved = advanced[0] != state[0]
    share = moved.reshape(len(moved), -1).astype(jnp.float32).mean(axis=1).max()
    if batch_axis is not None:
      share = jax.lax.pmax(share, batch_axis)
    return index + 1, share, advanced

  first = (0, jnp.ones((), jnp.float32), state)
  return jax.lax.while_loop(goes_on, advance, first)[2]


def _better(best, best_losses, points, losses):
  # A NaN counts as better, so that it shows in what the attack returns.
  better = ~(losses <= best_losses)
  mask = better.reshape(better.shape + (1,) * (points.ndim - 1))
  return jnp.where(mask, points, best), jnp.where(better, losses, best_losses)
