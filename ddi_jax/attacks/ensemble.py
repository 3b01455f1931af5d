"""AutoAttack, an ensemble of attacks without parameters (Croce and Hein, 2020)."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, Protocol
import warnings

import jax
import numpy as np

from ddi_jax.attacks.auto_pgd import apgd, min_classes
from ddi_jax.attacks.classifier import ClassifierAttack, LogitsFn
from ddi_jax.attacks.fast_boundary import fab
from ddi_jax.attacks.model_checks import check_model
from ddi_jax.attacks.random_squares import square
from ddi_jax.attacks.stages import (
  AfterBatch,
  AutoAttackResult,
  Batches,
  Clean,
  Stage,
  check_resume,
  run_stages,
  start_stages,
)
from ddi_jax.checks import check_labels, check_positive_int, takes
from ddi_jax.threat_models import Bounds, ThreatModel, check_threat_model

_VERSIONS = {
  "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
  "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
  "rand": ("apgd-ce", "apgd-dlr"),
}
_EOT_SAMPLES = 20
# Square breaks up to this fraction of the examples even if a model hides nothing.
_USUAL_FOR_SQUARE = 0.01


class Evaluate(Protocol):
  """A function that runs attacks, each on the examples that are still robust.

  Args:
    key: a key.  An example's random numbers depend only on the key and on the example's
      index, not on the batches.  Only a randomised model draws per batch.
    logits_fn: inputs `[B, ...]` -> logits `[B, C]`; for version "rand", (inputs, key)
      -> logits.  If it is `jax.tree_util.Partial(apply, params)`, the parameters are
      arguments of the compiled programs, which then serve all parameters of these
      shapes.
    inputs: `[N, ...]`, floating point.
    labels: integers `[N]`.
    after_batch: called with the `Progress` after each batch, to show or to save it; if
      it returns True, the evaluation stops.
    resume: the result of a stopped evaluation with the same key, model, examples,
      threat model, bounds and attacks.  The final result is the same as without the
      stop.

  Returns:
    An `AutoAttackResult`.

  Raises:
    ValueError: for arguments that do not fit together; for a `resume` from a different
      evaluation (`ddi_jax.attacks.ResumeError`, which names the differences); for an
      attack that needs more classes; or for an attack that leaves the ball or the box.
  """

  def __call__(
    self,
    key: jax.Array,
    logits_fn: LogitsFn,
    inputs: Any,
    labels: Any,
    *,
    after_batch: AfterBatch | None = None,
    resume: AutoAttackResult | None = None,
  ) -> AutoAttackResult: ...


def autoattack(
  threat_model: ThreatModel,
  version: str | Sequence[str] | Mapping[str, ClassifierAttack] = "standard",
  *,
  batch_size: int = 250,
  bounds: Bounds = (0.0, 1.0),
) -> Evaluate:
  """AutoAttack: robust accuracy against several attacks, worst case per example.

  Croce and Hein (2020), "Reliable evaluation of adversarial robustness with an ensemble
  of diverse parameter-free attacks"; for l1 Croce and Hein (2021).  Every attack is
  compiled once, for one batch shape, however many examples remain.  The result's
  `warnings` name suspicious signs in the model or in the result; they are also shown by
  `warnings.warn`.

  Args:
    threat_model: `ddi_jax.linf`, `l2` or `l1`, whose epsilon is a number.
    version: "standard"; "plus" (more restarts, and untargeted attacks too); "rand" (for
      randomised models: mean gradients of 20 draws); a list of attacks' names, which
      have the settings of "standard" (see `standard_attacks`); or a mapping from names
      to attacks.
    batch_size: examples at a time, >= 1; the last batch is padded.
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
  check_positive_int("batch_size", batch_size)
  check_threat_model(threat_model)
  attacks = attacks_of(threat_model, version, bounds=bounds)
  randomised = version == "rand"
  run = create_ensemble(threat_model, attacks, bounds=bounds, randomised=randomised)

  def evaluate(
    key: jax.Array,
    logits_fn: LogitsFn,
    inputs: Any,
    labels: Any,
    *,
    after_batch: AfterBatch | None = None,
    resume: AutoAttackResult | None = None,
  ) -> AutoAttackResult:
    check_resume(resume, AutoAttackResult, "a function made by ddi_jax.autoattack")
    batches = Batches(
      logits_fn, inputs, labels, batch_size, bounds, randomised=randomised
    )
    return run(key, batches, after_batch=after_batch, resume=resume)

  return evaluate


def create_ensemble(
  threat_model: ThreatModel,
  attacks: Mapping[str, ClassifierAttack],
  *,
  bounds: Bounds,
  randomised: bool = False,
) -> Callable[..., AutoAttackResult]:
  """The function that `autoattack` runs, for given attacks.

  Args:
    threat_model: a threat model whose epsilon is a number.
    attacks: attacks by name.
    bounds: the box `(low, high)`, or None.
    randomised: whether the model takes (inputs, key).

  Returns:
    fn(key, batches, *, clean=None, after_batch=None, resume=None) -> result, where
    `clean` holds the model's results on the clean inputs, if they are known.
  """
  names = tuple(attacks)
  settings: dict[str, Any] = {"threat_model": threat_model, "bounds": bounds}
  settings["attacks"] = dict(attacks)
  stages = [Stage(name, threat_model, attack) for name, attack in attacks.items()]

  def run(
    key: jax.Array,
    batches: Batches,
    *,
    clean: Clean | None = None,
    after_batch: AfterBatch | None = None,
    resume: AutoAttackResult | None = None,
  ) -> AutoAttackResult:
    # A randomised model draws random numbers for a whole batch.
    drawn_for = {"batch_size": batches.size} if randomised else {}
    messages = check_batches(key, batches, attacks, randomised=randomised)
    for message in messages:
      warnings.warn(message, stacklevel=3)
    result = start_stages(
      key,
      batches,
      names,
      settings | drawn_for,
      clean=clean,
      resume=resume,
    )
    result = run_stages(
      key,
      batches,
      stages,
      result,
      bounds=bounds,
      after_batch=after_batch,
    )
    messages += _of_not_a_number(key, batches, result)
    by_square = result.broken.get("square", 0) if result.finished else 0
    if "square" in names[1:] and by_square > _USUAL_FOR_SQUARE * len(result.faced):
      messages.append(
        f"AutoAttack: Square, which sees no gradients, broke {by_square} of "
        f"{len(result.faced)} examples that the attacks before it had not: the model "
        "probably hides its gradients.  Run it with more queries, or attack the model "
        "adaptively."
      )
      warnings.warn(messages[-1], stacklevel=3)
    return result._replace(warnings=tuple(messages))

  return run


def _of_not_a_number(
  key: jax.Array, batches: Batches, result: AutoAttackResult
) -> list[str]:
  """A warning if examples are broken by a NaN rather than by another class."""
  broken = np.flatnonzero(result.broken_by >= 0)
  if not result.finished or not len(broken) or result.adversarial is None:
    return []
  logits = batches.logits_at(result.adversarial, broken, key)
  count = np.sum(np.isnan(logits).any(axis=1))
  if not count:
    return []
  message = (
    f"AutoAttack: at {count} of the {len(broken)} adversarial points that were found a "
    "logit is NaN, which counts as misclassified.  Mend the model there, or the "
    "robust accuracy says more about its arithmetic than about its classes."
  )
  warnings.warn(message, stacklevel=4)
  return [message]


def check_batches(
  key: jax.Array,
  batches: Batches,
  attacks: Mapping[str, ClassifierAttack],
  *,
  randomised: bool = False,
) -> list[str]:
  """Reasons to doubt the verdict of these attacks on a model.

  Raises:
    ValueError: for labels out of range, or too few classes for an attack.
  """
  check_classes(attacks, batches.programs.num_classes, batches.labels)
  keys, *_ = batches.arguments(np.arange(batches.size), key)
  messages = check_model(
    batches.logits_fn,
    batches.inputs,
    batches.labels,
    key=keys[0] if randomised else None,
    bounds=None,  # Checked before.
    batch_size=batches.size,
  )
  return [f"AutoAttack: {message}" for message in messages]


def attacks_of(
  threat_model: ThreatModel,
  version: str | Sequence[str] | Mapping[str, ClassifierAttack],
  *,
  bounds: Bounds = (0.0, 1.0),
) -> dict[str, ClassifierAttack]:
  """The attacks of `autoattack`'s argument `version`, by name and in order.

  Raises:
    ValueError: for an unknown name, or no attack at all.
  """
  if isinstance(version, Mapping):
    attacks = dict(version)
    for name, attack in attacks.items():
      if not callable(attack) or not takes(attack, "key", "logits_fn", "x", "labels"):
        raise ValueError(
          f"attack {name!r} must be a function (key, logits_fn, inputs, labels) -> "
          f"inputs, got {attack!r}.  Wrap ddi_jax.pgd(...) by "
          "ddi_jax.attacks.classifier_attack."
        )
  elif isinstance(version, str):
    attacks = standard_attacks(threat_model, version, bounds=bounds)
  else:
    attacks = named_attacks(threat_model, version, bounds=bounds)
  if not attacks:
    raise ValueError("version must hold at least one attack.")
  return attacks


def standard_attacks(
  threat_model: ThreatModel, version: str = "standard", *, bounds: Bounds = (0.0, 1.0)
) -> dict[str, ClassifierAttack]:
  """The attacks of a version of AutoAttack, by name and in order.

  Args:
    threat_model: `ddi_jax.linf`, `l2` or `l1`.
    version: "standard": APGD on cross entropy (l1: 5 restarts), targeted APGD on DLR (9
      targets, l1: 5), targeted FAB (9 targets), Square (5,000 queries).  "plus": APGD
      on cross entropy and on DLR, and FAB, with 5 restarts each, Square, and the two
      targeted attacks.  "rand": APGD on cross entropy and on DLR, each with 20 draws.
    bounds: the box `(low, high)` that holds the inputs, or None.

  Returns:
    A dictionary from names to attacks, which can be changed or extended for
    `autoattack`.

  Raises:
    ValueError: if the version is unknown.

  Example:
    >>> import ddi_jax
    >>> list(ddi_jax.attacks.standard_attacks(ddi_jax.linf(0.1)))
    ['apgd-ce', 'apgd-t', 'fab-t', 'square']
  """
  if version not in _VERSIONS:
    raise ValueError(
      f"version must be one of {', '.join(_VERSIONS)}, or a list of attacks' names, "
      f"got {version!r}."
    )
  sparse = threat_model.norm == "l1"
  restarts = 5 if version == "plus" or (sparse and version == "standard") else 1
  targets = 5 if sparse and version == "standard" else 9
  draws = _EOT_SAMPLES if version == "rand" else None
  make = functools.partial(apgd, threat_model, bounds=bounds, eot_samples=draws)
  attacks = {
    "apgd-ce": make(loss="ce", restarts=restarts),
    "apgd-dlr": make(loss="dlr", restarts=restarts),
    "apgd-t": make(loss="targeted_dlr", targets=targets),
    "fab": fab(threat_model, targets=None, restarts=5, nearest=False, bounds=bounds),
    "fab-t": fab(threat_model, nearest=False, bounds=bounds),
    "square": square(threat_model, schedule_queries=10_000, bounds=bounds),
  }
  return {name: attacks[name] for name in _VERSIONS[version]}


def named_attacks(
  threat_model: ThreatModel, names: Sequence[str], *, bounds: Bounds = (0.0, 1.0)
) -> dict[str, ClassifierAttack]:
  """Attacks by name and in order, with their settings in version "standard".

  Raises:
    ValueError: for an unknown name, or an empty list.
  """
  is_list = isinstance(names, Sequence) and not isinstance(names, str)
  if not is_list or not all(isinstance(name, str) for name in names):
    raise ValueError(
      f'attacks must be a list of names, ["apgd-ce"] say; got {names!r}.'
    )
  known = standard_attacks(threat_model, "standard", bounds=bounds)
  known |= {
    "apgd-dlr": apgd(threat_model, loss="dlr", bounds=bounds),
    "fab": fab(threat_model, targets=None, nearest=False, bounds=bounds),
  }
  unknown = [name for name in names if name not in known]
  if unknown:
    raise ValueError(
      f"attacks must be among {', '.join(known)}; got {', '.join(unknown)}."
    )
  if not names:
    raise ValueError(f"name at least one attack among {', '.join(known)}.")
  return {name: known[name] for name in names}


def check_classes(
  attacks: Mapping[str, ClassifierAttack], num_classes: int, labels: np.ndarray
) -> None:
  """Raise ValueError for labels out of range or attacks that need more classes."""
  check_labels(labels, num_classes)
  short = [
    name for name, attack in attacks.items() if min_classes(attack) > num_classes
  ]
  if short:
    allowed = ["apgd-ce", "apgd-dlr", "fab", "fab-t", "square"]
    if num_classes < 3:
      allowed.remove("apgd-dlr")
    raise ValueError(
      f"{', '.join(short)} cannot attack {num_classes} classes: DLR needs 3 of them, "
      f"targeted DLR 4.  Name attacks among {', '.join(allowed)} instead."
    )
