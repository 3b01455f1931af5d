"""FAB, the fast adaptive boundary attack (Croce and Hein, 2020)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddi_jax.attacks import classifier, hyperplane
from ddi_jax.attacks.classifier import BestPoints, ClassifierAttack, LogitsFn
from ddi_jax.attacks.remaining import group_size, run_on_remaining
from ddi_jax.checks import check_number, check_positive_int
from ddi_jax.numerics.finite import finite_or
from ddi_jax.reuse import reused
from ddi_jax.threat_models import Bounds, ThreatModel

_SEARCH_STEPS = 3
# The final search aims at the margin that is the sum of these fractions of the clean
# margin and of the largest logit.  It is well above rounding, so that the result is
# misclassified wherever it is evaluated again.
_SEARCH_MARGIN = 1e-5
_SEARCH_ROUNDING = 1e-5


@reused
def fab(
  threat_model: ThreatModel,
  *,
  steps: int = 100,
  restarts: int = 1,
  targets: int | None = 9,
  alpha_max: float = 0.1,
  eta: float = 1.05,
  beta: float = 0.9,
  nearest: bool = True,
  bounds: Bounds = (0.0, 1.0),
) -> ClassifierAttack:
  """FAB: the nearest misclassified inputs, by steps along the decision boundary.

  Each step projects the current point and the original one on the linearised decision
  boundary inside the box, moves both `eta` times as far, and averages the two, with a
  weight of at most `alpha_max` for the original point.  A misclassified point is
  recorded and drawn back to `beta` of its distance (Croce and Hein, 2020, "Minimally
  distorted adversarial examples with a fast adaptive boundary attack", algorithm 1).
  In the end three secant steps shorten the best perturbation, to a margin of about 1e-5
  of the logits.

  Unlike the other attacks, a run goes on after its first misclassified point.  The
  result has the least distance of all misclassified points found, so an attack with a
  large epsilon measures the distance to the decision boundary.

  Args:
    threat_model: `ddi_jax.linf`, `l2` or `l1`.
    steps: steps in a run, >= 1.  Each takes one gradient (or, untargeted, one for each
      class) and one evaluation of the logits.
    restarts: number of runs (per target, if targeted), >= 1.  The first starts at the
      input.  The others start at a random point at half the distance of the best one so
      far, or at half epsilon if that is less.
    targets: number of target classes, >= 1.  This is FAB-T: it makes a run for each of
      the wrong classes with the largest clean logits; if there are fewer than
      `targets`, all are used.  None: untargeted, each step goes towards the class with
      the nearest linearised boundary.
    alpha_max: greatest weight of the original point, in [0, 1].
    eta: overshoot, >= 1.
    beta: fraction of a misclassified point's distance at which the run continues, in
      (0, 1).
    nearest: whether all runs look for a nearer point, as in algorithm 1 of the paper.
      If False, later runs skip the examples that are already broken in the ball, which
      is equally good for robust accuracy.
    bounds: the box `(low, high)` that holds the inputs, or None.

  Returns:
    A `ClassifierAttack` that returns the nearest misclassified point if it is in the
    ball, otherwise the input.

  Raises:
    ValueError: for an argument outside its range.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> attack = ddi_jax.attacks.fab(ddi_jax.linf(0.1), steps=5)
    >>> inputs, labels = jnp.array([[0.55, 0.45, 0.3]]), jnp.array([0])
    >>> points = attack(jax.random.key(0), lambda x: x, inputs, labels)
    >>> int(points.argmax()), bool(jnp.abs(points - inputs).max() < 0.06)
    (1, True)
  """
  classifier.check_settings(threat_model, bounds)
  check_positive_int("steps", steps)
  check_positive_int("restarts", restarts)
  if targets is not None:
    check_positive_int("targets", targets)
  check_number("alpha_max", alpha_max, "[0, 1]")
  check_number("eta", eta, "[1, inf)")
  check_number("beta", beta, "(0, 1)")
  norm, size = threat_model.norm, threat_model.size
  enough = 0.0 if nearest else threat_model.epsilon

  def clip(points: jax.Array) -> jax.Array:
    return points if bounds is None else jnp.clip(points, *bounds)

  def evaluate(
    logits_fn: LogitsFn, points: jax.Array, inputs: jax.Array, labels: jax.Array
  ) -> BestPoints:
    points = clip(points).astype(inputs.dtype)
    best_points = classifier.by_margin(points, logits_fn(points), labels)
    return best_points._replace(scores=-size(points - inputs))

  def near(best_points: BestPoints, distance: float | jax.Array) -> jax.Array:
    return best_points.broken & (-best_points.scores <= distance)

  def attack(
    key: jax.Array, logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array
  ) -> jax.Array:
    clean_logits = classifier.check_call(logits_fn, inputs, labels, bounds)

    def boundary(
      points: jax.Array, labels: jax.Array, clean_logits: jax.Array, rank: Any
    ) -> tuple[jax.Array, jax.Array]:
      if targets is None:
        return _nearest_boundary(logits_fn, points, labels, norm)
      chosen = classifier.targets_by_rank(clean_logits, labels, rank)
      return _target_boundary(logits_fn, points, labels, chosen)

    def move(points: jax.Array, normals: jax.Array, values: jax.Array) -> jax.Array:
      return hyperplane.displacement(norm, points, normals, values, bounds)

    def run(index: Any, arguments: Any, best_points: BestPoints) -> BestPoints:
      keys, inputs, labels, clean_logits = arguments
      rank, restart = index // restarts, index % restarts
      start = inputs
      if restarts > 1:
        least = jnp.where(best_points.broken, -best_points.scores, jnp.inf)
        radii = jnp.where(restart > 0, jnp.minimum(least, threat_model.epsilon) / 2, 0)
        directions = classifier.random_directions(
          classifier.fold_in(keys, index), threat_model, inputs
        )
        start = clip(inputs + classifier.expand(radii, inputs) * directions)

      def step(_: Any, state: Any) -> tuple[jax.Array, BestPoints]:
        points, best_points = state
        values, normals = (
          finite_or(part, 0) for part in boundary(points, labels, clean_logits, rank)
        )
        products = jnp.sum(normals * (inputs - points), axis=range(1, inputs.ndim))
        moves = move(
          jnp.concatenate([points, inputs]),
          jnp.concatenate([normals, normals]),
          jnp.concatenate([values, values + products]),
        )
        own, clean = moves[: len(points)], moves[len(points) :]
        own_size, clean_size = size(own), size(clean)
        both = own_size + clean_size
        alpha = jnp.minimum(own_size / jnp.where(both > 0, both, 1), alpha_max)
        alpha = classifier.expand(alpha, inputs)
        points = (1 - alpha) * (points + eta * own) + alpha * (inputs + eta * clean)
        candidate = evaluate(logits_fn, points, inputs, labels)
        back = inputs + beta * (candidate.points - inputs)
        points = classifier.select(candidate.broken, back, candidate.points)
        return points, classifier.better(best_points, candidate)

      start = start.astype(inputs.dtype)
      return jax.lax.fori_loop(0, steps, step, (start, best_points))[1]

    ranks = 1 if targets is None else min(targets, clean_logits.shape[1] - 1)
    clean = classifier.by_margin(inputs, clean_logits, labels)
    best_points = run_on_remaining(
      run,
      ranks * restarts,
      clean._replace(scores=-size(inputs - inputs)),
      lambda best_points: ~near(best_points, enough),
      (classifier.example_keys(key, inputs), inputs, labels, clean_logits),
      group_size(len(inputs)),
    )
    best_points = _shorten(
      best_points,
      lambda points: evaluate(logits_fn, points, inputs, labels),
      clean,
      clean_logits,
    )
    return classifier.select(
      near(best_points, threat_model.epsilon), best_points.points, inputs
    )

  return attack


def _target_boundary(
  logits_fn: LogitsFn, points: jax.Array, labels: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(target's logit minus the label's `[B]`, its gradient `[B, ...]`)."""

  def total(points: jax.Array) -> Any:
    logits = logits_fn(points)
    rows = jnp.arange(len(logits))
    values = logits[rows, targets] - logits[rows, labels]
    return values.sum(), values

  normals, values = jax.grad(total, has_aux=True)(points)
  return values, normals


def _nearest_boundary(
  logits_fn: LogitsFn, points: jax.Array, labels: jax.Array, norm: str
) -> tuple[jax.Array, jax.Array]:
  """Like `_target_boundary`, for the class with the nearest linearised boundary."""
  logits, pull_back = jax.vjp(logits_fn, points)
  num_classes = logits.shape[1]
  is_label = jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
  own = jnp.sum(is_label * logits, axis=1)

  def dual_size(normals: jax.Array) -> jax.Array:
    flat = normals.reshape(len(normals), -1)
    return jnp.linalg.norm(flat, {"linf": 1, "l2": 2, "l1": jnp.inf}[norm], axis=1)

  def compare(best: Any, rival: Any) -> Any:
    is_rival = jnp.zeros_like(is_label).at[:, rival].set(1)
    normals = finite_or(pull_back(is_rival - is_label)[0], 0)
    values = logits[:, rival] - own
    sizes = dual_size(normals)
    distances = jnp.abs(values) / jnp.where(sizes > 0, sizes, 1)
    distances = jnp.where((sizes > 0) & (labels != rival), distances, jnp.inf)
    new = (distances, values, normals)
    return classifier.select(distances < best[0], new, best), None

  far = jnp.full(len(points), jnp.inf, logits.dtype)
  first = (far, jnp.zeros_like(own), jnp.zeros_like(points))
  (_, values, normals), _ = jax.lax.scan(compare, first, jnp.arange(num_classes))
  return values, normals


def _shorten(
  best_points: BestPoints,
  evaluate: Callable[..., Any],
  clean: BestPoints,
  clean_logits: jax.Array,
) -> BestPoints:
  """Shorten the best perturbations to a small positive margin by secant steps."""
  aims = _SEARCH_MARGIN * jnp.abs(clean.margins)
  aims += _SEARCH_ROUNDING * jnp.max(jnp.abs(clean_logits), axis=1)

  def body(_: Any, state: Any) -> Any:
    best_points, inner, outer_margins = state
    gaps = outer_margins - inner.margins
    shares = (aims - inner.margins) / jnp.where(gaps > 0, gaps, 1)
    shares = jnp.where((gaps > 0) & (aims < outer_margins), shares, 1)
    shares = jnp.clip(shares, 0, 1).astype(inner.points.dtype)
    shares = classifier.expand(shares, inner.points)
    candidate = evaluate(inner.points + shares * (best_points.points - inner.points))
    crossed = best_points.broken & candidate.broken & (candidate.margins >= aims / 2)
    best_points = classifier.better(best_points, candidate._replace(broken=crossed))
    inner = BestPoints(*classifier.select(crossed, inner, candidate))
    outer_margins = jnp.where(crossed, candidate.margins, outer_margins)
    return best_points, inner, outer_margins

  state = (best_points, clean, best_points.margins)
  return jax.lax.fori_loop(0, _SEARCH_STEPS, body, state)[0]
