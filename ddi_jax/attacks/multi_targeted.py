"""Multi-targeted PGD (Gowal et al., 2019)."""

from typing import Any

import jax
import jax.numpy as jnp

from ddi_jax.attacks import classifier
from ddi_jax.attacks.classifier import BestPoints, ClassifierAttack, LogitsFn
from ddi_jax.attacks.projected_gradient import pgd
from ddi_jax.checks import check_positive_int
from ddi_jax.reuse import reused
from ddi_jax.threat_models import Bounds, ThreatModel


@reused
def multi_targeted_pgd(
  threat_model: ThreatModel,
  *,
  steps: int,
  step_size: float,
  targets: int | None = None,
  restarts: int = 1,
  bounds: Bounds = (0.0, 1.0),
) -> ClassifierAttack:
  """PGD towards each wrong class in turn, on its logit minus the label's.

  Gowal et al. (2019), "An alternative surrogate loss for PGD-based adversarial
  testing", algorithm 1.

  Args:
    threat_model: see `ddi_jax.pgd`.
    steps: ascent steps in a run, >= 1.
    step_size: length of a step in the threat model's norm, > 0.
    targets: number of target classes, >= 1: the wrong classes with the largest clean
      logits.  None: all wrong classes.
    restarts: number of runs for each target, >= 1, each from a random start.
    bounds: the box `(low, high)` that holds the inputs, or None.

  Returns:
    A `ClassifierAttack`.  For each example it returns a misclassified point if the
    input or the last iterate of a run is one, otherwise the one of these with the
    largest margin.  PGD draws random numbers for the whole batch: if keys `[B]` are
    given, it uses only the first.

  Raises:
    ValueError: for an argument outside its range.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> attack = ddi_jax.attacks.multi_targeted_pgd(
    ...     ddi_jax.linf(0.1), steps=5, step_size=0.05)
    >>> inputs, labels = jnp.array([[0.55, 0.45, 0.3]]), jnp.array([0])
    >>> points = attack(jax.random.key(0), lambda x: x, inputs, labels)
    >>> int(points.argmax())
    1
  """
  attack = pgd(threat_model, steps=steps, step_size=step_size, bounds=bounds)
  check_positive_int("restarts", restarts)
  if targets is not None:
    check_positive_int("targets", targets)

  def run(
    index: Any,
    keys: jax.Array,
    logits_fn: LogitsFn,
    inputs: jax.Array,
    labels: jax.Array,
    clean_logits: jax.Array,
  ) -> BestPoints:
    chosen = classifier.targets_by_rank(clean_logits, labels, index // restarts)
    rows = jnp.arange(len(inputs))

    def difference(points: jax.Array) -> jax.Array:
      logits = logits_fn(points)
      return logits[rows, chosen] - logits[rows, labels]

    points = attack(keys[0], difference, inputs)
    return classifier.by_margin(points, logits_fn(points), labels)

  def num_runs(num_classes: int) -> int:
    return restarts * min(targets or num_classes, num_classes - 1)

  return classifier.repeated(run, num_runs, at_once=True)
