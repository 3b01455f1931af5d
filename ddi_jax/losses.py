"""Per-example losses of logits: to train with, and for attacks to increase.

Every function takes logits `[..., C]` and returns losses `[...]`, in float32 at least.
"""

import jax
import jax.numpy as jnp

from ddi_jax.precision import at_least_float32


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross entropy in nats.

  Args:
    logits: `[..., C]`, C >= 1.
    labels: integers `[...]` in [0, C).

  Returns:
    Losses `[...]`, >= 0.
  """
  logits = _check(logits, labels, min_classes=1)
  return -_pick(jax.nn.log_softmax(logits), labels)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Largest wrong logit minus the right one: positive where misclassified.

  The loss of Carlini and Wagner (2017, section V-A, f_6) without its clamp.

  Args:
    logits: `[..., C]`, C >= 2.
    labels: integers `[...]` in [0, C).

  Returns:
    Losses `[...]`.

  Raises:
    ValueError: if C < 2.
  """
  logits = _check(logits, labels, min_classes=2)
  return _best_rival(logits, labels) - _pick(logits, labels)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Difference-of-logits ratio: the margin over the spread of the top three logits.

  Unchanged when the logits are shifted or scaled, so over-confidence cannot hide a
  model from it (Croce and Hein, 2020, equation 6).

  Args:
    logits: `[..., C]`, C >= 3.
    labels: integers `[...]` in [0, C).

  Returns:
    Losses `[...]`; positive where misclassified, at least -1.

  Raises:
    ValueError: if C < 3.
  """
  logits = _check(logits, labels, min_classes=3)
  top = jax.lax.top_k(logits, 3)[0]
  difference = _best_rival(logits, labels) - _pick(logits, labels)
  return difference / (top[..., 0] - top[..., 2] + 1e-12)


def targeted_dlr(logits: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
  """Targeted difference-of-logits ratio (Croce and Hein, 2020, equation 7).

  Args:
    logits: `[..., C]`, C >= 4.
    labels: integers `[...]` in [0, C), the true classes.
    targets: integers `[...]` in [0, C), the classes to be reached.

  Returns:
    Losses `[...]`; positive where the target's logit is above the true class's.

  Raises:
    ValueError: if C < 4.
  """
  logits = _check(logits, labels, min_classes=4)
  top = jax.lax.top_k(logits, 4)[0]
  difference = _pick(logits, targets) - _pick(logits, labels)
  spread = top[..., 0] - (top[..., 2] + top[..., 3]) / 2
  return difference / (spread + 1e-12)


def kl_divergence(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
  """KL(reference || model) in nats, TRADES' inner loss (Zhang et al., 2019, eq. 5).

  Args:
    logits: `[..., C]`, the model's output, at the perturbed inputs say.
    reference_logits: `[..., C]`, at the clean inputs say.

  Returns:
    Losses `[...]`, >= 0 up to rounding.

  Raises:
    ValueError: if the shapes differ.
  """
  if logits.shape != reference_logits.shape:
    raise ValueError(
      "logits and reference_logits must have the same shape, got "
      f"{logits.shape} and {reference_logits.shape}."
    )
  log_model = jax.nn.log_softmax(at_least_float32(logits))
  log_reference = jax.nn.log_softmax(at_least_float32(reference_logits))
  return jnp.sum(jnp.exp(log_reference) * (log_reference - log_model), axis=-1)


def _check(logits, labels, *, min_classes):
  if logits.ndim < 1 or logits.shape[:-1] != labels.shape:
    raise ValueError(
      "logits must be [..., C] and labels [...], got "
      f"{logits.shape} and {labels.shape}."
    )
  if not jnp.issubdtype(labels.dtype, jnp.integer):
    raise ValueError(f"labels must be integers, got {labels.dtype}.")
  if logits.shape[-1] < min_classes:
    raise ValueError(
      f"this loss needs at least {min_classes} classes, got {logits.shape[-1]}."
    )
  return at_least_float32(logits)


def _pick(logits, labels):
  return jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]


def _best_rival(logits, labels):
  is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
  return jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
