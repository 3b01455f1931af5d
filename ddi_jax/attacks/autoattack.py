"""AutoAttack, an ensemble of attacks without parameters (Croce and Hein, 2020)."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, NamedTuple, Protocol
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from ddi_jax.attacks import classifier
from ddi_jax.attacks.apgd import apgd
from ddi_jax.attacks.checks import check_model
from ddi_jax.attacks.classifier import ClassifierAttack, LogitsFn
from ddi_jax.attacks.fab import fab
from ddi_jax.attacks.square import square
from ddi_jax.threat_models import Bounds, ThreatModel

_VERSIONS = {
  "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
  "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
  "rand": ("apgd-ce", "apgd-dlr"),
}
_MIN_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
_EOT_SAMPLES = 20


class AutoAttackResult(NamedTuple):
  """What each example of a data set went through.

  Attributes:
    attacks: names of the attacks, in order.
    clean_correct: whether the clean input is classified right, `[N]`.
    broken_by: index of the attack that found a misclassified point, -1 if none, `[N]`.
    faced: how many of the attacks the example has been through, `[N]`.
    adversarial: the misclassified point where one was found, elsewhere the input,
      `[N, ...]`.
  """

  attacks: tuple[str, ...]
  clean_correct: np.ndarray
  broken_by: np.ndarray
  faced: np.ndarray
  adversarial: np.ndarray

  @property
  def robust(self) -> np.ndarray:
    """Whether the example is right on all that was tried, `[N]`."""
    return self.clean_correct & (self.broken_by < 0)

  @property
  def clean_accuracy(self) -> float:
    """Fraction of clean inputs that are classified right."""
    return float(np.mean(self.clean_correct))

  @property
  def robust_accuracy(self) -> float:
    """Fraction that is robust: an upper bound, the more so before all is finished."""
    return float(np.mean(self.robust))

  @property
  def finished(self) -> bool:
    """Whether every robust example has faced every attack."""
    return bool(np.all(self.faced[self.robust] == len(self.attacks)))

  @property
  def broken(self) -> dict[str, int]:
    """How many examples each attack broke, of those that the ones before had not."""
    return {
      name: int(np.sum(self.broken_by == index))
      for index, name in enumerate(self.attacks)
    }


class Progress(NamedTuple):
  """Where an evaluation is after a batch.

  Attributes:
    attack: the name of the attack.
    done: examples that it has been run on.
    total: examples that it will be run on.
    result: all that is known so far.  Its arrays are updated in place afterwards.
  """

  attack: str
  done: int
  total: int
  result: AutoAttackResult


class Evaluate(Protocol):
  """Runs the attacks, each on the examples that have withstood the ones before.

  Args:
    key: a key.  An example's random numbers depend on it and on the example's index
      alone, not on the batches; only a randomised model draws for a batch.
    logits_fn: inputs `[B, ...]` -> logits `[B, C]`; for version "rand" (inputs, key) ->
      logits.  As `jax.tree_util.Partial(apply, params)` its parameters are arguments of
      the compiled programs, which then serve all parameters of these shapes.
    inputs: `[N, ...]`, floating point.
    labels: integers `[N]`.
    after_batch: called with the `Progress` after each batch, to show or to save it; if
      it returns True, the evaluation stops.
    resume: the result of an evaluation of the same examples that was stopped; with the
      same key the outcome is the same as without the stop.

  Returns:
    An `AutoAttackResult`.

  Raises:
    ValueError: for arguments that do not fit together, an attack that needs more
      classes, or one that leaves the ball or the box.
  """

  def __call__(
    self,
    key: jax.Array,
    logits_fn: LogitsFn,
    inputs: Any,
    labels: Any,
    *,
    after_batch: Callable[[Progress], bool | None] | None = None,
    resume: AutoAttackResult | None = None,
  ) -> AutoAttackResult: ...


def autoattack(
  threat_model: ThreatModel,
  version: str | Sequence[str] | Mapping[str, ClassifierAttack] = "standard",
  *,
  batch_size: int = 250,
  bounds: Bounds = (0.0, 1.0),
) -> Evaluate:
  """AutoAttack: the robust accuracy against several attacks, each example's worst case.

  Croce and Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble
  of diverse parameter-free attacks"; for l1 Croce and Hein (2021).  Every attack is
  compiled once, for one batch shape, whatever is left of the examples.  What looks
  suspicious of the model or of the outcome is said by `warnings.warn`.

  Args:
    threat_model: `ddi_jax.linf`, `l2` or `l1`, whose epsilon is a number.
    version: "standard", "plus" (more restarts, untargeted attacks too), "rand" (for
      randomised models: mean gradients of 20 draws), names of attacks with their
      settings in "standard" (see `standard_attacks`), or attacks by name.
    batch_size: examples at a time, >= 1; the last batch is filled up.
    bounds: the box `(low, high)` that holds the inputs, or None.

  Returns:
    fn(key, logits_fn, inputs, labels, *, after_batch=None, resume=None) ->
    `AutoAttackResult`, see `Evaluate`.

  Raises:
    ValueError: for an unknown name or an argument outside its range.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> weights = jnp.eye(4)
    >>> evaluate = ddi_jax.autoattack(ddi_jax.linf(0.1), ["apgd-ce", "apgd-t"])
    >>> inputs = jnp.array([[0.9, 0.5, 0.1, 0.1], [0.1, 0.2, 0.35, 0.1]])
    >>> result = evaluate(
    ...     jax.random.key(0), lambda x: x @ weights, inputs, jnp.array([0, 2]))
    >>> result.clean_accuracy, result.robust_accuracy, result.broken
    (1.0, 0.5, {'apgd-ce': 1, 'apgd-t': 0})
  """
  classifier.check_positive("batch_size", batch_size)
  if isinstance(version, Mapping):
    attacks = dict(version)
  elif isinstance(version, str):
    attacks = standard_attacks(threat_model, version, bounds=bounds)
  else:
    known = standard_attacks(threat_model, "standard", bounds=bounds)
    known |= {
      "apgd-dlr": apgd(threat_model, loss="dlr", bounds=bounds),
      "fab": fab(threat_model, targets=None, bounds=bounds),
    }
    unknown = [name for name in version if name not in known]
    if unknown:
      raise ValueError(
        f"attacks must be among {', '.join(known)}; got {', '.join(unknown)}."
      )
    attacks = {name: known[name] for name in version}
  if not attacks:
    raise ValueError("version must name at least one attack.")
  randomised = version == "rand"
  names = tuple(attacks)

  judge = functools.partial(_judge, randomised)
  classify = jax.jit(judge)
  attack_and_judge = {
    name: jax.jit(functools.partial(_attack_and_judge, attack, threat_model, judge))
    for name, attack in attacks.items()
  }

  def evaluate(key, logits_fn, inputs, labels, *, after_batch=None, resume=None):
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if not isinstance(logits_fn, jax.tree_util.Partial):
      logits_fn = jax.tree_util.Partial(logits_fn)
    _check_data(inputs, labels)
    size = min(batch_size, len(inputs))

    def batch_of(indices, keys):
      padded = np.resize(indices, size)
      keys = classifier.fold_in(jnp.broadcast_to(keys, (size,)), padded)
      return keys, logits_fn, inputs[padded], labels[padded]

    first = batch_of(np.arange(size), key)
    num_classes = jax.eval_shape(classify, *first)[1].shape[1]
    _check_classes(names, num_classes, labels)
    for message in check_model(
      logits_fn, *first[2:], key=first[0][0] if randomised else None, bounds=bounds
    ):
      warnings.warn(f"AutoAttack: {message}", stacklevel=2)

    if resume is None:
      result = AutoAttackResult(
        attacks=names,
        clean_correct=np.zeros(len(inputs), bool),
        broken_by=np.full(len(inputs), -1),
        faced=np.zeros(len(inputs), int),
        adversarial=inputs.copy(),
      )
      clean_key = jax.random.fold_in(key, len(names))
      for indices in _batches(np.arange(len(inputs)), size):
        wrong, _ = classify(*batch_of(indices, clean_key))
        result.clean_correct[indices] = ~np.asarray(wrong)[: len(indices)]
    else:
      result = _check_resumed(resume, names, inputs)

    for stage, name in enumerate(names):
      pending = np.flatnonzero(result.robust & (result.faced <= stage))
      stage_key = jax.random.fold_in(key, stage)
      done = 0
      for indices in _batches(pending, size):
        arguments = batch_of(indices, stage_key)
        outcome = attack_and_judge[name](*arguments)
        points, broken, sizes = (np.asarray(x)[: len(indices)] for x in outcome)
        _check_inside(name, points, sizes, threat_model, bounds)
        result.adversarial[indices[broken]] = points[broken]
        result.broken_by[indices[broken]] = stage
        result.faced[indices] = stage + 1
        done += len(indices)
        progress = Progress(name, done, len(pending), result)
        if after_batch is not None and after_batch(progress):
          return result
      if name == "square" and stage > 0 and result.broken[name]:
        warnings.warn(
          f"AutoAttack: Square, which sees no gradients, broke {result.broken[name]} "
          "examples that the attacks before it had not: the model probably hides its "
          "gradients.  Run it with more queries, or attack the model adaptively.",
          stacklevel=2,
        )
    return result

  return evaluate


def standard_attacks(
  threat_model: ThreatModel, version: str = "standard", *, bounds: Bounds = (0.0, 1.0)
) -> dict[str, ClassifierAttack]:
  """The attacks of a version of AutoAttack, by name and in order.

  Args:
    threat_model: `ddi_jax.linf`, `l2` or `l1`.
    version: "standard": APGD on cross entropy (l1: 5 restarts), targeted APGD on DLR
      (9 targets, l1: 5), targeted FAB (9 targets), Square (5,000 queries).  "plus":
      APGD on cross entropy and on DLR, and FAB, with 5 restarts each, Square, and the
      targeted two.  "rand": APGD on cross entropy and on DLR, each with 20 draws.
    bounds: the box `(low, high)` that holds the inputs, or None.

  Returns:
    The attacks by name, to be changed or extended for `autoattack`.

  Raises:
    ValueError: if the version is unknown.
  """
  if version not in _VERSIONS:
    raise ValueError(f"version must be one of {', '.join(_VERSIONS)}; got {version!r}.")
  sparse = threat_model.norm == "l1"
  restarts = 5 if version == "plus" or (sparse and version == "standard") else 1
  targets = 5 if sparse and version == "standard" else 9
  draws = _EOT_SAMPLES if version == "rand" else None
  make = functools.partial(apgd, threat_model, bounds=bounds, eot_samples=draws)
  attacks = {
    "apgd-ce": make(loss="ce", restarts=restarts),
    "apgd-dlr": make(loss="dlr", restarts=restarts),
    "apgd-t": make(loss="targeted_dlr", targets=targets),
    "fab": fab(threat_model, targets=None, restarts=5, bounds=bounds),
    "fab-t": fab(threat_model, bounds=bounds),
    "square": square(threat_model, bounds=bounds),
  }
  return {name: attacks[name] for name in _VERSIONS[version]}


def _judge(randomised, keys, logits_fn, inputs, labels):
  """(whether each is misclassified `[B]`, logits `[B, C]`)."""
  logits = logits_fn(inputs, keys[0]) if randomised else logits_fn(inputs)
  return classifier.misclassified(logits, labels), logits


def _attack_and_judge(attack, threat_model, judge, keys, logits_fn, inputs, labels):
  """(points, whether each is misclassified, distances `[B]`)."""
  points = attack(classifier.fold_in(keys, 0), logits_fn, inputs, labels)
  broken, _ = judge(classifier.fold_in(keys, 1), logits_fn, points, labels)
  return points, broken, threat_model.size(points - inputs)


def _batches(indices, size):
  for start in range(0, len(indices), size):
    yield indices[start : start + size]


def _check_data(inputs, labels):
  if not np.issubdtype(inputs.dtype, np.floating) or inputs.ndim < 2 or not len(inputs):
    raise ValueError(
      "inputs must be floating point, [N, ...] with N >= 1; got "
      f"{inputs.dtype} {inputs.shape}."
    )
  if labels.shape != inputs.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"labels must be integers [{len(inputs)}], got {labels.dtype} {labels.shape}."
    )


def _check_classes(names, num_classes, labels):
  if np.min(labels) < 0 or np.max(labels) >= num_classes:
    raise ValueError(
      f"labels must be in [0, {num_classes}), got {np.min(labels)} to {np.max(labels)}."
    )
  short = [name for name in names if _MIN_CLASSES.get(name, 2) > num_classes]
  if short:
    allowed = [
      name
      for name in ("apgd-ce", "apgd-dlr", "fab", "fab-t", "square")
      if _MIN_CLASSES.get(name, 2) <= num_classes
    ]
    raise ValueError(
      f"{', '.join(short)} cannot attack {num_classes} classes: DLR needs 3 of them, "
      f"targeted DLR 4.  Name attacks among {', '.join(allowed)} instead."
    )


def _check_inside(name, points, sizes, threat_model, bounds):
  epsilon = float(threat_model.epsilon)
  if np.any(sizes > epsilon * (1 + 1e-3) + 1e-6):
    raise ValueError(
      f"{name} left the ball: a perturbation of size {np.max(sizes):g}, epsilon "
      f"{epsilon:g}."
    )
  if bounds is not None and (np.min(points) < bounds[0] or np.max(points) > bounds[1]):
    raise ValueError(f"{name} left the box [{bounds[0]:g}, {bounds[1]:g}].")


def _check_resumed(resume, names, inputs):
  if resume.attacks != names or resume.adversarial.shape != inputs.shape:
    raise ValueError(
      f"resume is of {resume.attacks} on inputs {resume.adversarial.shape}, this is of "
      f"{names} on {inputs.shape}."
    )
  return AutoAttackResult(names, *(array.copy() for array in resume[1:]))
