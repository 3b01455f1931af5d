"""Robust accuracy as a function of the radius."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
import warnings

import jax
import numpy as np

from ddi_jax.attacks.classifier import LogitsFn
from ddi_jax.attacks.ensemble import check_batches, named_attacks
from ddi_jax.attacks.stages import (
  AfterBatch,
  AutoAttackResult,
  Batches,
  ResumeError,
  Stage,
  check_resume,
  run_stages,
  start_stages,
)
from ddi_jax.checks import check_number, check_positive_int
from ddi_jax.evaluation.accuracy import CELLS, Accuracy, accuracy_of
from ddi_jax.reuse import reused
from ddi_jax.tables import Table, doubts, printed_as_table
from ddi_jax.threat_models import Bounds, ThreatModel


@printed_as_table
class RobustnessCurve(NamedTuple):
  """The result of `robustness_curve`.

  Attributes:
    epsilons: the radii, increasing.
    attacks: names of the attacks that are run at each radius, in order.
    result: the result at all radii, without points; its attacks are named "ATTACK at
      EPSILON".
  """

  epsilons: tuple[float, ...]
  attacks: tuple[str, ...]
  result: AutoAttackResult

  @property
  def accuracies(self) -> tuple[Accuracy, ...]:
    """The robust accuracy at each radius; it never increases with the radius."""
    correct, broken_by = self.result.clean_correct, self.result.broken_by
    # No attack is run at radius 0.
    rounds = np.arange(len(self.epsilons)) + (self.epsilons[0] > 0)
    return tuple(
      accuracy_of(correct & ((broken_by < 0) | (broken_by >= end)))
      for end in rounds * len(self.attacks)
    )

  def table(self) -> Table:
    """The printed table: rows of cells, and notes."""
    sign, notes = doubts(self.result.warnings, self.result.finished)
    rows = [
      (f"{epsilon:g}", *accuracy.cells(sign if epsilon > 0 else ""))
      for epsilon, accuracy in zip(self.epsilons, self.accuracies, strict=True)
    ]
    return [("epsilon", *CELLS), *rows], notes


def robustness_curve(
  key: jax.Array,
  logits_fn: LogitsFn,
  inputs: Any,
  labels: Any,
  make_threat_model: Callable[[Any], ThreatModel],
  epsilons: Sequence[float],
  *,
  attacks: Sequence[str] = ("apgd-ce", "apgd-t"),
  batch_size: int = 250,
  bounds: Bounds = (0.0, 1.0),
  after_batch: AfterBatch | None = None,
  resume: RobustnessCurve | None = None,
) -> RobustnessCurve:
  """Robust accuracy at several radii, from the smallest to the largest.

  A misclassified point that is found at one radius counts at all larger ones, so each
  radius only attacks the examples that are still robust.  Each attack is compiled once
  for all radii.

  Args:
    key: a key; the result depends only on it and on the other arguments.
    logits_fn: inputs `[B, ...]` -> logits `[B, C]`, see `ddi_jax.autoattack`.
    inputs: `[N, ...]`, floating point.
    labels: integers `[N]` in [0, C).
    make_threat_model: epsilon -> threat model, for example `ddi_jax.linf`.
    epsilons: the radii, >= 0, increasing.
    attacks: names of attacks, as for `ddi_jax.autoattack`.  The default, both kinds of
      APGD, has most of AutoAttack's strength for less than half of its time.  The
      accuracies are upper bounds.
    batch_size: examples at a time, >= 1.
    bounds: the box `(low, high)` that holds the inputs, or None.
    after_batch: called with a `ddi_jax.attacks.Progress` after each batch; if it
      returns True, the evaluation stops.
    resume: the result of a stopped evaluation with the same key, model, examples,
      radii, attacks and bounds.

  Returns:
    A `RobustnessCurve`.  The warnings of its result are also shown.

  Raises:
    ValueError: for radii that are negative or do not increase; for a `resume` from a
      different evaluation (`ddi_jax.attacks.ResumeError`); see also
      `ddi_jax.autoattack`.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> inputs = 0.3 + jnp.array([[0.1], [0.2], [0.4]]) * jnp.eye(4)[0]
    >>> curve = ddi_jax.robustness_curve(
    ...     jax.random.key(0), lambda x: x, inputs, jnp.zeros(3, int), ddi_jax.linf,
    ...     [0.0, 0.075, 0.15])
    >>> [round(accuracy.value, 2) for accuracy in curve.accuracies]
    [1.0, 0.67, 0.33]
  """
  if not callable(make_threat_model):
    raise ValueError(
      "make_threat_model must be a function of the radius, such as ddi_jax.linf, got "
      f"{type(make_threat_model).__name__}."
    )
  check_positive_int("batch_size", batch_size)
  if not isinstance(epsilons, Sequence | np.ndarray | jax.Array):
    raise ValueError(f"epsilons must be a list of numbers, got {epsilons!r}.")
  for index, epsilon in enumerate(epsilons):
    check_number(f"epsilons[{index}]", epsilon, "[0, inf)")
  radii = tuple(float(epsilon) for epsilon in epsilons)
  if not radii or any(np.diff(radii) <= 0):
    raise ValueError(
      f"epsilons must be finite numbers >= 0, increasing; got {list(epsilons)!r}."
    )
  largest = make_threat_model(radii[-1])
  known_attacks = named_attacks(largest, attacks, bounds=bounds)
  names = tuple(known_attacks)
  _check_resume(resume, radii, names)
  batches = Batches(logits_fn, inputs, labels, batch_size, bounds)
  messages = check_batches(key, batches, known_attacks)
  for message in messages:
    warnings.warn(message, stacklevel=2)
  stages = [
    Stage(
      name,
      make_threat_model(epsilon),
      jax.tree_util.Partial(
        _attack_at_radius(make_threat_model, attack, bounds),
        epsilon=np.float32(epsilon),
      ),
    )
    for name, (epsilon, attack) in _stages(radii, names).items()
  ]
  result = start_stages(
    key,
    batches,
    tuple(stage.name for stage in stages),
    {"threat_model": largest, "bounds": bounds, "attacks": known_attacks},
    keep_points=False,
    resume=None if resume is None else resume.result,
  )
  result = run_stages(
    key,
    batches,
    stages,
    result,
    bounds=bounds,
    after_batch=after_batch,
  )
  result = result._replace(warnings=tuple(messages))
  return RobustnessCurve(radii, names, result)


@reused
def _attack_at_radius(
  make_threat_model: Callable[[Any], ThreatModel], name: str, bounds: Bounds
) -> Callable[..., jax.Array]:
  """The attack of this name, which takes the radius as a keyword argument."""

  def run(
    key: jax.Array,
    logits_fn: LogitsFn,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    epsilon: jax.Array,
  ) -> jax.Array:
    threat_model = make_threat_model(epsilon)
    attack = named_attacks(threat_model, [name], bounds=bounds)[name]
    return attack(key, logits_fn, inputs, labels)

  return run


def _check_resume(
  resume: Any, radii: tuple[float, ...], names: tuple[str, ...]
) -> None:
  """Raise ValueError unless `resume` is None or a curve of these radii and attacks."""
  check_resume(resume, RobustnessCurve, "ddi_jax.robustness_curve")
  if resume is None:
    return
  for name, theirs, ours in (
    ("epsilons", resume.epsilons, radii),
    ("attacks", resume.attacks, names),
  ):
    if tuple(theirs) != ours:
      raise ResumeError(
        f"resume has the {name} {list(theirs)}, this call has {list(ours)}: only a "
        "curve with the same can be resumed."
      )


def stage_names(epsilons: Sequence[float], attacks: Sequence[str]) -> tuple[str, ...]:
  """The names of the attacks in a curve's result."""
  return tuple(_stages(epsilons, attacks))


def _stages(
  epsilons: Sequence[float], attacks: Sequence[str]
) -> dict[str, tuple[float, str]]:
  return {
    f"{attack} at {epsilon}": (epsilon, attack)
    for epsilon in epsilons
    if epsilon > 0
    for attack in attacks
  }
