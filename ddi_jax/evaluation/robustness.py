"""How accurate a classifier is, clean and under attack, and what to think of it."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from ddi_jax import losses
from ddi_jax.attacks.classifier import ClassifierAttack, LogitsFn, classifier_attack
from ddi_jax.attacks.ensemble import attacks_of, autoattack
from ddi_jax.attacks.projected_gradient import Attack, pgd
from ddi_jax.attacks.stages import (
  AfterBatch,
  AutoAttackResult,
  Batches,
  Progress,
  Stage,
  attack_and_measure,
  classify_batch,
  not_attacked,
  run_stages,
)
from ddi_jax.checks import check_key
from ddi_jax.evaluation.accuracy import Accuracy, accuracy_of
from ddi_jax.evaluation.temperature import calibrate_temperature
from ddi_jax.threat_models import Bounds, ThreatModel, check_threat_model

# PGD's names: multiples of the calibrated temperature; None is the model as it is.
_TEMPERATURES = {
  "pgd": None,
  "pgd-calibrated": 1.0,
  "pgd-calibrated/10": 0.1,
  "pgd-calibrated*10": 10.0,
}
PGD_NAMES = tuple(_TEMPERATURES)


class RobustnessEvaluation(NamedTuple):
  """The result of `evaluate`.

  Attributes:
    mean_confidence: mean largest class probability on the clean inputs.
    temperature: of `ddi_jax.calibrate_temperature` on the clean inputs; far above 1 is
      over-confidence.
    pgd: results of PGD on the model as it is ("pgd") and on its logits divided by the
      temperature ("pgd-calibrated"), by a tenth and by ten times that; each by itself,
      without points.
    autoattack: the result that decides.
    warnings: reasons to doubt the figures, a sentence each.
  """

  mean_confidence: float
  temperature: float
  pgd: dict[str, AutoAttackResult]
  autoattack: AutoAttackResult
  warnings: tuple[str, ...] = ()

  @property
  def clean(self) -> Accuracy:
    """On the inputs as they are."""
    return accuracy_of(self.autoattack.clean_correct)

  @property
  def robust(self) -> Accuracy:
    """Against AutoAttack (or the attacks that were asked for)."""
    return accuracy_of(self.autoattack.robust)

  @property
  def plain_pgd(self) -> Accuracy:
    """Robust accuracy against PGD on the model as it is."""
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
    """Whether nothing is left to do."""
    results = (*self.pgd.values(), self.autoattack)
    return all(result.finished for result in results)


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
  """Clean and robust accuracy, and whether confidence alone made PGD believe in it.

  AutoAttack decides (see `ddi_jax.autoattack`).  Beside it stands PGD on cross entropy,
  once on the model as it is and once on its logits divided by a temperature.
  Over-confidence, which unit-norm steps create, makes the gradient of cross entropy
  vanish and PGD fail on models that are not robust; an adversary calibrates the
  temperature first, by the likelihood of clean examples, or searches for the one that
  breaks the most (Raina et al., 2024, "Extreme miscalibration and the illusion of
  adversarial robustness").  Here the first is `ddi_jax.calibrate_temperature`, on the
  inputs given, and the second the worst case of the model as it is and of a tenth, one
  and ten times that temperature.

  Args:
    key: a key; the outcome is a function of it and the other arguments.
    logits_fn: inputs `[B, ...]` -> logits `[B, C]`, not randomised; best a
      `jax.tree_util.Partial`, see `ddi_jax.autoattack`.
    inputs: `[N, ...]`, floating point.
    labels: integers `[N]` in [0, C).
    threat_model: `ddi_jax.linf`, `l2` or `l1`, whose epsilon is a number.
    version: of AutoAttack, or names of attacks, or attacks by name; not "rand".
    pgd_attack: the attack on cross entropy; None is PGD with 20 steps of
      `2.5 * epsilon / 20` from a random start, last iterate.
    pgd_restarts: of it, >= 1, worst case per example.
    batch_size: examples at a time, >= 1.
    bounds: the box `(low, high)` that holds the inputs, or None.
    after_batch: called with a `ddi_jax.attacks.Progress` after each batch of each
      attack, PGD's among them; if it returns True, the evaluation stops there.
    resume: the result of an evaluation of the same that was stopped; the outcome is
      the same as without the stop.

  Returns:
    A `RobustnessEvaluation`; stopped, all figures in it are upper bounds.

  Raises:
    ValueError: see `ddi_jax.autoattack`.

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
  check_threat_model(threat_model)
  attacks = attacks_of(threat_model, version, bounds=bounds)
  run_autoattack = autoattack(
    threat_model, attacks, batch_size=batch_size, bounds=bounds
  )
  if pgd_attack is None:
    # A step of length 0 is not an attack; at epsilon 0 any length projects back.
    step_size = 2.5 * float(threat_model.epsilon) / 20 or 1.0
    pgd_attack = pgd(threat_model, steps=20, step_size=step_size, bounds=bounds)
  attack_key, pgd_key = jax.random.split(key)
  batches = Batches(logits_fn, inputs, labels, batch_size, bounds)
  classify = jax.jit(classify_batch)
  clean = _classify_clean(batches, attack_key, classify)
  unattacked = not_attacked(tuple(attacks), clean.correct, batches.inputs)
  stopped = False

  def stop_after_batch(progress: Progress) -> bool:
    nonlocal stopped
    stopped = stopped or bool(after_batch is not None and after_batch(progress))
    return stopped

  result = run_autoattack(
    attack_key,
    batches.logits_fn,
    batches.inputs,
    batches.labels,
    after_batch=stop_after_batch,
    resume=unattacked if resume is None else resume.autoattack,
  )
  pgd_results = _attack_at_temperatures(
    _create_pgd(pgd_attack, pgd_restarts, threat_model),
    clean.temperature,
    float(threat_model.epsilon),
    pgd_key,
    batches,
    before=_pgd_results_before(result.clean_correct, resume),
    is_stopped=lambda: stopped,
    classify=classify,
    bounds=bounds,
    after_batch=stop_after_batch,
  )
  evaluation = RobustnessEvaluation(
    clean.mean_confidence, clean.temperature, pgd_results, result, result.warnings
  )
  missed = result.robust & ~np.all([x.robust for x in pgd_results.values()], axis=0)
  if not evaluation.finished or not np.any(missed):
    return evaluation
  message = (
    f"AutoAttack: PGD broke {np.sum(missed)} examples that it had not: believe the "
    'lower figure, and try version "plus".'
  )
  warnings.warn(message, stacklevel=2)
  return evaluation._replace(warnings=(*evaluation.warnings, message))


def _pgd_results_before(
  clean_correct: np.ndarray, resume: RobustnessEvaluation | None
) -> dict[str, AutoAttackResult]:
  """The results of PGD at each temperature, as a stopped evaluation left them."""
  earlier = {} if resume is None else resume.pgd
  return {
    name: earlier.get(name, not_attacked((name,), clean_correct))
    for name in _TEMPERATURES
  }


def _attack_at_temperatures(
  run_pgd: Callable[..., tuple[jax.Array, jax.Array]],
  calibrated: float,
  epsilon: float,
  key: jax.Array,
  batches: Batches,
  *,
  before: dict[str, AutoAttackResult],
  is_stopped: Callable[[], bool],
  **settings: Any,
) -> dict[str, AutoAttackResult]:
  """PGD at multiples of the calibrated temperature, each by itself, until stopped."""
  results = dict(before)
  for index, (name, multiple) in enumerate(_TEMPERATURES.items()):
    if is_stopped():
      break
    temperature = 1.0 if multiple is None else multiple * calibrated
    stage = Stage(name, epsilon, functools.partial(run_pgd, jnp.float32(temperature)))
    results[name] = run_stages(
      jax.random.fold_in(key, index),
      batches,
      [stage],
      keep_points=False,
      resume=before[name],
      **settings,
    )
  return results


class _Clean(NamedTuple):
  """What the clean inputs tell."""

  correct: np.ndarray  # [N] bool
  temperature: float
  mean_confidence: float


def _classify_clean(
  batches: Batches, key: jax.Array, classify: Callable[..., Any]
) -> _Clean:
  parts = batches.run(classify, np.arange(len(batches.inputs)), key)
  wrong, logits = zip(*(outcome for _, outcome in parts), strict=True)
  all_logits = np.concatenate(logits)
  return _Clean(
    correct=~np.concatenate(wrong),
    temperature=float(calibrate_temperature(all_logits, batches.labels)),
    mean_confidence=float(np.mean(jax.nn.softmax(all_logits).max(axis=1))),
  )


def _create_pgd(
  attack: Attack, restarts: int, threat_model: ThreatModel
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """PGD on the logits divided by a temperature: its argument, before a `Stage`'s."""

  @jax.jit
  def run(
    temperature: jax.Array,
    keys: jax.Array,
    logits_fn: LogitsFn,
    inputs: jax.Array,
    labels: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
      return losses.cross_entropy(logits / temperature, labels)

    classifier = classifier_attack(attack, loss, restarts=restarts)
    return attack_and_measure(classifier, threat_model, keys, logits_fn, inputs, labels)

  return run
