"""Run several attacks in turn, each on the examples that are still robust."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import copy
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

# A model is recorded by its logits on this many examples.  Rounding on another device
# may change them by this fraction of the largest logit.
_RECORDED_EXAMPLES = 4
_SAME_LOGITS = 0.01
_OF_BALL = ("threat_model", "bounds")  # Settings that one phrase describes.
_MOST_DIFFERENCES = 3  # More than these are counted, not named, in an error.


class ResumeError(ValueError):
  """A result cannot be resumed, because a different evaluation made it."""


@printed_as_table
class AutoAttackResult(NamedTuple):
  """The results of several attacks, in turn, on the examples of a data set.

  Attributes:
    attacks: names of the attacks, in order.
    clean_correct: `[N]`, whether the clean input is classified correctly.
    broken_by: `[N]`, index of the attack that found a misclassified point, -1 if none
      did.
    faced: `[N]`, how many of the attacks were run on the example.
    adversarial: `[N, ...]`, the misclassified point if one was found, otherwise the
      input; None if points are not kept.
    warnings: suspicious signs in the model or in the result, as one sentence each.
    origin: a record of the evaluation that made the result, see `ddi_jax.records`: key,
      threat model, bounds, attacks with their settings, digests of inputs and labels,
      and the model's logits on the first examples.  Only the same evaluation can resume
      the result.  None in results of earlier versions, which are resumed unchecked,
      with a warning.
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
    """Whether the example is classified correctly at all points tried, `[N]`."""
    return self.clean_correct & (self.broken_by < 0)

  @property
  def clean_accuracy(self) -> float:
    """Fraction of clean inputs that are classified correctly."""
    return float(np.mean(self.clean_correct))

  @property
  def robust_accuracy(self) -> float:
    """Fraction of robust examples: an upper bound, looser before all is finished."""
    return float(np.mean(self.robust))

  @property
  def finished(self) -> bool:
    """Whether every robust example has faced every attack."""
    return bool(np.all(self.faced[self.robust] == len(self.attacks)))

  @property
  def broken(self) -> dict[str, int]:
    """How many examples each attack broke, among those that were still robust."""
    return {
      name: int(np.sum(self.broken_by == index))
      for index, name in enumerate(self.attacks)
    }

  def table(self) -> Table:
    """The printed table: rows of cells, and notes."""
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
  """The progress of an evaluation after a batch.

  Attributes:
    attack: the name of the attack.
    done: number of examples that the attack has been run on.
    total: number of examples that the attack will be run on.
    result: the results so far.  The arrays are updated in place afterwards.
    indices: `[<= batch size]`, indices of the batch's examples.
  """

  attack: str
  done: int
  total: int
  result: AutoAttackResult
  indices: np.ndarray


AfterBatch = Callable[[Progress], bool | None]


class Stage(NamedTuple):
  """One of several attacks.

  Attributes:
    name: the attack's name, different from the others'.
    threat_model: the threat model that its points respect, with a concrete radius.
    attack: a `ClassifierAttack`.  The bound arguments of a `jax.tree_util.Partial` are
      arguments of the compiled program, which then serves all their values.
  """

  name: str
  threat_model: ThreatModel
  attack: ClassifierAttack


class Clean(NamedTuple):
  """A model's results on clean inputs.

  Attributes:
    correct: whether each input is classified correctly, `[N]`.
    logits: `[N, C]`.
  """

  correct: np.ndarray
  logits: np.ndarray


class Batches:
  """The examples of a data set in batches of one shape.

  The last batch is padded with examples that have a wrong label, so that attacks have
  nothing to do there.

  Attributes:
    inputs: `[N, ...]`, of at least float32.
    labels: `[N]`.
    logits_fn: a `jax.tree_util.Partial`.
    size: examples at a time.
    programs: the programs of `logits_fn`, compiled for this size when they are first
      called.

  Args:
    logits_fn: inputs `[B, ...]` -> logits `[B, C]`; preferably a
      `jax.tree_util.Partial`.
    inputs: `[N, ...]`, floating point; half precision is widened to float32.
    labels: integers `[N]`.
    batch_size: examples at a time, at most.
    bounds: the box `(low, high)` that holds the inputs, or None.
    randomised: whether `logits_fn` takes (inputs, key).

  Raises:
    ValueError: for data of another shape or dtype, inputs outside the box, or a model
      that takes other arguments.
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
    classifier.check_arguments(logits_fn, randomised)
    classifier.check_data(self.inputs, self.labels)
    check_inside(self.inputs, bounds)
    self.logits_fn = as_partial(logits_fn)
    self.size = min(batch_size, len(self.inputs))
    self.programs = programs_of(
      self.logits_fn, self.inputs[: self.size], randomised=randomised
    )

  def arguments(self, indices: np.ndarray, key: jax.Array) -> tuple[Any, ...]:
    """(keys, logits_fn, inputs, labels); a key depends on its example's index alone."""
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
    """Call a program on the arguments of each batch; yield (indices, its arrays)."""
    for start in range(0, len(indices), self.size):
      part = indices[start : start + self.size]
      outcome = program(*self.arguments(part, key))
      yield part, [np.asarray(array)[: len(part)] for array in outcome]

  def logits_at(
    self, points: np.ndarray, indices: np.ndarray, key: jax.Array
  ) -> np.ndarray:
    """The logits `[n, C]` at other points `[N, ...]` of the examples `indices [n]`."""
    moved = copy.copy(self)
    moved.inputs = points
    runs = moved.run(self.programs.classify, indices, key)
    return np.concatenate([logits for _, (_, logits) in runs])

  def classify(self, key: jax.Array, count: int | None = None) -> Clean:
    """Classify the first `count` clean inputs, or all."""
    runs = self.run(self.programs.classify, np.arange(len(self.inputs))[:count], key)
    wrong, logits = zip(*(outcome for _, outcome in runs), strict=True)
    return Clean(~np.concatenate(wrong), np.concatenate(logits))

  @functools.cached_property
  def record(self) -> Record:
    """A record of the examples, for `AutoAttackResult.origin`."""
    return record_of({"inputs": self.inputs, "labels": self.labels.astype(np.int64)})


def not_attacked(
  attacks: tuple[str, ...],
  clean_correct: np.ndarray,
  inputs: np.ndarray | None = None,
  origin: Record | None = None,
) -> AutoAttackResult:
  """The result before the first attack; with points if `inputs` are given."""
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
  """The result that `run_stages` starts from, with a record of the evaluation.

  Args:
    key: the key that is passed to `run_stages`.
    batches: the examples.
    names: names of the stages.
    settings: everything that the result depends on, except key, examples and model.
    clean: the model's results on the examples, if they are known.
    keep_points: whether the result holds the misclassified points.
    resume: the result of a stopped run.

  Raises:
    ResumeError: for a `resume` from a different evaluation.
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
  """Run the stages, each on the examples that are still robust.

  Args:
    key: an example's random numbers depend only on it, on the stage and on the
      example's index.
    batches: the examples.
    stages: the stages, in order.
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
  # Move the points to the host, where the clean inputs are: the same program then
  # classifies both.
  points = np.asarray(programs.attack(attack, keys, logits_fn, inputs, labels))
  broken, _ = programs.classify(keys, logits_fn, points, labels)
  return points, stage.threat_model.size(points - inputs), broken


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
  """Raise ResumeError for other attacks, or inputs of another shape."""
  theirs = (resume.faced if resume.adversarial is None else resume.adversarial).shape
  if resume.attacks != names or theirs != shape:
    raise ResumeError(
      f"resume is of {resume.attacks} on inputs of shape {theirs}, but this call is of "
      f"{names} on {shape}."
    )


def check_resume(resume: Any, kind: type, function: str) -> None:
  """Raise ValueError unless it is None or a result of the named function."""
  if resume is not None and not isinstance(resume, kind):
    raise ValueError(
      f"resume must be None or a result of {function} ({kind.__name__}), got "
      f"{type(resume).__name__}."
    )


def _differing_settings(theirs: Record, ours: Record) -> list[str]:
  """The differences between two records of `start_stages`, as one phrase each."""
  balls = [_describe_ball(record) for record in (theirs, ours)]
  phrases = []
  if balls[0] != balls[1]:
    phrases.append(
      f"it was made with the threat model {balls[0]}, this call has {balls[1]}"
    )
    # The attacks differ as well, because they are made for the threat model.
    theirs, ours = (
      {
        name: value
        for name, value in record.items()
        if name.split(".")[0] not in (*_OF_BALL, "attacks", "pgd_attack")
      }
      for record in (theirs, ours)
    )
  rest = differences(ours, theirs)
  # Names of functions say least, so they come last.
  return phrases + sorted(rest, key=lambda phrase: "<locals>" in phrase)


def _describe_ball(record: Record) -> str:
  norm, epsilon = record.get("threat_model.norm"), record.get("threat_model.epsilon")
  radius = f"{epsilon:g}" if isinstance(epsilon, int | float) else epsilon
  if "bounds.0" not in record:
    return f"{norm}({radius}) without bounds"
  low, high = (record.get(f"bounds.{index}") for index in range(2))
  return f"{norm}({radius}) in bounds ({low:g}, {high:g})"


def _check_origin(theirs: Record, ours: Record) -> None:
  """Raise ResumeError, which names the differences, if two records differ."""
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
      "resume was made by a different evaluation and cannot be resumed here: "
      f"{'; '.join(differing[:_MOST_DIFFERENCES])}{rest}."
    )
