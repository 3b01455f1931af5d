"""l1-APGD (Croce and Hein, 2021, "Mind the box", section 3)."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddi_jax import threat_models
from ddi_jax.attacks import classifier
from ddi_jax.attacks.classifier import BestPoints
from ddi_jax.numerics.draws import draw_flat
from ddi_jax.numerics.thresholds import kth_largest
from ddi_jax.threat_models import Bounds

_FIRST_SPARSITY = 0.2  # The first steps change this fraction of the coordinates.
# A step changes this many times fewer coordinates than differ at the best point.
_SPARSITY_RATIO = 1.5
_STEP_RATIO = 1.5
_SMALLEST_STEP = 0.1  # In units of the radius.
_SPARSER = 0.95


class Schedule(NamedTuple):
  """The plan of the `steps` + 3 evaluations of a run.

  Attributes:
    radii: the ball's radius at the evaluation, in units of epsilon.
    ends: whether the evaluation is the last at its radius.
    updates: whether the evaluation updates step sizes and sparsities.
  """

  radii: np.ndarray
  ends: np.ndarray
  updates: np.ndarray


def schedule(steps: int) -> Schedule:
  """The schedule: 30 % of the steps at radius 3, 30 % at 2 and 40 % at 1.

  Rounding favours the later radii.  Updates follow every 4 % (at least one) of the
  steps at a radius.
  """
  radii, ends, updates = [], [], []
  turns = np.array([0, 3 * steps // 10, 6 * steps // 10, steps])
  for radius, length in zip((3, 2, 1), np.diff(turns), strict=True):
    every = max(1, int(0.04 * length))
    radii += [radius] * (length + 1)
    ends += [False] * length + [True]
    updates += [index > 0 and index % every == 0 for index in range(length + 1)]
  return Schedule(np.array(radii, np.float32), np.array(ends), np.array(updates))


class _State(NamedTuple):
  points: jax.Array
  best: BestPoints  # The points of greatest loss at this radius.
  best_gradients: jax.Array
  best_points: BestPoints  # At the last radius only; misclassified points come first.
  step_sizes: jax.Array
  counts: jax.Array  # Coordinates that a step changes.
  changed: jax.Array  # Coordinates in which the best point differed at the last update.


def ascend_l1(
  evaluate: Callable[[jax.Array, jax.Array], tuple[BestPoints, jax.Array]],
  epsilon: float | jax.Array,
  keys: jax.Array,
  inputs: jax.Array,
  best_points: BestPoints,
  *,
  steps: int,
  bounds: Bounds,
) -> BestPoints:
  """One run of l1-APGD, through the radii 3, 2 and 1 epsilon.

  Each step adds the signs of the largest gradients, scaled to the l1 norm of the step
  size, and projects on ball and box together.  The number of coordinates that a step
  changes follows from the best point so far.  If that point has become sparser, the
  step size returns to the radius and the example returns to its best point; otherwise
  the step size shrinks.  A new radius starts from the projection of the last radius'
  best point.

  Args:
    evaluate: (points `[B, ...]`, index) -> (`BestPoints` with the losses as scores,
      gradients).
    epsilon: the radius of the l1 ball.
    keys: one per example, `[B]`; consumed by the random start, which is the projection
      of normal noise.
    inputs: `[B, ...]`.
    best_points: the clean inputs with their losses.
    steps: ascent steps at all radii together.
    bounds: the box, or None.

  Returns:
    The best points at the last radius, the clean inputs included.
  """
  plan = schedule(steps)
  ends, updates = jnp.asarray(plan.ends), jnp.asarray(plan.updates)
  radii = (jnp.asarray(plan.radii, inputs.dtype) * epsilon).astype(inputs.dtype)
  last = jnp.asarray(plan.radii == 1)
  size = inputs[0].size

  def project(points: jax.Array, radius: jax.Array) -> jax.Array:
    ball = threat_models.l1(radius)
    return ball.project(points, inputs, bounds).astype(inputs.dtype)

  def count_changes(points: jax.Array) -> jax.Array:
    return jnp.sum(points != inputs, axis=range(1, inputs.ndim)).astype(float)

  def body(index: Any, s: _State) -> _State:
    current, gradients = evaluate(s.points, index)
    last_radius = jnp.full(len(inputs), last[index])
    reached = classifier.better(s.best_points, current)
    best_points = BestPoints(*classifier.select(last_radius, reached, s.best_points))
    best, best_gradients = classifier.select(
      current.scores > s.best.scores,
      (current, gradients),
      (s.best, s.best_gradients),
    )

    radius = radii[index]
    changed = count_changes(best.points)
    sparser = changed < _SPARSER * s.changed
    smaller = jnp.maximum(s.step_sizes / _STEP_RATIO, _SMALLEST_STEP * radius)
    update = jnp.full(len(inputs), updates[index])
    step_sizes, counts, changed = classifier.select(
      update,
      (jnp.where(sparser, radius, smaller), changed / _SPARSITY_RATIO, changed),
      (s.step_sizes, s.counts, s.changed),
    )
    points, gradients = classifier.select(
      update & sparser,
      (best.points, best_gradients),
      (current.points, gradients),
    )

    step = _sparse_signs(gradients, counts)
    ahead = points + classifier.expand(step_sizes, points) * step
    proposal = jnp.where(ends[index], best.points, ahead)
    next_radius = radii[jnp.minimum(index + 1, len(radii) - 1)]
    points = project(proposal, next_radius)
    # A new radius starts afresh from where the last one ended.
    end = jnp.full(len(inputs), ends[index])
    changes = count_changes(points)
    step_sizes, counts, changed, scores = classifier.select(
      end,
      (
        jnp.full_like(step_sizes, next_radius),
        changes / _SPARSITY_RATIO,
        changes,
        jnp.full_like(best.scores, -jnp.inf),
      ),
      (step_sizes, counts, changed, best.scores),
    )
    best = best._replace(scores=scores)
    return _State(
      points, best, best_gradients, best_points, step_sizes, counts, changed
    )

  noise = jax.vmap(functools.partial(draw_flat, jax.random.normal))(keys, inputs)
  start = project(inputs + noise, radii[0])
  low = jnp.full_like(best_points.scores, -jnp.inf)
  state = _State(
    points=start,
    best=best_points._replace(points=start, scores=low),
    best_gradients=jnp.zeros_like(start),
    best_points=best_points,
    step_sizes=jnp.full(len(inputs), radii[0], inputs.dtype),
    counts=jnp.full(len(inputs), _FIRST_SPARSITY * size, float),
    changed=jnp.full(len(inputs), size, float),
  )
  return jax.lax.fori_loop(0, len(plan.radii), body, state).best_points


def _sparse_signs(gradients: jax.Array, counts: jax.Array) -> jax.Array:
  """A step of l1 norm 1 along the signs of the `counts` `[B]` largest gradients."""
  lengths = jnp.abs(gradients.reshape(len(gradients), -1))
  chosen_counts = jnp.clip(jnp.ceil(counts), 1, lengths.shape[1]).astype(int)
  smallest = kth_largest(lengths, chosen_counts[:, None])
  chosen = jnp.where(lengths >= smallest, jnp.sign(lengths), 0)
  total = jnp.maximum(jnp.sum(chosen, axis=1, keepdims=True), 1)
  return jnp.sign(gradients) * (chosen / total).reshape(gradients.shape)
