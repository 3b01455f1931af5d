"""The effect on the robust loss of a step along each of several directions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ddi_jax.attacks import Attack
from ddi_jax.candidates import restart_candidates, worst_candidate
from ddi_jax.checks import check_key, check_number, check_positive_int
from ddi_jax.directions.weighting import DirectionState
from ddi_jax.gradients.gram import gram_matrix, unit_norm
from ddi_jax.gradients.per_candidate import (
  LossFn,
  candidate_gradients,
  restart_gradients,
)
from ddi_jax.tables import printed_as_table


class TriedDirection(NamedTuple):
  """A rule that makes one direction from K candidates.

  Attributes:
    transformation: a transformation of the K gradients, for example
      `ddi_jax.danskin_direction()`.
    select_worst: whether to reduce the candidates to the worst one of each example
      first; the transformation then sees one gradient.
  """

  transformation: optax.GradientTransformationExtraArgs
  select_worst: bool = False


@printed_as_table
class StepEffects(NamedTuple):
  """Robust losses before and after steps: D directions, L lengths, T test batches.

  Attributes:
    before: `[T]`, the mean over the batch of the worst restart's loss.
    after: `[D, L, T]`, the same after the step, with new attacks.
    cosines: `[D, D]`, cosines of the pairs of directions; 0 if one of them is zero.
    states: states of the transformations, leaves `[D]`.
    losses: `[K, B]`, losses of the K candidates that the directions are made from.
  """

  before: jax.Array
  after: jax.Array
  cosines: jax.Array
  states: DirectionState
  losses: jax.Array


def step_effects(
  loss_fn: LossFn,
  directions: Mapping[str, TriedDirection],
  step_lengths: Sequence[float],
  *,
  attack: Attack,
  num_restarts: int,
  evaluation_attack: Attack,
  evaluation_restarts: int,
  restarts_at_a_time: int | None = None,
) -> Callable[..., StepEffects]:
  """Compare directions by the robust loss after a step, with a new attack.

  All directions are made from the same K candidates and scaled to unit norm, so that
  they differ in direction alone.  A direction that is zero (at a stationary point)
  stays zero.  The evaluation attack starts from the same random points before and after
  every step, so that its luck cancels in the difference.

  Args:
    loss_fn: (params, inputs `[B, ...]`, labels) -> losses `[B]`.
    directions: directions by name; the results have their order.
    step_lengths: lengths of the steps, in the parameters' Euclidean norm.
    attack: the attack that makes the candidates.
    num_restarts: K >= 1.
    evaluation_attack: a stronger attack, which measures the robust loss.
    evaluation_restarts: number of runs of `evaluation_attack`; the worst run counts for
      each example.
    restarts_at_a_time: for both attacks, see `at_a_time` of
      `ddi_jax.restart_candidates`.

  Returns:
    fn(params, batch, tests, key) -> `StepEffects`, to be called under `jax.jit`.  The
    directions are made from `batch`, (inputs `[B, ...]`, labels).  The robust loss is
    measured on `tests`, (inputs `[T, B, ...]`, labels with leaves `[T, ...]`).  The key
    is consumed.

  Raises:
    ValueError: if there is no direction or no step length, or a number of restarts is
      < 1.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> loss_fn = lambda params, x, y: (x @ params["w"] - y) ** 2
    >>> effects_fn = ddi_jax.step_effects(
    ...     loss_fn,
    ...     {
    ...         "PGD": ddi_jax.TriedDirection(ddi_jax.first_restart_direction()),
    ...         "DDi": ddi_jax.TriedDirection(ddi_jax.danskin_direction()),
    ...     },
    ...     [0.01, 0.1],
    ...     attack=ddi_jax.pgd(ddi_jax.linf(0.1), steps=2, step_size=0.1),
    ...     num_restarts=3,
    ...     evaluation_attack=ddi_jax.pgd(ddi_jax.linf(0.1), steps=5, step_size=0.05),
    ...     evaluation_restarts=2,
    ... )
    >>> batch = (jnp.full((2, 3), 0.5), jnp.zeros(2))
    >>> tests = jax.tree.map(lambda leaf: leaf[None], batch)
    >>> effects = effects_fn({"w": jnp.ones(3)}, batch, tests, jax.random.key(0))
    >>> effects.after.shape, bool(jnp.all(effects.after < effects.before))
    ((2, 2, 1), True)
  """
  are_several = hasattr(step_lengths, "__len__")
  if not directions or not are_several or not len(step_lengths):
    raise ValueError(
      "step_effects needs a direction and a list of step lengths, got "
      f"{len(directions)} directions and step_lengths {step_lengths!r}."
    )
  for index, length in enumerate(step_lengths):
    check_number(f"step_lengths[{index}]", length, "[0, inf)")
  for name, value in (
    ("num_restarts", num_restarts),
    ("evaluation_restarts", evaluation_restarts),
  ):
    check_positive_int(name, value)

  def robust_loss(
    params: chex.ArrayTree, inputs: jax.Array, labels: jax.Array, key: jax.Array
  ) -> jax.Array:
    points = restart_candidates(
      evaluation_attack,
      lambda x, y: loss_fn(params, x, y),
      inputs,
      labels,
      key,
      evaluation_restarts,
      at_a_time=restarts_at_a_time,
    )
    losses = jax.lax.map(lambda x: loss_fn(params, x, labels), points)
    return jnp.max(losses, axis=0).mean()

  def effects_fn(
    params: chex.ArrayTree,
    batch: tuple[jax.Array, Any],
    tests: tuple[jax.Array, Any],
    key: jax.Array,
  ) -> StepEffects:
    check_key(key)
    key, test_key = jax.random.split(key)
    gradients, info = restart_gradients(
      loss_fn, attack, num_restarts, restarts_at_a_time=restarts_at_a_time
    )(params, *batch, key)
    worst = worst_candidate(info.candidates, info.losses)[None]
    worst_gradient, worst_info = candidate_gradients(loss_fn, params, worst, batch[1])
    made = []
    for transformation, select_worst in directions.values():
      seen, losses = (worst_gradient, worst_info) if select_worst else (gradients, info)
      made.append(_unit_direction(transformation, seen, losses.losses, params))
    units, states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)

    # One program makes all measurements: the loss before is that of a step of length 0.
    which = jnp.repeat(jnp.arange(len(directions)), len(step_lengths))
    which = jnp.concatenate([jnp.zeros(1, which.dtype), which])
    lengths = jnp.tile(jnp.asarray(step_lengths, jnp.float32), len(directions))
    lengths = jnp.concatenate([jnp.zeros(1), lengths])
    keys = jax.random.split(test_key, len(tests[0]))

    def after(which_and_length: Any) -> jax.Array:
      which, length = which_and_length
      moved = jax.tree.map(lambda p, unit: p - length * unit[which], params, units)
      return jax.lax.map(lambda test: robust_loss(moved, *test), (*tests, keys))

    measured = jax.lax.map(after, (which, lengths))
    return StepEffects(
      before=measured[0],
      after=measured[1:].reshape(len(directions), len(step_lengths), -1),
      cosines=gram_matrix(units),
      states=states,
      losses=info.losses,
    )

  return effects_fn


def _unit_direction(
  transformation: optax.GradientTransformationExtraArgs,
  gradients: chex.ArrayTree,
  losses: jax.Array,
  params: chex.ArrayTree,
) -> tuple[chex.ArrayTree, Any]:
  state = transformation.init(params)
  direction, state = transformation.update(
    gradients, state, params, losses=losses.mean(axis=1)
  )
  return unit_norm(direction), state
