"""Clean and robust accuracy of a classifier, with reasons to doubt them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
import warnings

import jax
import numpy as np

from ddi_jax import losses
from ddi_jax.attacks.classifier import ClassifierAttack, LogitsFn, classifier_attack
from ddi_jax.attacks.ensemble import attacks_of, create_ensemble
from ddi_jax.attacks.projected_gradient import Attack, pgd
from ddi_jax.attacks.stages import (
  AfterBatch,
  AutoAttackResult,
  Batches,
  Clean,
  Progress,
  Stage,
  check_resume,
  run_stages,
  start_stages,
)
from ddi_jax.checks import check_key, check_positive_int
from ddi_jax.evaluation.accuracy import CELLS, Accuracy, accuracy_of
from ddi_jax.evaluation.temperature import calibrate_temperature
from ddi_jax.reuse import reused
from ddi_jax.tables import Table, doubts, printed_as_table
from ddi_jax.threat_models import Bounds, ThreatModel, check_threat_model

# Names of PGD's runs, with the multiple of the calibrated temperature that divides the
# logits.  None: the model is unchanged.
_TEMPERATURES = {
  "pgd": None,
  "pgd-calibrated": 1.0,
  "pgd-calibrated/10": 0.1,
  "pgd-calibrated*10": 10.0,
}
PGD_NAMES = tuple(_TEMPERATURES)


@printed_as_table
class RobustnessEvaluation(NamedTuple):
  """The result of `evaluate`.

  Attributes:
    mean_confidence: mean largest class probability on the clean inputs.
    temperature: the result of `ddi_jax.calibrate_temperature` on the clean inputs; a
      value far above 1 shows over-confidence.
    pgd: results of PGD on the unchanged model ("pgd") and on its logits divided by the
      temperature ("pgd-calibrated"), by a tenth of it ("pgd-calibrated/10") and by ten
      times it ("pgd-calibrated*10"); each result is separate, without points.
    autoattack: the result of AutoAttack, which is the decisive one.
    warnings: reasons to doubt the accuracies, as one sentence each.
  """

  mean_confidence: float
  temperature: float
  pgd: dict[str, AutoAttackResult]
  autoattack: AutoAttackResult
  warnings: tuple[str, ...] = ()

  @property
  def clean(self) -> Accuracy:
    """Accuracy on the clean inputs."""
    return accuracy_of(self.autoattack.clean_correct)

  @property
  def robust(self) -> Accuracy:
    """Robust accuracy against AutoAttack (or the attacks that were chosen)."""
    return accuracy_of(self.autoattack.robust)

  @property
  def plain_pgd(self) -> Accuracy:
    """Robust accuracy against PGD on the unchanged model."""
    return accuracy_of(self.pgd["pgd"].robust)

  @property
  def calibrated_pgd(self) -> Accuracy:
    """Robust accuracy against PGD on the logits divided by the temperature."""
    return accuracy_of(self.pgd["pgd-calibrated"].robust)

  @property
  def worst_pgd(self) -> Accuracy:
    """Robust accuracy against PGD at all temperatures, worst case per example."""
    return accuracy_of(np.all([result.robust for result in self.pgd.values()], axis=0))

  @property
  def finished(self) -> bool:
    """Whether all attacks are finished."""
    results = (*self.pgd.values(), self.autoattack)
    return all(result.finished for result in results)

  def table(self, attacks: str = "AutoAttack") -> Table:
    """The printed table: rows of cells, and notes; `attacks` names the last row."""
    sign, notes = doubts(self.warnings, self.finished)
    temperature = f"temperature {self.temperature:.3g}"
    rows = [
      ("", *CELLS),
      ("clean", *self.clean.cells()),
      ("PGD", *self.plain_pgd.cells(sign)),
      (f"PGD, calibrated: {temperature}", *self.calibrated_pgd.cells(sign)),
      ("PGD, worst of four temperatures", *self.worst_pgd.cells(sign)),
      (attacks, *self.robust.cells(sign)),
    ]
    broken = ", ".join(f"{n} {count}" for n, count in self.autoattack.broken.items())
    figures = f"Broken by {broken}.  Mean confidence {self.mean_confidence:.3f}."
    return rows, [figures, *notes]


def evaluate(
  key: jax.Array,
  logits_fn: LogitsFn,
  inputs: Any,
  labels: Any,
  threat_model: ThreatModel,
  *,
  version: str | Sequence[str] | Mapping[str, ClassifierAttack] = "standard",
  pgd_attack: Attack | None = None,
  pgd_restarts: int = 1,
  batch_size: int = 250,
  bounds: Bounds = (0.0, 1.0),
  after_batch: AfterBatch | None = None,
  resume: RobustnessEvaluation | None = None,
) -> RobustnessEvaluation:
  """Evaluate clean and robust accuracy, and whether over-confidence misleads PGD.

  The robust accuracy is that against AutoAttack (see `ddi_jax.autoattack`).  For
  comparison, PGD on cross entropy attacks the unchanged model, and its logits divided
  by a temperature.

  Over-confidence, which unit-norm steps create, makes the gradient of cross entropy
  vanish, so that PGD fails on models that are not robust.  An adversary therefore
  calibrates the temperature first, by the likelihood of clean examples, or searches for
  the temperature that breaks the most examples (Raina et al., 2024, "Extreme
  miscalibration and the illusion of adversarial robustness").  Here the calibrated
  temperature is that of `ddi_jax.calibrate_temperature` on the given inputs.  The
  search is the worst case of four runs of PGD: on the unchanged model, and at a tenth,
  one and ten times the calibrated temperature.

  Args:
    key: a key; the result depends only on it and on the other arguments.
    logits_fn: inputs `[B, ...]` -> logits `[B, C]`, not randomised; preferably a
      `jax.tree_util.Partial`, see `ddi_jax.autoattack`.
    inputs: `[N, ...]`, floating point.
    labels: integers `[N]` in [0, C).
    threat_model: `ddi_jax.linf`, `l2` or `l1`, whose epsilon is a number.
    version: a version of AutoAttack except "rand", a list of attacks' names, or a
      mapping from names to attacks.
    pgd_attack: the attack on cross entropy; None is PGD with 20 steps of
      `2.5 * epsilon / 20` from a random start, last iterate.
    pgd_restarts: number of runs of `pgd_attack`, >= 1; the worst case counts for each
      example.
    batch_size: examples at a time, >= 1.
    bounds: the box `(low, high)` that holds the inputs, or None.
    after_batch: called with a `ddi_jax.attacks.Progress` after each batch of each
      attack, PGD included; if it returns True, the evaluation stops there.
    resume: the result of a stopped evaluation with the same key, model, examples,
      threat model, bounds, attacks and PGD.  The final result is the same as without
      the stop.

  Returns:
    A `RobustnessEvaluation`.  If the evaluation was stopped, all its figures are upper
    bounds.

  Raises:
    ValueError: see `ddi_jax.autoattack`; a `resume` from a different evaluation raises
      `ddi_jax.attacks.ResumeError`.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> model = lambda x: 100 * x @ jnp.eye(4)  # Over-confident.
    >>> result = ddi_jax.evaluate(
    ...     jax.random.key(0), model, 0.5 + 0.3 * jnp.eye(4), jnp.arange(4),
    ...     ddi_jax.linf(0.1), version=["apgd-ce", "apgd-t"])
    >>> print(result.robust)
    1.000 [0.510, 1.000]
    >>> result.mean_confidence > 0.99, result.temperature > 5
    (True, True)
  """
  if isinstance(version, str) and version == "rand":
    raise ValueError(
      'version must not be "rand": PGD at a temperature is for models that are not '
      "randomised.  Use ddi_jax.autoattack."
    )
  check_key(key)
  check_resume(resume, RobustnessEvaluation, "ddi_jax.evaluate")
  check_threat_model(threat_model)
  attacks = attacks_of(threat_model, version, bounds=bounds)
  check_positive_int("batch_size", batch_size)
  if pgd_attack is None:
    # PGD needs a step of positive length; at epsilon 0 any step is projected back.
    step_size = 2.5 * float(threat_model.epsilon) / 20 or 1.0
    pgd_attack = pgd(threat_model, steps=20, step_size=step_size, bounds=bounds)
  attack_key, pgd_key = jax.random.split(key)
  batches = Batches(logits_fn, inputs, labels, batch_size, bounds)
  clean = batches.classify(attack_key)
  temperature = float(calibrate_temperature(clean.logits, batches.labels))
  stopped = False

  def stop_after_batch(progress: Progress) -> bool:
    nonlocal stopped
    stopped = stopped or bool(after_batch is not None and after_batch(progress))
    return stopped

  run = create_ensemble(threat_model, attacks, bounds=bounds)
  result = run(
    attack_key,
    batches,
    clean=clean,
    after_batch=stop_after_batch,
    resume=None if resume is None else resume.autoattack,
  )
  pgd_results = _attack_at_temperatures(
    _pgd_at_temperature(pgd_attack, pgd_restarts),
    temperature,
    {
      "threat_model": threat_model,
      "bounds": bounds,
      "pgd_attack": pgd_attack,
      "pgd_restarts": pgd_restarts,
    },
    pgd_key,
    batches,
    clean,
    earlier={} if resume is None else resume.pgd,
    is_stopped=lambda: stopped,
    after_batch=stop_after_batch,
  )
  confidences = np.asarray(jax.nn.softmax(clean.logits).max(axis=1))
  confidences = confidences[np.isfinite(confidences)]
  confidence = float(confidences.mean()) if len(confidences) else float("nan")
  evaluation = RobustnessEvaluation(
    confidence, temperature, pgd_results, result, result.warnings
  )
  missed = result.robust & ~np.all([x.robust for x in pgd_results.values()], axis=0)
  if not evaluation.finished or not np.any(missed):
    return evaluation
  message = (
    f"AutoAttack: PGD broke {np.sum(missed)} examples that AutoAttack had not: trust "
    'the lower accuracy, and try version "plus".'
  )
  warnings.warn(message, stacklevel=2)
  return evaluation._replace(warnings=(*evaluation.warnings, message))


def _attack_at_temperatures(
  pgd_at_temperature: Callable[..., jax.Array],
  calibrated: float,
  settings: Mapping[str, Any],
  key: jax.Array,
  batches: Batches,
  clean: Clean,
  *,
  earlier: Mapping[str, AutoAttackResult],
  is_stopped: Callable[[], bool],
  after_batch: AfterBatch,
) -> dict[str, AutoAttackResult]:
  """PGD at multiples of the calibrated temperature, one by one, until stopped."""
  results = {}
  for index, (name, multiple) in enumerate(_TEMPERATURES.items()):
    stage_key = jax.random.fold_in(key, index)
    results[name] = start_stages(
      stage_key,
      batches,
      (name,),
      settings,
      clean=clean,
      keep_points=False,
      resume=earlier.get(name),
    )
    if is_stopped():
      continue
    temperature = 1.0 if multiple is None else multiple * calibrated
    attack = jax.tree_util.Partial(
      pgd_at_temperature, temperature=np.float32(temperature)
    )
    results[name] = run_stages(
      stage_key,
      batches,
      [Stage(name, settings["threat_model"], attack)],
      results[name],
      bounds=settings["bounds"],
      after_batch=after_batch,
    )
  return results


@reused
def _pgd_at_temperature(attack: Attack, restarts: int) -> Callable[..., jax.Array]:
  """PGD on the logits divided by `temperature`, which is a keyword argument."""

  def run(
    key: jax.Array,
    logits_fn: LogitsFn,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    temperature: jax.Array,
  ) -> jax.Array:
    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
      return losses.cross_entropy(logits / temperature, labels)

    tempered = classifier_attack(attack, loss, restarts=restarts)
    return tempered(key, logits_fn, inputs, labels)

  return run
