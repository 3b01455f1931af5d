"""Signs that a robustness evaluation should not be trusted."""

from typing import Any

import jax
import numpy as np

from ddi_jax import losses
from ddi_jax.attacks.classifier import LogitsFn, check_arguments
from ddi_jax.threat_models import Bounds


def check_model(
  logits_fn: LogitsFn,
  inputs: jax.Array,
  labels: jax.Array,
  *,
  key: jax.Array | None = None,
  bounds: Bounds = (0.0, 1.0),
) -> list[str]:
  """Reasons to doubt what AutoAttack will say of this model, as its authors list them.

  Looks for inputs outside the box, logits that are not finite, differ between two calls
  or are probabilities, and for gradients that vanish (the flags of AutoAttack's
  documentation, Croce and Hein, 2020).  Compiles and runs two evaluations and two
  gradients of the model on this batch.

  Args:
    logits_fn: inputs -> logits `[B, C]`; with a key, (inputs, key) -> logits.
    inputs: `[B, ...]`, clean.
    labels: integers `[B]`.
    key: for a randomised model; consumed.  It is then expected to be random.
    bounds: the box `(low, high)`, or None.

  Returns:
    One message for each sign, empty if there is none.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> inputs, labels = jnp.array([[0.55, 0.45, 0.3]]), jnp.array([0])
    >>> ddi_jax.attacks.check_model(jax.nn.softmax, inputs, labels)[0][:31]
    'the model returns probabilities'
  """
  check_arguments(logits_fn, randomised=key is not None)
  first_key = second_key = None
  if key is not None:
    first_key, second_key = jax.random.split(key)

  def call(points: jax.Array, draw: Any) -> jax.Array:
    return logits_fn(points) if draw is None else logits_fn(points, draw)

  logits, pull_back = jax.jit(
    lambda points: jax.vjp(lambda x: call(x, first_key), points)
  )(inputs)
  # Traced afresh, so that a hidden generator is asked again.
  again = jax.jit(lambda points: call(points, second_key))(inputs)
  # On the host, where nothing has to be compiled for what follows.
  logits, again = np.asarray(logits), np.asarray(again)
  differ = not np.allclose(logits, again, rtol=1e-4, atol=1e-5, equal_nan=True)

  messages = []
  if bounds is not None and (np.min(inputs) < bounds[0] or np.max(inputs) > bounds[1]):
    messages.append(
      f"inputs in [{np.min(inputs):g}, {np.max(inputs):g}] leave the box "
      f"[{bounds[0]:g}, {bounds[1]:g}]."
    )
  if not np.all(np.isfinite(logits)):
    messages.append("some logits are not finite.")
  if differ and key is None:
    messages.append(
      "two calls of the model on the same inputs differ: it is randomised, which "
      'misleads these attacks.  Give it keys and use version="rand".'
    )
  if not differ and key is not None:
    messages.append(
      "two keys give the same logits: the model is not randomised, and "
      'version="standard" is the stronger test.'
    )
  if np.all(logits >= 0) and np.allclose(logits.sum(axis=1), 1, atol=1e-5):
    messages.append(
      "the model returns probabilities: gradients of saturated ones vanish.  Return "
      "logits."
    )
  return messages + _check_gradients(logits, pull_back, labels)


def _check_gradients(
  logits: np.ndarray, pull_back: Any, labels: jax.Array
) -> list[str]:
  messages = []
  right = np.argmax(logits, axis=1) == np.asarray(labels)
  pull = jax.jit(lambda pull_back, slopes: pull_back(slopes)[0])
  for name, loss in (("cross entropy", losses.cross_entropy), ("DLR", losses.dlr)):
    if loss is losses.dlr and logits.shape[1] < 3:
      continue
    # From the logits as they are: compiled with the model, they may be computed twice,
    # and their rounding is then a gradient.
    slopes = jax.jit(jax.grad(lambda z, loss=loss: loss(z, labels).sum()))(logits)
    gradients = np.asarray(pull(pull_back, slopes)).reshape(len(logits), -1)
    vanished = np.sum(right & ~np.any(gradients != 0, axis=1))
    if vanished:
      messages.append(
        f"the gradient of {name} is exactly zero at {vanished} of {np.sum(right)} "
        "inputs that are classified right: gradient-based attacks cannot start there.  "
        "Look for saturation, rounding or quantisation in the model."
      )
    if not np.all(np.isfinite(gradients)):
      messages.append(f"some gradients of {name} are not finite.")
  return messages
