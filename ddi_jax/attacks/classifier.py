"""Attacks on classifiers: functions `(key, logits_fn, inputs, labels) -> inputs`."""

from __future__ import annotations

from collections.abc import Callable
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ddi_jax import losses
from ddi_jax.attacks.projected_gradient import Attack, check_attack
from ddi_jax.attacks.remaining import expand, group_size, run_on_remaining, select
from ddi_jax.checks import (
  ONE_LOGIT,
  check_array,
  check_bounds,
  check_inside,
  check_key,
  check_labels,
  check_positive_int,
)
from ddi_jax.numerics.draws import draw_flat
from ddi_jax.reuse import reused
from ddi_jax.threat_models import Bounds, ThreatModel, check_threat_model

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

LogitsFn = Callable[..., jax.Array]
LossOfLogits = Callable[[jax.Array, jax.Array], jax.Array]


class ClassifierAttack(Protocol):
  """An attack that looks for misclassified inputs near the given ones.

  It is a pure function with static shapes, so it can be jitted and mapped.  It is a
  `lax` loop, in which most convolutions are slow on a CPU: write them with
  `ddi_jax.models.conv_general_dilated`.

  Args:
    key: one key, or keys `[B]`, one per example.  With keys `[B]`, an example's random
      numbers do not depend on the other examples or on padding.  Consumed.
    logits_fn: inputs `[B, ...]` -> logits `[B, C]`, C >= 2.  The logits of an example
      must not depend on the other examples (no BatchNorm in training mode).
    inputs: `[B, ...]`, floating point, in the box.
    labels: integers `[B]` in [0, C).

  Returns:
    Inputs `[B, ...]` of the same dtype, in the threat model and the box, misclassified
    where the attack succeeded.  For the attacker they are never worse than the given
    inputs.
  """

  def __call__(
    self,
    key: jax.Array,
    logits_fn: LogitsFn,
    inputs: Float[Array, " B *example"],
    labels: Int[Array, " B"],
  ) -> Float[Array, " B *example"]: ...


class BestPoints(NamedTuple):
  """The best point found so far for each example.

  Attributes:
    points: `[B, ...]`.
    broken: `[B]`, whether the points are misclassified.
    scores: `[B]`.  If two points are both misclassified, or both not, the one with the
      greater score is better.
    margins: `[B]`, how much the largest wrong logit exceeds the label's.
  """

  points: jax.Array
  broken: jax.Array
  scores: jax.Array
  margins: jax.Array


@reused
def classifier_attack(
  attack: Attack,
  loss: LossOfLogits = losses.cross_entropy,
  *,
  restarts: int = 1,
) -> ClassifierAttack:
  """Repeat an ordinary attack and keep the worst case of each example.

  Args:
    attack: an attack, see `ddi_jax.attacks.Attack`; for example `ddi_jax.pgd(...)`.
    loss: (logits `[B, C]`, labels `[B]`) -> losses `[B]`, to be increased.
    restarts: number of runs, each with its own key, >= 1.

  Returns:
    A `ClassifierAttack`.  For each example it returns a misclassified point if the
    input or a run's result is one, otherwise the one of these with the largest margin.
    An ordinary attack draws random numbers for the whole batch: if keys `[B]` are
    given, it uses only the first.

  Raises:
    ValueError: if `restarts` < 1.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> pgd = ddi_jax.pgd(ddi_jax.linf(0.1), steps=5, step_size=0.05)
    >>> attack = ddi_jax.attacks.classifier_attack(pgd, restarts=2)
    >>> inputs, labels = jnp.array([[0.55, 0.45, 0.3]]), jnp.array([0])
    >>> points = attack(jax.random.key(0), lambda x: x, inputs, labels)
    >>> int(points.argmax())
    1
  """
  check_positive_int("restarts", restarts)
  check_attack(attack)

  def run(
    index: Any,
    keys: jax.Array,
    logits_fn: LogitsFn,
    inputs: jax.Array,
    labels: jax.Array,
    clean_logits: jax.Array,
  ) -> BestPoints:
    del index, clean_logits
    points = attack(keys[0], lambda x: loss(logits_fn(x), labels), inputs)
    return by_margin(points, logits_fn(points), labels)

  return repeated(run, lambda num_classes: restarts, at_once=True)


def repeated(
  run: Callable[..., BestPoints],
  num_runs: Callable[[int], Any],
  *,
  at_once: bool = False,
  bounds: Bounds = None,
) -> ClassifierAttack:
  """Run an attack several times, each time on the examples that are not yet broken.

  Args:
    run: (index, keys `[b]`, logits_fn, inputs, labels, clean logits `[b, C]`) ->
      `BestPoints`, for the remaining examples or a group of them.
    num_runs: number of classes -> number of runs, which may be traced.  The runs end
      early once the whole batch is misclassified.
    at_once: whether a run gets the whole batch.  A run that draws random numbers for
      the whole batch needs this.
    bounds: the box that the inputs must lie in, or None.

  Returns:
    A `ClassifierAttack` that keeps the best point of each example.
  """

  def attack(
    key: jax.Array, logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array
  ) -> jax.Array:
    clean_logits = check_call(logits_fn, inputs, labels, bounds)
    keys = example_keys(key, inputs)

    def run_and_compare(
      index: Any, arguments: Any, best_points: BestPoints
    ) -> BestPoints:
      keys, inputs, labels, clean_logits = arguments
      run_keys = fold_in(keys, index)
      new = run(index, run_keys, logits_fn, inputs, labels, clean_logits)
      return better(best_points, new._replace(scores=new.margins))

    return run_on_remaining(
      run_and_compare,
      num_runs(clean_logits.shape[1]),
      by_margin(inputs, clean_logits, labels),
      lambda best_points: ~best_points.broken,
      (keys, inputs, labels, clean_logits),
      len(inputs) if at_once else group_size(len(inputs)),
    ).points

  return attack


def by_margin(points: jax.Array, logits: jax.Array, labels: jax.Array) -> BestPoints:
  """`BestPoints` with these logits, scored by their margins."""
  margins = losses.margin(logits, labels)
  return BestPoints(points, misclassified(logits, labels), margins, margins)


def misclassified(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Whether the largest logit is not the label's or a logit is NaN, `[B]`."""
  wrong = jnp.argmax(logits, axis=1) != labels
  return wrong | jnp.any(jnp.isnan(logits), axis=1)


def better(old: BestPoints, new: BestPoints) -> BestPoints:
  """For each example, the new point if it is better, otherwise the old one."""
  same = new.broken == old.broken
  take = (new.broken & ~old.broken) | (same & (new.scores > old.scores))
  return BestPoints(*select(take, new, old))


def targets_by_rank(
  clean_logits: jax.Array, labels: jax.Array, rank: jax.Array
) -> jax.Array:
  """The wrong class `[B]` with the `rank`-th largest logit, 0 being the largest."""
  is_label = jax.nn.one_hot(labels, clean_logits.shape[1], dtype=bool)
  order = jnp.argsort(jnp.where(is_label, -jnp.inf, clean_logits), axis=1)
  return jnp.take(order, order.shape[1] - 1 - rank, axis=1)


def random_directions(
  keys: jax.Array, threat_model: ThreatModel, inputs: jax.Array
) -> jax.Array:
  """Random perturbations of norm 1: uniform for l_inf, otherwise normal.

  Takes keys `[B]` and returns perturbations `[B, ...]`.
  """

  def draw(key: jax.Array, like: jax.Array) -> jax.Array:
    if threat_model.norm == "linf":
      return draw_flat(jax.random.uniform, key, like, minval=-1.0, maxval=1.0)
    return draw_flat(jax.random.normal, key, like)

  noise = jax.vmap(draw)(keys, inputs)
  return noise / expand(threat_model.size(noise), noise)


def example_keys(key: jax.Array, inputs: jax.Array) -> jax.Array:
  """One key per example, `[B]`."""
  check_key(key, single=False)
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  if key.ndim == 0:
    return fold_in(jnp.broadcast_to(key, (len(inputs),)), jnp.arange(len(inputs)))
  if key.shape != inputs.shape[:1]:
    raise ValueError(
      f"key must be one key or have shape {inputs.shape[:1]}, one key per example; "
      f"got {key.shape}."
    )
  return key


def fold_in(keys: jax.Array, data: Any) -> jax.Array:
  """Fold one number, or one number per key, into keys `[B]`."""
  return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(data, keys.shape))


def check_call(
  logits_fn: LogitsFn, inputs: jax.Array, labels: jax.Array, bounds: Bounds
) -> jax.Array:
  """Check the arguments of an attack, and return the logits of the inputs."""
  check_array("inputs", inputs)
  check_array("labels", labels)
  check_arguments(logits_fn)
  check_data(inputs, labels)
  check_inside(inputs, bounds)
  logits = logits_fn(inputs)
  check_logits(logits, len(inputs))
  check_labels(labels, logits.shape[1])
  return logits


def check_data(inputs: Any, labels: Any) -> None:
  """Raise ValueError unless there are examples `[N, ...]` with labels `[N]`."""
  if not jnp.issubdtype(inputs.dtype, jnp.floating):
    integers = jnp.issubdtype(inputs.dtype, jnp.integer)
    advice = "  Scale images in 0..255 to [0, 1]: inputs / 255." if integers else ""
    raise ValueError(f"inputs must be floating point, got {inputs.dtype}.{advice}")
  if inputs.ndim < 2 or not len(inputs):
    raise ValueError(
      f"inputs must be [N, ...] with N >= 1 examples, got shape {inputs.shape}."
    )
  if labels.shape != inputs.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(
      f"labels must be integers of shape {inputs.shape[:1]}, one class per example, "
      f"got {labels.dtype} of shape {labels.shape}."
    )


def check_logits(logits: Any, num_examples: int) -> None:
  """Raise ValueError unless the logits are `[B, C]` with B = `num_examples`.

  Args:
    logits: the output of a model, or its shape and dtype.
    num_examples: B.
  """
  shape, dtype = getattr(logits, "shape", None), getattr(logits, "dtype", None)
  is_floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
  if shape is None or len(shape) != 2 or shape[0] != num_examples or not is_floating:
    given = f"{dtype} {shape}" if shape is not None else type(logits).__name__
    raise ValueError(
      f"logits_fn must return logits [{num_examples}, C], one floating-point number "
      f"per class, got {given}.  Where the model returns class ids or a tuple, return "
      "its logits instead."
    )
  if shape[1] < 2:
    raise ValueError(f"logits [B, C] must have C >= 2, got C = {shape[1]}.{ONE_LOGIT}")


def check_arguments(logits_fn: LogitsFn, randomised: bool = False) -> None:
  """Raise ValueError for a model that cannot be called with inputs (and a key)."""
  arguments = ("inputs", "key") if randomised else ("inputs",)
  if not callable(logits_fn):
    raise ValueError(
      f"logits_fn must be a function of ({', '.join(arguments)}), got "
      f"{type(logits_fn).__name__}.  Parameters are bound first, as in "
      "jax.tree_util.Partial(apply, params)."
    )
  try:
    signature = inspect.signature(logits_fn)
  except (TypeError, ValueError):  # Some functions written in C.
    return
  try:
    signature.bind(*arguments)
  except TypeError as error:
    if randomised:
      advice = (
        'Version "rand" and eot_samples are for a randomised model, which takes both; '
        "for another model choose another version, or eot_samples=None."
      )
    else:
      advice = (
        "For a randomised model, which takes a key as well, call ddi_jax.autoattack "
        'with version="rand", which passes logits_fn(inputs, key); other arguments are '
        "bound first, as in jax.tree_util.Partial(apply, params)."
      )
    raise ValueError(
      f"logits_fn must be a function of ({', '.join(arguments)}), got one of "
      f"{signature}: {error}.  {advice}"
    ) from error


def check_settings(threat_model: ThreatModel, bounds: Bounds) -> None:
  """Raise ValueError for a norm without a published attack, or an impossible box."""
  check_threat_model(threat_model)
  if threat_model.norm not in ("linf", "l2", "l1"):
    raise ValueError(
      f"this attack knows the norms linf, l2 and l1, got {threat_model.norm!r}."
    )
  check_bounds(bounds)
