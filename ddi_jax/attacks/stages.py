"""Attacks one after the other, each on the examples that have withstood the others."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
from typing import Any, NamedTuple
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from ddi_jax.attacks import classifier
from ddi_jax.attacks.classifier import ClassifierAttack, LogitsFn
from ddi_jax.attacks.programs import Programs, as_partial, programs_of
from ddi_jax.checks import check_inside, check_key
from ddi_jax.records import Record, differences, record_of
from ddi_jax.tables import Table, doubts, printed_as_table
from ddi_jax.threat_models import Bounds, ThreatModel

# A model is recorded by its logits on so many examples.  They may change by so much, of
# the largest, with the device and its rounding.
_RECORDED_EXAMPLES = 4
_SAME_LOGITS = 0.01
_OF_BALL = ("threat_model", "bounds")  # Settings, which one phrase describes.
_MOST_DIFFERENCES = 3  # That an error names.


class ResumeError(ValueError):
  """A result was made by something else than what it is to be resumed by."""


@printed_as_table
class AutoAttackResult(NamedTuple):
  """What each example of a data set went through.

  Attributes:
    attacks: names of the attacks, in order.
    clean_correct: whether the clean input is classified right, `[N]`.
    broken_by: index of the attack that found a misclassified point, -1 if none, `[N]`.
    faced: how many of the attacks the example has been through, `[N]`.
    adversarial: the misclassified point where one was found, elsewhere the input,
      `[N, ...]`; None where points are not kept.
    warnings: what looks suspicious of the model or of the outcome, a sentence each.
    origin: a record of what made it, see `ddi_jax.records`: key, threat model, bounds,
      attacks with their settings, digests of inputs and labels, and the model's logits
      on the first examples.  Only the same is resumed.  None in results of earlier
      versions, which are resumed unchecked, with a warning.
  """

  attacks: tuple[str, ...]
  clean_correct: np.ndarray
  broken_by: np.ndarray
  faced: np.ndarray
  adversarial: np.ndarray | None
  warnings: tuple[str, ...] = ()
  origin: Record | None = None

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

  def table(self) -> Table:
    """What is printed: rows of cells, and notes."""
    sign, notes = doubts(self.warnings, self.finished)
    examples = f"of {len(self.faced):,}"
    rows = [
      (type(self).__name__, "accuracy", "examples"),
      ("clean", f"{self.clean_accuracy:.3f}", examples),
      ("robust", f"{sign}{self.robust_accuracy:.3f}", examples),
      *((f"broken by {name}", "", str(count)) for name, count in self.broken.items()),
    ]
    return rows, notes


@printed_as_table
class Progress(NamedTuple):
  """Where an evaluation is after a batch.

  Attributes:
    attack: the name of the attack.
    done: examples that it has been run on.
    total: examples that it will be run on.
    result: all that is known so far.  Its arrays are updated in place afterwards.
    indices: of the batch's examples, `[<= batch size]`.
  """

  attack: str
  done: int
  total: int
  result: AutoAttackResult
  indices: np.ndarray


AfterBatch = Callable[[Progress], bool | None]


class Stage(NamedTuple):
  """One attack of several.

  Attributes:
    name: of its own among them.
    threat_model: that its points keep, of a concrete radius.
    attack: a `ClassifierAttack`.  What is bound in a `jax.tree_util.Partial` is an
      argument of the compiled program, which then serves all values of it.
  """

  name: str
  threat_model: ThreatModel
  attack: ClassifierAttack


class Clean(NamedTuple):
  """What a model makes of clean inputs.

  Attributes:
    correct: whether each is classified right, `[N]`.
    logits: `[N, C]`.
  """

  correct: np.ndarray
  logits: np.ndarray


class Batches:
  """The examples of a data set in batches of one shape.

  The last one is filled up with examples that have a wrong label: attacks have nothing
  to do there.

  Attributes:
    inputs: `[N, ...]`, of at least float32.
    labels: `[N]`.
    logits_fn: a `jax.tree_util.Partial`.
    size: examples at a time.
    programs: of `logits_fn`, compiled for this size when they are first called.

  Args:
    logits_fn: inputs `[B, ...]` -> logits `[B, C]`; best a `jax.tree_util.Partial`.
    inputs: `[N, ...]`, floating point; half precision is widened to float32.
    labels: integers `[N]`.
    batch_size: examples at a time, at most.
    bounds: the box `(low, high)` that holds the inputs, or None.
    randomised: whether `logits_fn` takes (inputs, key).

  Raises:
    ValueError: for data of another shape or type, inputs outside the box, or a model
      with other arguments.
  """

  def __init__(
    self,
    logits_fn: LogitsFn,
    inputs: Any,
    labels: Any,
    batch_size: int,
    bounds: Bounds,
    *,
    randomised: bool = False,
  ) -> None:
    self.inputs, self.labels = np.asarray(inputs), np.asarray(labels)
    if jnp.issubdtype(self.inputs.dtype, jnp.floating) and self.inputs.itemsize < 4:
      # Half precision would round points out of the ball.
      self.inputs = self.inputs.astype(np.float32)
    _check_data(self.inputs, self.labels)
    check_inside(self.inputs, bounds)
    classifier.check_arguments(logits_fn, randomised)
    self.logits_fn = as_partial(logits_fn)
    self.size = min(batch_size, len(self.inputs))
    self.programs = programs_of(
      self.logits_fn, self.inputs[: self.size], randomised=randomised
    )

  def arguments(self, indices: np.ndarray, key: jax.Array) -> tuple[Any, ...]:
    """(keys, logits_fn, inputs, labels), each example's key by its own index."""
    check_key(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
      key = jax.random.wrap_key_data(key)
    padded = np.resize(indices, self.size)
    keys = classifier.fold_in(jnp.broadcast_to(key, (self.size,)), padded)
    labels = self.labels[padded]
    labels[len(indices) :] = np.where(labels[len(indices) :] > 0, 0, 1)
    return keys, self.logits_fn, self.inputs[padded], labels

  def run(
    self, program: Callable[..., Any], indices: np.ndarray, key: jax.Array
  ) -> Iterator[tuple[np.ndarray, Any]]:
    """Calls a program of `arguments` on the indices; (indices, its arrays) by batch."""
    for start in range(0, len(indices), self.size):
      part = indices[start : start + self.size]
      outcome = program(*self.arguments(part, key))
      yield part, [np.asarray(array)[: len(part)] for array in outcome]

  def classify(self, key: jax.Array, count: int | None = None) -> Clean:
    """The first `count` clean inputs, or all."""
    runs = self.run(self.programs.classify, np.arange(len(self.inputs))[:count], key)
    wrong, logits = zip(*(outcome for _, outcome in runs), strict=True)
    return Clean(~np.concatenate(wrong), np.concatenate(logits))

  @functools.cached_property
  def record(self) -> Record:
    """Of the examples, for `AutoAttackResult.origin`."""
    return record_of({"inputs": self.inputs, "labels": self.labels.astype(np.int64)})


def not_attacked(
  attacks: tuple[str, ...],
  clean_correct: np.ndarray,
  inputs: np.ndarray | None = None,
  origin: Record | None = None,
) -> AutoAttackResult:
  """The result before the first attack; with points if given the inputs `[N, ...]`."""
  return AutoAttackResult(
    attacks=attacks,
    clean_correct=clean_correct.copy(),
    broken_by=np.full(len(clean_correct), -1),
    faced=np.zeros(len(clean_correct), int),
    adversarial=None if inputs is None else inputs.copy(),
    origin=origin,
  )


def start_stages(
  key: jax.Array,
  batches: Batches,
  names: tuple[str, ...],
  settings: Mapping[str, Any],
  *,
  clean: Clean | None = None,
  keep_points: bool = True,
  resume: AutoAttackResult | None = None,
) -> AutoAttackResult:
  """The result for `run_stages` to go on from, with a record of what makes it.

  Args:
    key: of `run_stages`.
    batches: the examples.
    names: of the stages.
    settings: all that the outcome depends on beside key, examples and model.
    clean: what the model makes of the examples, where that is known.
    keep_points: whether the result holds the misclassified points.
    resume: the result of a run that was stopped.

  Raises:
    ResumeError: for a `resume` of something else.
  """
  if clean is None:
    clean_key = jax.random.fold_in(key, len(names))
    count = None if resume is None else _RECORDED_EXAMPLES
    clean = batches.classify(clean_key, count)
  logits = np.asarray(clean.logits[:_RECORDED_EXAMPLES], np.float64)
  origin = record_of({"key": key, **settings})
  origin |= batches.record | {"logits": logits.tolist()}
  points = batches.inputs if keep_points else None
  if resume is None:
    return not_attacked(names, clean.correct, points, origin)
  _check_shapes(resume, names, batches.inputs.shape[: None if keep_points else 1])
  if resume.origin is None:
    warnings.warn(
      "AutoAttack: resume has no record of what made it (its origin is None), so "
      "nothing but the attacks' names and the shapes could be compared.",
      stacklevel=4,
    )
  else:
    _check_origin(resume.origin, origin)
  copied = jax.tree.map(np.copy, resume._replace(attacks=(), warnings=(), origin=None))
  return copied._replace(attacks=names, origin=origin)


def run_stages(
  key: jax.Array,
  batches: Batches,
  stages: Sequence[Stage],
  result: AutoAttackResult,
  *,
  bounds: Bounds,
  after_batch: AfterBatch | None = None,
) -> AutoAttackResult:
  """Runs the stages, each on the examples that have withstood the ones before.

  Args:
    key: an example's random numbers depend on it, on the stage and on the example's
      index alone.
    batches: the examples.
    stages: in order.
    result: from `start_stages`; its arrays are updated in place.
    bounds: the box that the points must not leave, or None.
    after_batch: see `ddi_jax.attacks.ensemble.Evaluate`.

  Returns:
    The result, unfinished if `after_batch` stopped the run.

  Raises:
    ValueError: for a stage that leaves the ball or the box.
  """
  for index, stage in enumerate(stages):
    pending = np.flatnonzero(result.robust & (result.faced <= index))
    stage_key = jax.random.fold_in(key, index)
    program = functools.partial(_run_and_classify, batches.programs, stage)
    done = 0
    for indices, (points, sizes, broken) in batches.run(program, pending, stage_key):
      _check_inside(stage, points, sizes, bounds)
      if result.adversarial is not None:
        result.adversarial[indices[broken]] = points[broken]
      result.broken_by[indices[broken]] = index
      result.faced[indices] = index + 1
      done += len(indices)
      progress = Progress(stage.name, done, len(pending), result, indices)
      if after_batch is not None and after_batch(progress):
        return result
  return result


def _run_and_classify(
  programs: Programs,
  stage: Stage,
  keys: jax.Array,
  logits_fn: LogitsFn,
  inputs: Any,
  labels: Any,
) -> tuple[np.ndarray, jax.Array, jax.Array]:
  """(points, sizes of the perturbations, whether each is misclassified)."""
  attack = as_partial(stage.attack)
  # On the host, like the inputs: classified by the same program.
  points = np.asarray(programs.attack(attack, keys, logits_fn, inputs, labels))
  broken, _ = programs.classify(keys, logits_fn, points, labels)
  return points, stage.threat_model.size(points - inputs), broken


def _check_data(inputs: Any, labels: Any) -> None:
  if not np.issubdtype(inputs.dtype, np.floating):
    raise ValueError(f"inputs must be floating point, got {inputs.dtype}.")
  if inputs.ndim < 2 or not len(inputs):
    raise ValueError(
      f"inputs must be [N, ...] with N >= 1 examples, got shape {inputs.shape}."
    )
  if labels.shape != inputs.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"labels must be integers [{len(inputs)}], got {labels.dtype} {labels.shape}."
    )


def _check_inside(stage: Stage, points: Any, sizes: Any, bounds: Bounds) -> None:
  lost = np.sum(~np.isfinite(points).reshape(len(points), -1).all(axis=1))
  if lost:
    raise ValueError(f"{stage.name} returned {lost} points that are not finite.")
  epsilon = float(stage.threat_model.epsilon)
  if np.any(sizes > epsilon * (1 + 1e-3) + 1e-6):
    raise ValueError(
      f"{stage.name} left the ball: a perturbation of size {np.max(sizes):g}, epsilon "
      f"{epsilon:g}."
    )
  if bounds is not None and (np.min(points) < bounds[0] or np.max(points) > bounds[1]):
    raise ValueError(f"{stage.name} left the box [{bounds[0]:g}, {bounds[1]:g}].")


def _check_shapes(
  resume: AutoAttackResult, names: tuple[str, ...], shape: tuple[int, ...]
) -> None:
  """Raises ResumeError for other attacks, or inputs of another shape."""
  theirs = (resume.faced if resume.adversarial is None else resume.adversarial).shape
  if resume.attacks != names or theirs != shape:
    raise ResumeError(
      f"resume is of {resume.attacks} on inputs {theirs}, this is of {names} on "
      f"{shape}."
    )


def check_resume(resume: Any, kind: type, function: str) -> None:
  """Raise ValueError unless it is None or a result of the named function."""
  if resume is not None and not isinstance(resume, kind):
    raise ValueError(
      f"resume must be None or a result of {function} ({kind.__name__}), got "
      f"{type(resume).__name__}."
    )


def _differing_settings(theirs: Record, ours: Record) -> list[str]:
  """What differs between two records of `start_stages`, a phrase each."""
  balls = [_describe_ball(record) for record in (theirs, ours)]
  phrases = []
  if balls[0] != balls[1]:
    phrases.append(
      f"it was made with the threat model {balls[0]}, this call has {balls[1]}"
    )
    # The attacks differ as well: they are made for the threat model.
    theirs, ours = (
      {
        name: value
        for name, value in record.items()
        if name.split(".")[0] not in (*_OF_BALL, "attacks", "pgd_attack")
      }
      for record in (theirs, ours)
    )
  rest = differences(ours, theirs)
  # The names of functions say least.
  return phrases + sorted(rest, key=lambda phrase: "<locals>" in phrase)


def _describe_ball(record: Record) -> str:
  norm, epsilon = record.get("threat_model.norm"), record.get("threat_model.epsilon")
  radius = f"{epsilon:g}" if isinstance(epsilon, int | float) else epsilon
  if "bounds.0" not in record:
    return f"{norm}({radius}) without bounds"
  low, high = (record.get(f"bounds.{index}") for index in range(2))
  return f"{norm}({radius}) in bounds ({low:g}, {high:g})"


def _check_origin(theirs: Record, ours: Record) -> None:
  """Raises ResumeError, which names what differs, if a result is of something else."""
  differing = _differing_settings(theirs | {"logits": None}, ours | {"logits": None})
  if not differing:
    before, now = (np.asarray(record.get("logits", [])) for record in (theirs, ours))
    finite = np.abs(before[np.isfinite(before)])
    allowed = _SAME_LOGITS * np.max(finite, initial=0.0)
    if before.shape != now.shape or not np.allclose(
      before, now, rtol=0, atol=allowed, equal_nan=True
    ):
      differing = ["the model has other logits on the first examples"]
  if differing:
    more = len(differing) - _MOST_DIFFERENCES
    rest = f"; and {more} more" if more > 0 else ""
    raise ResumeError(
      "resume was made by something else and cannot be resumed here: "
      f"{'; '.join(differing[:_MOST_DIFFERENCES])}{rest}."
    )
