"""The results of an evaluation, as JSON, figures and a table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

import ddi_jax
from ddi_jax import data
from ddi_jax.attacks.stages import Batches
from ddi_jax.tables import align
from ddi_jax.training.audit import figures
from ddi_jax.training.audit.plan import AuditSettings
from ddi_jax.training.step.validation import describe_attack
from ddi_jax.training.storage import files

RESULT_FILE = "evaluation.json"
CURVE_FILE = "robust_accuracy.png"
GRID_FILE = "adversarial_examples.png"
EXAMPLES_FILE = "adversarial_examples.npz"
_GRID_COLUMNS = 8


class Subject(NamedTuple):
  """A model, and the images on which to evaluate it.

  Attributes:
    logits_fn: the model in evaluation mode.
    inputs: images `[N, H, W, C]` in [0, 1].
    labels: `[N]`.
    step: training step of the checkpoint.
    num_classes: labels are in [0, num_classes).
  """

  logits_fn: jax.tree_util.Partial
  inputs: np.ndarray
  labels: np.ndarray
  step: int
  num_classes: int


class Results(NamedTuple):
  """The results of an evaluation; the curve is None if none was requested."""

  evaluation: ddi_jax.RobustnessEvaluation
  curve: ddi_jax.RobustnessCurve | None


class _Broken(NamedTuple):
  """The M adversarial examples; all arrays are `[M]` unless another shape is given."""

  indices: np.ndarray  # Indices of the test images.
  labels: np.ndarray
  wrong_labels: np.ndarray
  confidences: np.ndarray  # The model's probabilities of the wrong labels.
  attacks: np.ndarray  # Names of the attacks that found them.
  clean: np.ndarray  # [M, H, W, C]
  adversarial: np.ndarray


def write(
  folder: Path,
  config: ml_collections.ConfigDict,
  settings: AuditSettings,
  description: Mapping[str, Any],
  subject: Subject,
  results: Results,
  *,
  seconds: float,
) -> dict[str, Any]:
  """Write evaluation.json, figures and requested examples; print the table.

  Args:
    folder: the evaluation's folder.
    config: the run's config.
    settings: the evaluation's settings.
    description: a description of what was evaluated, for the JSON file.
    subject: the model and the images.
    results: the results of the attacks.
    seconds: time that the evaluation took.

  Returns:
    The content of evaluation.json.
  """
  evaluation, curve = results
  broken = _look_at_broken(subject, evaluation.autoattack, config.evaluation.batch_size)
  result = {
    "evaluation": settings.attacks,
    "method": config.method,
    "data": config.data.name,
    "seed": config.seed,
    **description,
    "clean_accuracy": evaluation.clean.value,
    "clean_interval": evaluation.clean.interval,
    "robust_accuracy": evaluation.robust.value,
    "robust_interval": evaluation.robust.interval,
    "broken": evaluation.autoattack.broken,
    "mean_confidence": evaluation.mean_confidence,
    "adversarial_confidence": _mean(broken.confidences),
    "temperature": evaluation.temperature,
    "pgd": {
      "attack": describe_attack(config),
      **_with_interval("", evaluation.plain_pgd),
      **_with_interval("calibrated_", evaluation.calibrated_pgd),
      **_with_interval("worst_", evaluation.worst_pgd),
    },
    "curve": None if curve is None else _describe_curve(curve),
    "warnings": list(evaluation.warnings),
    "seconds": seconds,
    "device": jax.devices()[0].device_kind,
    "versions": {"ddi_jax": ddi_jax.__version__, "jax": jax.__version__},
  }
  written = [RESULT_FILE]
  if curve is not None:
    title = (
      f"{config.method} on {config.data.name}, seed {config.seed}, "
      f"{settings.checkpoint} checkpoint"
    )
    figures.save_curve(folder / CURVE_FILE, result, title)
    written.append(CURVE_FILE)
  if len(broken.indices):
    columns = _columns(broken, data.class_names(config.data.name, subject.num_classes))
    figures.save_examples(folder / GRID_FILE, columns)
    written.append(GRID_FILE)
  if settings.save:
    _save(folder / EXAMPLES_FILE, broken)
    written.append(EXAMPLES_FILE)
  files.write_json(folder / RESULT_FILE, result)
  for name in {CURVE_FILE, GRID_FILE, EXAMPLES_FILE}.difference(written):
    # Remove files of an evaluation with other settings.
    (folder / name).unlink(missing_ok=True)
  print(_format(evaluation, result))
  print(f"Files in {folder}: {', '.join(written)}")
  return result


def _format(evaluation: ddi_jax.RobustnessEvaluation, result: Mapping[str, Any]) -> str:
  """The final table, as text."""
  rows, (broken, *notes) = evaluation.table(result["evaluation"])
  lines = [
    "",
    *align(rows),
    "",
    f"PGD: {result['pgd']['attack']}.",
    f"{broken}  {result['seconds']:.0f} s.",
    *notes,
    "",
  ]
  return "\n".join(lines)


def _describe_curve(curve: ddi_jax.RobustnessCurve) -> dict[str, Any]:
  return {
    "attacks": list(curve.attacks),
    "examples": len(curve.result.faced),
    "epsilons": list(curve.epsilons),
    "robust_accuracy": [accuracy.value for accuracy in curve.accuracies],
    "intervals": [accuracy.interval for accuracy in curve.accuracies],
  }


def _with_interval(prefix: str, accuracy: ddi_jax.Accuracy) -> dict[str, Any]:
  return {
    f"{prefix}robust_accuracy": accuracy.value,
    f"{prefix}robust_interval": accuracy.interval,
  }


def _look_at_broken(
  subject: Subject, attacked: ddi_jax.AutoAttackResult, batch_size: int
) -> _Broken:
  assert attacked.adversarial is not None  # AutoAttack keeps them.
  batches = Batches(
    subject.logits_fn, attacked.adversarial, subject.labels, batch_size, bounds=None
  )
  logits = batches.classify(jax.random.key(0)).logits
  indices = np.flatnonzero(attacked.broken_by >= 0)
  confidences = np.asarray(jax.nn.softmax(logits).max(axis=1))
  return _Broken(
    indices=indices,
    labels=subject.labels[indices],
    wrong_labels=np.argmax(logits, axis=1)[indices],
    confidences=confidences[indices],
    attacks=np.array(attacked.attacks)[attacked.broken_by[indices]],
    clean=subject.inputs[indices],
    adversarial=attacked.adversarial[indices],
  )


def _mean(values: np.ndarray) -> float | None:
  return float(np.mean(values)) if len(values) else None


def _columns(broken: _Broken, names: Sequence[str]) -> list[figures.AdversarialExample]:
  """The examples to show: first one of every class, then the others in order."""
  _, firsts = np.unique(broken.labels, return_index=True)
  others = np.setdiff1d(np.arange(len(broken.labels)), firsts)
  chosen = np.concatenate([firsts, others])[:_GRID_COLUMNS]
  return [
    figures.AdversarialExample(
      clean=broken.clean[index],
      adversarial=broken.adversarial[index],
      label=names[broken.labels[index]],
      wrong_label=names[broken.wrong_labels[index]],
      confidence=float(broken.confidences[index]),
      attack=str(broken.attacks[index]),
    )
    for index in chosen
  ]


def _save(path: Path, broken: _Broken) -> None:
  """Save the examples atomically."""
  with files.replacing(path) as temporary:
    np.savez_compressed(temporary, **broken._asdict())
