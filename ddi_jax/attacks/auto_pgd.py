"""Auto-PGD for l_inf and l2 (Croce and Hein, 2020, algorithm 1)."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddi_jax import losses
from ddi_jax.attacks import classifier
from ddi_jax.attacks.auto_pgd_l1 import ascend_l1
from ddi_jax.attacks.classifier import BestPoints, ClassifierAttack, LogitsFn
from ddi_jax.checks import (
  check_array,
  check_number,
  check_positive_int,
  is_concrete,
)
from ddi_jax.numerics.finite import finite_or
from ddi_jax.reuse import reused
from ddi_jax.threat_models import Bounds, ThreatModel, check_radius


class _Loss(NamedTuple):
  of_logits: Callable[..., jax.Array]  # (logits, labels, targets) -> [B]
  min_classes: int


_LOSSES = {
  "ce": _Loss(lambda logits, labels, _: losses.cross_entropy(logits, labels), 2),
  "dlr": _Loss(lambda logits, labels, _: losses.dlr(logits, labels), 3),
  "targeted_dlr": _Loss(losses.targeted_dlr, 4),
}
_TARGETED = list(_LOSSES).index("targeted_dlr")
_MOMENTUM = 0.75


@reused
def apgd(
  threat_model: ThreatModel,
  *,
  loss: str = "ce",
  steps: int = 100,
  restarts: int = 1,
  targets: int = 9,
  rho: float = 0.75,
  eot_samples: int | None = None,
  bounds: Bounds = (0.0, 1.0),
) -> ClassifierAttack:
  """Auto-PGD: ascent with momentum that chooses its own step size.

  A run starts at a random point on the ball's surface with a step size of 2 epsilon.
  At checkpoints, which become denser, an example that has made too little progress
  returns to its best point and halves its step size (Croce and Hein, 2020, algorithm
  1).  For l1 the attack is l1-APGD, with three shrinking radii, see
  `ddi_jax.attacks.auto_pgd_l1`.

  A run takes `steps` + 1 gradients, or `steps` + 3 for l1.

  Args:
    threat_model: `ddi_jax.linf`, `l2` or `l1`.
    loss: "ce" (cross entropy), "dlr" (at least 3 classes), or "targeted_dlr" (at least
      4 classes), which is APGD-T: it makes a run for each of the `targets` wrong
      classes with the largest clean logits.
    steps: ascent steps in a run, >= 1.
    restarts: number of runs (per target, if targeted), >= 1.
    targets: number of target classes for "targeted_dlr", >= 1; if there are fewer wrong
      classes, all are used.
    rho: fraction of the steps between two checkpoints that must increase the loss for
      the step size to stay, in [0, 1].  Not used for l1.
    eot_samples: for a randomised model, the number of draws, >= 1.  Their mean loss,
      gradient and logits are used (expectation over transformation, Athalye et al.,
      2018), and logits_fn takes (inputs, key).  None: logits_fn takes inputs.
    bounds: the box `(low, high)` that holds the inputs, or None.

  Returns:
    A `ClassifierAttack`.  It returns a misclassified point if the input is one or a run
    visited one, otherwise the iterate of greatest loss.  If there are several runs and
    all fail, it returns the point with the largest margin.

  Raises:
    ValueError: for an argument outside its range; when the attack runs, for too few
      classes.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> attack = ddi_jax.attacks.apgd(ddi_jax.linf(0.1), steps=5)
    >>> inputs, labels = jnp.array([[0.55, 0.45, 0.3]]), jnp.array([0])
    >>> points = attack(jax.random.key(0), lambda x: x, inputs, labels)
    >>> int(points.argmax())  # the label was 0
    1
  """
  classifier.check_settings(threat_model, bounds)
  check_radius(threat_model, bounds, None)
  if loss not in _LOSSES:
    raise ValueError(f"loss must be one of {', '.join(_LOSSES)}; got {loss!r}.")
  for name, value in (("steps", steps), ("restarts", restarts), ("targets", targets)):
    check_positive_int(name, value)
  if eot_samples is not None:
    check_positive_int("eot_samples", eot_samples)
  check_number("rho", rho, "[0, 1]")
  numbers = (list(_LOSSES).index(loss), restarts, targets)
  return jax.tree_util.Partial(
    _any_apgd(threat_model, steps, rho, eot_samples, bounds),
    runs=_Runs(*(np.int32(number) for number in numbers)),
  )


def min_classes(attack: Any) -> int:
  """The number of classes that an attack needs: 2, or more for some of `apgd`."""
  runs = getattr(attack, "keywords", {}).get("runs")
  if not isinstance(runs, _Runs):
    return 2
  return list(_LOSSES.values())[int(runs.loss)].min_classes


class _Runs(NamedTuple):
  """Settings that a compiled program takes as arguments.

  Attributes:
    loss: index in `_LOSSES`.
    restarts: number of runs (per target, if targeted).
    targets: number of target classes for the targeted loss.
  """

  loss: Any
  restarts: Any
  targets: Any


@reused
def _any_apgd(
  threat_model: ThreatModel,
  steps: int,
  rho: float,
  eot_samples: int | None,
  bounds: Bounds,
) -> Callable[..., jax.Array]:
  """A `ClassifierAttack` that takes its `runs` as a keyword argument."""

  def ascend(
    evaluate: Callable[..., Any],
    keys: jax.Array,
    inputs: jax.Array,
    best_points: BestPoints,
  ) -> BestPoints:
    if threat_model.norm == "l1":
      return ascend_l1(
        evaluate,
        threat_model.epsilon,
        keys,
        inputs,
        best_points,
        steps=steps,
        bounds=bounds,
      )
    return _ascend(
      evaluate,
      threat_model,
      keys,
      inputs,
      best_points,
      steps=steps,
      rho=rho,
      bounds=bounds,
    )

  def attack(
    key: jax.Array,
    logits_fn: LogitsFn,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    runs: _Runs,
  ) -> jax.Array:
    check_array("inputs", inputs)
    check_radius(threat_model, bounds, math.prod(inputs.shape[1:]))
    keys = classifier.example_keys(key, inputs)
    clean_logits_fn = logits_fn
    if eot_samples is not None:

      def clean_logits_fn(points: jax.Array) -> jax.Array:
        return _mean(lambda k: logits_fn(points, k), keys[0], eot_samples)

    def run(
      index: Any,
      keys: jax.Array,
      clean_logits_fn: Any,
      inputs: jax.Array,
      labels: jax.Array,
      clean_logits: jax.Array,
    ) -> BestPoints:
      del clean_logits_fn
      rank = index // runs.restarts
      targets = classifier.targets_by_rank(clean_logits, labels, rank)

      def gradient(points: jax.Array, *draw: Any) -> tuple[jax.Array, Any]:
        logits, pull_back = jax.vjp(lambda x: logits_fn(x, *draw), points)
        each, slopes = _loss(runs.loss, logits, labels, targets)
        return finite_or(pull_back(slopes)[0], 0), (each, logits)

      def evaluate(points: jax.Array, step: Any) -> tuple[BestPoints, jax.Array]:
        if eot_samples is None:
          gradients, (each, logits) = gradient(points)
        else:
          key = jax.random.fold_in(keys[0], step + 1)
          gradients, (each, logits) = _mean(
            lambda draw: gradient(points, draw), key, eot_samples
          )
        best_points = classifier.by_margin(points, logits, labels)
        return best_points._replace(scores=finite_or(each, -jnp.inf)), gradients

      scores, _ = _loss(runs.loss, clean_logits, labels, targets)
      best_points = classifier.by_margin(inputs, clean_logits, labels)
      best_points = best_points._replace(scores=scores)
      start_keys = keys if eot_samples is None else classifier.fold_in(keys, 0)
      return ascend(evaluate, start_keys, inputs, best_points)

    def num_runs(num_classes: int) -> Any:
      targets = jnp.minimum(runs.targets, num_classes - 1)
      return runs.restarts * jnp.where(runs.loss == _TARGETED, targets, 1)

    repeated = classifier.repeated(
      run, num_runs, at_once=eot_samples is not None, bounds=bounds
    )
    return repeated(keys, clean_logits_fn, inputs, labels)

  return attack


def _loss(
  index: Any, logits: jax.Array, labels: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The loss with this index `[B]`, and its derivatives in the logits `[B, C]`."""

  def evaluate(loss: _Loss) -> tuple[jax.Array, jax.Array]:
    def total(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
      each = loss.of_logits(logits, labels, targets)
      return each.sum(), each

    slopes, each = jax.grad(total, has_aux=True)(logits)
    return each, slopes

  known = list(_LOSSES.values())
  if is_concrete(index):
    return evaluate(known[int(index)])
  # Compute every loss that this number of classes allows, which is cheap beside the
  # network.  Choose after differentiation, so that the derivatives of another loss have
  # no effect if they are not finite.
  found = [evaluate(loss) for loss in known if loss.min_classes <= logits.shape[1]]
  return jax.tree.map(lambda *parts: jax.lax.select_n(index, *parts), *found)


def checkpoints(steps: int) -> list[int]:
  """The steps w_1 < w_2 < ... <= `steps` after which step sizes are reconsidered.

  Equation 5 of the paper: w_j = ceil(p_j steps) with p_1 = 0.22.  Each p_j is the
  previous one plus an interval, which is the previous interval less 0.03, but at least
  0.06.
  """
  percent, interval, chosen_steps = 22, 22, []
  while percent <= 100:
    chosen_steps.append(-(-percent * steps // 100))
    interval = max(interval - 3, 6)
    percent += interval
  return sorted(set(chosen_steps))


class _State(NamedTuple):
  points: jax.Array
  previous: jax.Array  # The points that the last step was taken from.
  losses: jax.Array  # At `previous`, [B].
  best: BestPoints  # The points of greatest loss.
  best_gradients: jax.Array
  best_points: BestPoints  # The same, but misclassified points come first.
  step_sizes: jax.Array
  increases: jax.Array  # Steps since the last checkpoint that increased the loss.
  halved: jax.Array  # Whether the last checkpoint halved the step size.
  best_at_checkpoint: jax.Array


def _ascend(
  evaluate: Callable[..., Any],
  threat_model: ThreatModel,
  keys: jax.Array,
  inputs: jax.Array,
  best_points: BestPoints,
  *,
  steps: int,
  rho: float,
  bounds: Bounds,
) -> BestPoints:
  """One run of APGD, with `evaluate(points, index)` -> (`BestPoints`, gradients).

  The scores of these `BestPoints` are the losses.
  """
  lengths = np.zeros(steps + 1, np.float32)
  lengths[checkpoints(steps)] = np.diff([0, *checkpoints(steps)])
  intervals = jnp.asarray(lengths)

  def project(points: jax.Array) -> jax.Array:
    return threat_model.project(points, inputs, bounds).astype(inputs.dtype)

  def body(index: Any, s: _State) -> _State:
    current, gradients = evaluate(s.points, index)
    best_points = classifier.better(s.best_points, current)
    improved = current.scores > s.best.scores
    best, best_gradients = classifier.select(
      improved, (current, gradients), (s.best, s.best_gradients)
    )
    increases = s.increases + (current.scores > s.losses)

    # The checkpoint: conditions 1 and 2 of the paper.
    here = jnp.full(len(inputs), intervals[index] > 0)
    few = increases < rho * intervals[index]
    stuck = ~s.halved & (best.scores <= s.best_at_checkpoint)
    halve = here & (few | stuck)
    step_sizes = jnp.where(halve, s.step_sizes / 2, s.step_sizes)
    (points, _, losses, _), gradients = classifier.select(
      halve, (best, best_gradients), (current, gradients)
    )

    size = classifier.expand(step_sizes, points)
    step = threat_model.steepest_ascent(gradients, points, bounds)
    ahead = project(points + size * step)
    momentum = jnp.where(index == 0, 1.0, _MOMENTUM).astype(points.dtype)
    moved = momentum * (ahead - points) + (1 - momentum) * (points - s.previous)
    return _State(
      points=project(points + moved),
      previous=points,
      losses=losses,
      best=best,
      best_gradients=best_gradients,
      best_points=best_points,
      step_sizes=step_sizes,
      increases=jnp.where(here, 0, increases),
      halved=jnp.where(here, halve, s.halved),
      best_at_checkpoint=jnp.where(here, best.scores, s.best_at_checkpoint),
    )

  directions = classifier.random_directions(keys, threat_model, inputs)
  start = project(inputs + threat_model.epsilon * directions)
  low = jnp.full_like(best_points.scores, -jnp.inf)
  state = _State(
    points=start,
    previous=start,
    losses=-low,
    best=best_points._replace(points=start, scores=low),
    best_gradients=jnp.zeros_like(start),
    best_points=best_points,
    step_sizes=jnp.full(len(inputs), 2 * threat_model.epsilon, inputs.dtype),
    increases=jnp.zeros(len(inputs), int),
    halved=jnp.zeros(len(inputs), bool),
    best_at_checkpoint=low,
  )
  # The last of these steps + 1 evaluations evaluates the result of the last step.
  return jax.lax.fori_loop(0, steps + 1, body, state).best_points


def _mean(fn: Callable[[jax.Array], Any], key: jax.Array, draws: int) -> Any:
  """The mean of `fn(key)` over independent keys, one at a time."""

  def add(total: Any, draw: Any) -> Any:
    return jax.tree.map(jnp.add, total, fn(draw)), None

  keys = jax.random.split(key, draws)
  zero = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(fn, keys[0])
  )
  total, _ = jax.lax.scan(add, zero, keys)
  return jax.tree.map(lambda leaf: leaf / draws, total)
