"""Per-example losses of logits, for training and for attacks to increase.

Every function takes logits `[..., C]` and returns losses `[...]`, in float32 at least.
Labels outside [0, C) raise a ValueError if their values are known.  Under `jax.jit`
they are unknown, and such labels make the loss NaN or that of another class: check them
beforehand with `ddi_jax.check_examples`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ddi_jax.checks import ONE_LOGIT, check_array, check_labels
from ddi_jax.numerics.precision import at_least_float32

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int


def cross_entropy(
  logits: Float[Array, "*batch C"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
  """Cross entropy in nats.

  Args:
    logits: `[..., C]`, C >= 2.
    labels: integers `[...]` in [0, C).

  Returns:
    Losses `[...]`, >= 0.

  Raises:
    ValueError: if C < 2.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> loss = ddi_jax.losses.cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([0]))
    >>> round(float(loss[0]), 3)
    0.693
  """
  logits = _check(logits, labels, min_classes=2)
  return -_pick(jax.nn.log_softmax(logits), labels)


def margin(
  logits: Float[Array, "*batch C"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
  """Largest wrong logit minus the label's logit: positive if misclassified.

  The loss of Carlini and Wagner (2017, section V-A, f_6) without its clamp.

  Args:
    logits: `[..., C]`, C >= 2.
    labels: integers `[...]` in [0, C).

  Returns:
    Losses `[...]`.

  Raises:
    ValueError: if C < 2.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> ddi_jax.losses.margin(jnp.array([[3.0, 1.0], [3.0, 1.0]]), jnp.array([0, 1]))
    Array([-2.,  2.], dtype=float32)
  """
  logits = _check(logits, labels, min_classes=2)
  return _best_rival(logits, labels) - _pick(logits, labels)


def dlr(
  logits: Float[Array, "*batch C"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
  """Difference-of-logits ratio: the margin over the spread of the top three logits.

  Shifting or scaling the logits does not change it, so over-confidence cannot hide a
  model's weakness from it (Croce and Hein, 2020, equation 6).

  Args:
    logits: `[..., C]`, C >= 3.
    labels: integers `[...]` in [0, C).

  Returns:
    Losses `[...]`, at least -1; positive if misclassified.

  Raises:
    ValueError: if C < 3.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> logits = jnp.array([[4.0, 2.0, 0.0]])
    >>> ddi_jax.losses.dlr(logits, jnp.array([0]))
    Array([-0.5], dtype=float32)
    >>> ddi_jax.losses.dlr(10 * logits, jnp.array([0]))
    Array([-0.5], dtype=float32)
  """
  logits = _check(logits, labels, min_classes=3)
  top = jax.lax.top_k(logits, 3)[0]
  difference = _best_rival(logits, labels) - _pick(logits, labels)
  return difference / (top[..., 0] - top[..., 2] + 1e-12)


def targeted_dlr(
  logits: Float[Array, "*batch C"],
  labels: Int[Array, "*batch"],
  targets: Int[Array, "*batch"],
) -> Float[Array, "*batch"]:
  """Targeted difference-of-logits ratio (Croce and Hein, 2020, equation 7).

  Args:
    logits: `[..., C]`, C >= 4.
    labels: integers `[...]` in [0, C), the true classes.
    targets: integers `[...]` in [0, C), the classes to be reached.

  Returns:
    Losses `[...]`; positive if the target's logit is above the true class's.

  Raises:
    ValueError: if C < 4.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> logits = jnp.array([[4.0, 2.0, 1.0, 1.0]])
    >>> loss = ddi_jax.losses.targeted_dlr(logits, jnp.array([0]), jnp.array([1]))
    >>> round(float(loss[0]), 3)
    -0.667
  """
  logits = _check(logits, labels, min_classes=4)
  check_array("targets", targets)
  top = jax.lax.top_k(logits, 4)[0]
  difference = _pick(logits, targets) - _pick(logits, labels)
  spread = top[..., 0] - (top[..., 2] + top[..., 3]) / 2
  return difference / (spread + 1e-12)


def kl_divergence(
  logits: Float[Array, "*batch C"], reference_logits: Float[Array, "*batch C"]
) -> Float[Array, "*batch"]:
  """KL(reference || model) in nats, TRADES' inner loss (Zhang et al., 2019, eq. 5).

  Args:
    logits: `[..., C]`, the model's output, for example at the perturbed inputs.
    reference_logits: `[..., C]`, for example at the clean inputs.

  Returns:
    Losses `[...]`, >= 0 up to rounding.

  Raises:
    ValueError: if the shapes differ.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> logits = jnp.array([[0.0, 1.0]])
    >>> ddi_jax.losses.kl_divergence(logits, logits)
    Array([0.], dtype=float32)
  """
  check_array("logits", logits)
  check_array("reference_logits", reference_logits)
  if logits.shape != reference_logits.shape:
    raise ValueError(
      "logits and reference_logits must have the same shape, got "
      f"{logits.shape} and {reference_logits.shape}."
    )
  log_model = jax.nn.log_softmax(at_least_float32(logits))
  log_reference = jax.nn.log_softmax(at_least_float32(reference_logits))
  return jnp.sum(jnp.exp(log_reference) * (log_reference - log_model), axis=-1)


def _check(logits: jax.Array, labels: jax.Array, *, min_classes: int) -> jax.Array:
  check_array("logits", logits)
  check_array("labels", labels)
  if logits.ndim < 1 or logits.shape[:-1] != labels.shape:
    raise ValueError(
      "logits must be [..., C] and labels [...], one class per row of logits, got "
      f"{logits.shape} and {labels.shape}.  Where the model returns class ids, return "
      "its logits instead."
    )
  if not jnp.issubdtype(logits.dtype, jnp.floating):
    raise ValueError(f"logits must be floating point, got {logits.dtype}.")
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f"labels must be integers, got {labels.dtype}.")
  if logits.shape[-1] < min_classes:
    raise ValueError(
      f"this loss needs at least {min_classes} classes, got {logits.shape[-1]}."
      + (ONE_LOGIT if logits.shape[-1] == 1 else "")
    )
  check_labels(labels, logits.shape[-1])
  return at_least_float32(logits)


def _pick(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


def _best_rival(logits: jax.Array, labels: jax.Array) -> jax.Array:
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  return jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
