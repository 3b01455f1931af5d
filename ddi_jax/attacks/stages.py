"""Attacks one after the other, each on the examples that have withstood the others."""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddi_jax.attacks import classifier
from ddi_jax.attacks.classifier import ClassifierAttack, LogitsFn
from ddi_jax.checks import check_inside, check_key
from ddi_jax.threat_models import Bounds, ThreatModel


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
  """

  attacks: tuple[str, ...]
  clean_correct: np.ndarray
  broken_by: np.ndarray
  faced: np.ndarray
  adversarial: np.ndarray | None
  warnings: tuple[str, ...] = ()

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
    epsilon: the radius that its points keep.
    run: jitted (keys `[B]`, logits_fn, inputs, labels) -> (points, size of each
      perturbation).
  """

  name: str
  epsilon: float
  run: Callable[..., tuple[jax.Array, jax.Array]]


class Batches:
  """The examples of a data set in batches of one shape.

  The last one is filled up with examples that have a wrong label: attacks have nothing
  to do there.

  Args:
    logits_fn: inputs `[B, ...]` -> logits `[B, C]`; best a `jax.tree_util.Partial`.
    inputs: `[N, ...]`, floating point.
    labels: integers `[N]`.
    batch_size: examples at a time, at most.
    bounds: the box `(low, high)` that holds the inputs, or None.

  Raises:
    ValueError: for data of another shape or type, or inputs outside the box.
  """

  def __init__(
    self,
    logits_fn: LogitsFn,
    inputs: Any,
    labels: Any,
    batch_size: int,
    bounds: Bounds,
  ) -> None:
    self.inputs, self.labels = np.asarray(inputs), np.asarray(labels)
    _check_data(self.inputs, self.labels)
    check_inside(self.inputs, bounds)
    if not isinstance(logits_fn, jax.tree_util.Partial):
      logits_fn = jax.tree_util.Partial(logits_fn)
    self.logits_fn = logits_fn
    self.size = min(batch_size, len(self.inputs))

  def arguments(self, indices: np.ndarray, key: jax.Array) -> tuple[Any, ...]:
    """(keys, logits_fn, inputs, labels), each example's key by its own index."""
    check_key(key)
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

  def logits(self, key: jax.Array, classify: Callable[..., Any]) -> np.ndarray:
    """Of all clean inputs, `[N, C]`."""
    runs = self.run(classify, np.arange(len(self.inputs)), key)
    return np.concatenate([logits for _, (_, logits) in runs])


def classify_batch(
  keys: jax.Array,
  logits_fn: LogitsFn,
  inputs: Any,
  labels: Any,
  *,
  randomised: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """(whether each is misclassified `[B]`, logits `[B, C]`)."""
  draw = (jax.random.fold_in(keys[0], 1),) if randomised else ()
  logits = logits_fn(inputs, *draw)
  classifier.check_logits(logits, len(inputs))
  return classifier.misclassified(logits, labels), logits


def attack_and_measure(
  attack: ClassifierAttack,
  threat_model: ThreatModel,
  keys: jax.Array,
  logits_fn: LogitsFn,
  inputs: jax.Array,
  labels: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """(points, sizes `[B]`), for a `Stage`."""
  points = attack(keys, logits_fn, inputs, labels)
  return points, threat_model.size(points - inputs)


def not_attacked(
  attacks: tuple[str, ...],
  clean_correct: np.ndarray,
  inputs: np.ndarray | None = None,
) -> AutoAttackResult:
  """The result before the first attack; with points if given the inputs `[N, ...]`."""
  return AutoAttackResult(
    attacks=attacks,
    clean_correct=clean_correct.copy(),
    broken_by=np.full(len(clean_correct), -1),
    faced=np.zeros(len(clean_correct), int),
    adversarial=None if inputs is None else inputs.copy(),
  )


def run_stages(
  key: jax.Array,
  batches: Batches,
  stages: Sequence[Stage],
  *,
  classify: Callable[..., Any],
  bounds: Bounds,
  keep_points: bool = True,
  after_batch: AfterBatch | None = None,
  resume: AutoAttackResult | None = None,
) -> AutoAttackResult:
  """Runs the stages, each on the examples that have withstood the ones before.

  Args:
    key: an example's random numbers depend on it, on the stage and on the example's
      index alone.
    batches: the examples.
    stages: in order.
    classify: jitted `classify_batch`, of the clean inputs and of what the attacks find.
    bounds: the box that the points must not leave, or None.
    keep_points: whether the result holds the misclassified points.
    after_batch: see `ddi_jax.attacks.ensemble.Evaluate`.
    resume: the result of a run that was stopped.

  Returns:
    The result, unfinished if `after_batch` stopped the run.

  Raises:
    ValueError: for a `resume` of something else, or a stage that leaves the ball or
      the box.
  """
  names = tuple(stage.name for stage in stages)
  everything = np.arange(len(batches.inputs))
  if resume is None:
    points = batches.inputs if keep_points else None
    result = not_attacked(names, np.zeros(len(everything), bool), points)
    clean_key = jax.random.fold_in(key, len(names))
    for indices, (wrong, _) in batches.run(classify, everything, clean_key):
      result.clean_correct[indices] = ~wrong
  else:
    result = _check_resumed(resume, names, batches.inputs, keep_points)

  for index, stage in enumerate(stages):
    pending = np.flatnonzero(result.robust & (result.faced <= index))
    stage_key = jax.random.fold_in(key, index)
    program = functools.partial(_run_and_classify, stage.run, classify)
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
  run: Callable[..., Any],
  classify: Callable[..., Any],
  keys: jax.Array,
  logits_fn: LogitsFn,
  inputs: Any,
  labels: Any,
) -> tuple[np.ndarray, jax.Array, jax.Array]:
  """(points, sizes, whether each is misclassified), by the program of the inputs."""
  points, sizes = run(keys, logits_fn, inputs, labels)
  # On the host, like the inputs: the same program for both.
  points = np.asarray(points)
  return points, sizes, classify(keys, logits_fn, points, labels)[0]


def _check_data(inputs: Any, labels: Any) -> None:
  if not np.issubdtype(inputs.dtype, np.floating) or inputs.ndim < 2 or not len(inputs):
    raise ValueError(
      "inputs must be floating point, [N, ...] with N >= 1; got "
      f"{inputs.dtype} {inputs.shape}."
    )
  if labels.shape != inputs.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"labels must be integers [{len(inputs)}], got {labels.dtype} {labels.shape}."
    )


def _check_inside(stage: Stage, points: Any, sizes: Any, bounds: Bounds) -> None:
  lost = np.sum(~np.isfinite(points).reshape(len(points), -1).all(axis=1))
  if lost:
    raise ValueError(f"{stage.name} returned {lost} points that are not finite.")
  if np.any(sizes > stage.epsilon * (1 + 1e-3) + 1e-6):
    raise ValueError(
      f"{stage.name} left the ball: a perturbation of size {np.max(sizes):g}, epsilon "
      f"{stage.epsilon:g}."
    )
  if bounds is not None and (np.min(points) < bounds[0] or np.max(points) > bounds[1]):
    raise ValueError(f"{stage.name} left the box [{bounds[0]:g}, {bounds[1]:g}].")


def _check_resumed(
  resume: AutoAttackResult, names: tuple[str, ...], inputs: Any, keep_points: bool
) -> AutoAttackResult:
  shape = inputs.shape if keep_points else inputs.shape[:1]
  theirs = (resume.faced if resume.adversarial is None else resume.adversarial).shape
  if resume.attacks != names or theirs != shape:
    raise ValueError(
      f"resume is of {resume.attacks} on inputs {theirs}, this is of {names} on "
      f"{shape}."
    )
  return jax.tree.map(np.copy, resume._replace(attacks=(), warnings=()))._replace(
    attacks=names
  )
