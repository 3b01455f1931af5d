"""Threat models: norm balls inside a box, with the operations that attacks need."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddi_jax.checks import check_array, check_known, check_number, is_concrete
from ddi_jax.numerics.draws import draw_flat
from ddi_jax.numerics.thresholds import kth_largest
from ddi_jax.reuse import reused

Bounds = tuple[float, float] | None


class ThreatModel(NamedTuple):
  """The perturbations an adversary may choose, as four pure functions.

  All arrays are batched, `[B, ...]`, with any trailing shape.  `bounds` is the box
  `(low, high)` that valid inputs live in, or None for no box; centres lie inside it.

  Attributes:
    norm: the ball's name: "linf", "l2" or "l1".
    epsilon: the ball's radius, in the units of the inputs.
    size: perturbations `[B, ...]` -> their norms `[B]`.
    project: (points, centers, bounds) -> the Euclidean projection of each point on
      the intersection of the ball around its centre and the box.
    random_start: (key, centers, bounds) -> points drawn uniformly from the ball and
      clipped to the box.  Consumes the key.
    steepest_ascent: (gradients, points, bounds) -> the unit-norm step that increases a
      linear function with these gradients the most (for l1 only nearly, see `l1`).
  """

  norm: str
  epsilon: float | jax.Array
  size: Callable[[jax.Array], jax.Array]
  project: Callable[[jax.Array, jax.Array, Bounds], jax.Array]
  random_start: Callable[[jax.Array, jax.Array, Bounds], jax.Array]
  steepest_ascent: Callable[[jax.Array, jax.Array, Bounds], jax.Array]


@reused
def linf(epsilon: float | jax.Array) -> ThreatModel:
  """The l_inf ball: every coordinate moves by at most `epsilon`.

  Args:
    epsilon: radius, >= 0, in the units of the inputs (8/255 is common for CIFAR-10 in
      [0, 1]).  A scalar array is allowed, so that a radius can be swept under jit.

  Returns:
    A `ThreatModel`.  Its projection is exact; its ascent step is the gradient's sign
    (Madry et al., 2018).

  Raises:
    ValueError: if `epsilon` is negative or not finite.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> ball = ddi_jax.linf(0.1)
    >>> ball.project(jnp.array([[0.5, 1.2]]), jnp.array([[0.2, 0.95]]), (0.0, 1.0))
    Array([[0.3, 1. ]], dtype=float32)
  """
  check_number("epsilon", epsilon, "[0, inf)")

  def size(perturbations: jax.Array) -> jax.Array:
    check_array("perturbations", perturbations)
    return jnp.max(jnp.abs(_flat(perturbations)), axis=1, initial=0.0)

  def project(points: jax.Array, centers: jax.Array, bounds: Bounds) -> jax.Array:
    _check_points(points, centers)
    return _clip(jnp.clip(points, centers - epsilon, centers + epsilon), bounds)

  def random_start(key: jax.Array, centers: jax.Array, bounds: Bounds) -> jax.Array:
    check_array("centers", centers)
    noise = draw_flat(jax.random.uniform, key, centers, minval=-1.0, maxval=1.0)
    return _clip(centers + epsilon * noise, bounds)

  def steepest_ascent(
    gradients: jax.Array, points: jax.Array, bounds: Bounds
  ) -> jax.Array:
    check_array("gradients", gradients)
    del points, bounds
    return jnp.sign(gradients)

  return ThreatModel("linf", epsilon, size, project, random_start, steepest_ascent)


@reused
def l2(epsilon: float | jax.Array) -> ThreatModel:
  """The l2 ball: the perturbation's Euclidean norm is at most `epsilon`.

  Args:
    epsilon: radius, >= 0, in the units of the inputs.  A scalar array is allowed.

  Returns:
    A `ThreatModel`.  Its projection on ball and box together is exact up to rounding:
    the solution is `clip(center + s (point - center))` for one scale s in [0, 1] per
    example, found by a monotone active-set iteration that ends in finitely many steps
    (if the points are nearer than 1e18, so that squared distances do not overflow).
    Its ascent step is the normalised gradient (zero where the gradient is zero).

  Raises:
    ValueError: if `epsilon` is negative or not finite.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> ball = ddi_jax.l2(0.5)
    >>> ball.project(jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2)), None)
    Array([[0.3, 0.4]], dtype=float32)
  """
  check_number("epsilon", epsilon, "[0, inf)")

  def size(perturbations: jax.Array) -> jax.Array:
    check_array("perturbations", perturbations)
    return jnp.linalg.norm(_flat(perturbations), axis=1)

  def project(points: jax.Array, centers: jax.Array, bounds: Bounds) -> jax.Array:
    _check_points(points, centers)
    flat_centers = _flat(centers)
    offsets = _flat(points) - flat_centers
    scale = _l2_scale(offsets, flat_centers, epsilon, bounds)
    return _clip(flat_centers + scale * offsets, bounds).reshape(centers.shape)

  def random_start(key: jax.Array, centers: jax.Array, bounds: Bounds) -> jax.Array:
    check_array("centers", centers)
    direction_key, radius_key = jax.random.split(key)
    noise = _flat(draw_flat(jax.random.normal, direction_key, centers))
    uniform = jax.random.uniform(radius_key, (len(noise), 1), centers.dtype)
    radii = epsilon * uniform ** (1 / noise.shape[1])
    ball = radii * _unit(noise, jnp.linalg.norm(noise, axis=1, keepdims=True))
    return _clip(centers + ball.reshape(centers.shape), bounds)

  def steepest_ascent(
    gradients: jax.Array, points: jax.Array, bounds: Bounds
  ) -> jax.Array:
    check_array("gradients", gradients)
    del points, bounds
    flat = _flat(gradients)
    # Scale first, because squares of a saturated network's gradients underflow.
    scaled = _unit(flat, jnp.max(jnp.abs(flat), axis=1, keepdims=True))
    steps = _unit(scaled, jnp.linalg.norm(scaled, axis=1, keepdims=True))
    return steps.reshape(gradients.shape)

  return ThreatModel("l2", epsilon, size, project, random_start, steepest_ascent)


@reused
def l1(epsilon: float | jax.Array, *, top_fraction: float = 0.01) -> ThreatModel:
  """The l1 ball: the absolute changes of all coordinates sum to at most `epsilon`.

  Args:
    epsilon: radius, >= 0, in the units of the inputs.  A scalar array is allowed.
    top_fraction: in [0, 1].  The ascent step moves this fraction of the coordinates (at
      least one) by the same length: those with the largest gradients among the
      coordinates that the box lets move.  0 is exact steepest ascent, which moves one
      coordinate a step; a small fraction makes faster progress (SLIDE: Tramer and
      Boneh, 2019, section 3.2).

  Returns:
    A `ThreatModel`.  Its projection on ball and box together is exact up to rounding
    (Croce and Hein, 2021, "Mind the box", proposition 2.1): the changes are
    `clip(|point - center| - s, 0, room)` for one threshold s >= 0 per example, found
    by safeguarded Newton steps, to about 1e-6 of the largest change.

  Raises:
    ValueError: if `epsilon` is negative or not finite, or `top_fraction` is not in
      [0, 1].

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> ball = ddi_jax.l1(1.0)
    >>> ball.project(jnp.array([[1.0, 1.5]]), jnp.zeros((1, 2)), None)
    Array([[0.25, 0.75]], dtype=float32)
  """
  check_number("epsilon", epsilon, "[0, inf)")
  check_known("top_fraction", top_fraction)
  check_number("top_fraction", top_fraction, "[0, 1]")

  def size(perturbations: jax.Array) -> jax.Array:
    check_array("perturbations", perturbations)
    return jnp.sum(jnp.abs(_flat(perturbations)), axis=1)

  def project(points: jax.Array, centers: jax.Array, bounds: Bounds) -> jax.Array:
    _check_points(points, centers)

    def shrink(lengths: jax.Array, rooms: jax.Array) -> jax.Array:
      thresholds = _l1_threshold(lengths, rooms, epsilon)
      return jnp.clip(lengths - thresholds, 0, rooms)

    return _project_by_coordinate(shrink, points, centers, bounds)

  def random_start(key: jax.Array, centers: jax.Array, bounds: Bounds) -> jax.Array:
    check_array("centers", centers)
    sign_key, length_key, slack_key = jax.random.split(key, 3)
    flat = _flat(centers)
    signs = jax.random.rademacher(sign_key, flat.shape, centers.dtype)
    lengths = jax.random.exponential(length_key, flat.shape, centers.dtype)
    slack = jax.random.exponential(slack_key, (len(flat), 1), centers.dtype)
    total = jnp.sum(lengths, axis=1, keepdims=True) + slack
    ball = epsilon * signs * lengths / total
    return _clip(centers + ball.reshape(centers.shape), bounds)

  def steepest_ascent(
    gradients: jax.Array, points: jax.Array, bounds: Bounds
  ) -> jax.Array:
    check_array("gradients", gradients)
    check_array("points", points)
    flat = _flat(gradients)
    if bounds is not None:
      low, high = bounds
      stuck = ((points <= low) & (gradients < 0)) | ((points >= high) & (gradients > 0))
      flat = jnp.where(_flat(stuck), 0, flat)
    count = max(1, round(top_fraction * flat.shape[1]))
    smallest = kth_largest(jnp.abs(flat), count)
    signs = jnp.where(jnp.abs(flat) >= smallest, jnp.sign(flat), 0)
    steps = _unit(signs, jnp.sum(jnp.abs(signs), axis=1, keepdims=True))
    return steps.reshape(gradients.shape)

  return ThreatModel("l1", epsilon, size, project, random_start, steepest_ascent)


def check_threat_model(threat_model: Any) -> None:
  """Raise ValueError for an object that is not a threat model."""
  if not all(hasattr(threat_model, field) for field in ThreatModel._fields):
    raise ValueError(
      f"threat_model must be one such as ddi_jax.linf(8 / 255), got {threat_model!r}."
    )


def check_radius(threat_model: ThreatModel, bounds: Bounds, size: int | None) -> None:
  """Raise ValueError for a radius that exceeds the diameter of the box.

  Args:
    threat_model: a threat model of any norm; only the norms of this file are checked.
    bounds: the box, or None, which allows every radius.
    size: the number of coordinates of an example; None if it is not known yet.
  """
  epsilon, norm = threat_model.epsilon, threat_model.norm
  if bounds is None or not all(is_concrete(number) for number in (*bounds, epsilon)):
    return
  coordinates = {"linf": 1.0, "l2": float("inf"), "l1": float("inf")}
  if size is not None:
    coordinates |= {"l2": np.sqrt(size), "l1": float(size)}
  low, high = (float(end) for end in bounds)
  diameter = (high - low) * coordinates.get(norm, float("inf"))
  if float(epsilon) > diameter * (1 + 1e-6):
    raise ValueError(
      f"epsilon must be at most the {norm} diameter of the box ({low:g}, {high:g}), "
      f"{diameter:g}, got {float(epsilon):g}.  It is in the units of the inputs: "
      "8 / 255 for images in [0, 1]."
    )


def _check_points(points: Any, centers: Any) -> None:
  check_array("points", points)
  check_array("centers", centers)


def _flat(array: jax.Array) -> jax.Array:
  return array.reshape(len(array), -1)


def _unit(array: jax.Array, norms: jax.Array) -> jax.Array:
  return array / jnp.where(norms > 0, norms, 1)


def _clip(points: jax.Array, bounds: Bounds) -> jax.Array:
  return points if bounds is None else jnp.clip(points, *bounds)


def _project_by_coordinate(
  shrink: Any, points: jax.Array, centers: jax.Array, bounds: Bounds
) -> jax.Array:
  """Move each coordinate from its centre by `shrink(lengths, rooms)`, both [B, n].

  `lengths` are the distances from the centre to the point, `rooms` those from the
  centre to the wall of the box on that side.
  """
  displacements = _flat(points - centers)
  lengths = jnp.abs(displacements)
  if bounds is None:
    rooms = jnp.full_like(lengths, jnp.inf)
  else:
    low, high = bounds
    flat_centers = _flat(centers)
    rooms = jnp.where(displacements < 0, flat_centers - low, high - flat_centers)
  moved = jnp.sign(displacements) * shrink(lengths, rooms)
  return _clip(centers + moved.reshape(centers.shape), bounds)


def _l2_scale(
  offsets: jax.Array, centers: jax.Array, radius: Any, bounds: Bounds
) -> jax.Array:
  """The largest s <= 1, `[B, 1]`, with `clip(centers + s offsets)` in the ball."""

  def fit(square: jax.Array, left: jax.Array) -> jax.Array:
    return jnp.where(
      square > left, jnp.sqrt(left / jnp.where(square > 0, square, 1)), 1
    )

  if bounds is None:
    square = jnp.sum(jnp.square(offsets), axis=1, keepdims=True)
    return fit(square, jnp.square(radius).astype(square.dtype))
  low, high = bounds

  def larger(scale: jax.Array) -> jax.Array:
    # Coordinates at the wall spend their share of the radius; the others scale.
    reached = centers + scale * offsets
    free = jnp.where(offsets < 0, reached > low, reached < high)
    rooms = jnp.where(offsets < 0, low, high) - centers
    spent = jnp.sum(jnp.where(free, 0, jnp.square(rooms)), axis=1, keepdims=True)
    square = jnp.sum(jnp.where(free, jnp.square(offsets), 0), axis=1, keepdims=True)
    return fit(square, jnp.maximum(jnp.square(radius) - spent, 0))

  rounding = 1 + 8 * jnp.finfo(offsets.dtype).eps
  zero = jnp.zeros((len(offsets), 1), offsets.dtype)
  _, scale = jax.lax.while_loop(
    lambda scales: jnp.any(scales[1] > scales[0] * rounding),
    lambda scales: (scales[1], larger(scales[1])),
    (zero, larger(zero)),
  )
  return scale


def _l1_threshold(lengths: jax.Array, rooms: jax.Array, radius: Any) -> jax.Array:
  """The least s >= 0, `[B, 1]`, with sum(clip(lengths - s, 0, rooms)) <= radius."""
  rounding = 8 * jnp.finfo(lengths.dtype).eps

  def excess(threshold: jax.Array) -> tuple[jax.Array, jax.Array]:
    left = lengths - threshold
    total = jnp.sum(jnp.clip(left, 0, rooms), axis=1, keepdims=True)
    slope = jnp.sum((left > 0) & (left < rooms), axis=1, keepdims=True)
    return total - radius, slope

  def unsolved(
    low: jax.Array, high: jax.Array, threshold: jax.Array, value: Any
  ) -> jax.Array:
    wide = high - low > rounding * high
    return wide & (jnp.abs(value) > rounding * radius) & (threshold < high)

  def body(state: Any) -> Any:
    low, high, threshold, value, slope = state
    low = jnp.where(value > 0, threshold, low)
    high = jnp.where(value > 0, high, threshold)
    newton = threshold + value / jnp.maximum(slope, 1)
    inside = (newton > low) & (newton < high) & (slope > 0)
    proposal = jnp.where(inside, newton, (low + high) / 2)
    threshold = jnp.where(unsolved(*state[:4]), proposal, threshold)
    return low, high, threshold, *excess(threshold)

  zero = jnp.zeros((len(lengths), 1), lengths.dtype)
  value, slope = excess(zero)
  # The threshold is 0 if the box alone brings the point into the ball.
  high = jnp.max(lengths, axis=1, keepdims=True, initial=0.0)
  high = jnp.where(value > 0, high, 0)
  init = (zero, high, zero, value, slope)
  _, high, threshold, value, _ = jax.lax.while_loop(
    lambda state: jnp.any(unsolved(*state[:4])), body, init
  )
  return jnp.where(value > rounding * radius, high, threshold)
