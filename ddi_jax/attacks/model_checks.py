"""Signs that a robustness evaluation should not be trusted."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddi_jax import losses
from ddi_jax.attacks.classifier import LogitsFn, check_arguments, check_data
from ddi_jax.attacks.programs import as_partial, programs_of
from ddi_jax.checks import (
  check_bounds,
  check_inside,
  check_labels,
  check_positive_int,
)
from ddi_jax.threat_models import Bounds


def check_model(
  logits_fn: LogitsFn,
  inputs: Any,
  labels: Any,
  *,
  key: jax.Array | None = None,
  bounds: Bounds = (0.0, 1.0),
  batch_size: int | None = None,
) -> list[str]:
  """Reasons to doubt AutoAttack's verdict on a model, as its authors list them.

  The function looks for inputs outside the box; for logits that are not finite, that
  differ between two calls, or that are probabilities; and for gradients that vanish or
  are not finite (the flags of AutoAttack's documentation, Croce and Hein, 2020).  It
  compiles two evaluations and a gradient of the model.  The first evaluation and the
  gradient run on every batch, the second evaluation on the first batch alone.

  Args:
    logits_fn: inputs -> logits `[B, C]`; with a key, (inputs, key) -> logits.
    inputs: `[N, ...]`, clean.
    labels: integers `[N]`.
    key: a key for a randomised model, which is then expected to be random; consumed.
    bounds: the box `(low, high)`, or None.
    batch_size: examples at a time, >= 1, or None for all.

  Returns:
    One message for each suspicious sign; empty if there is none.

  Raises:
    ValueError: for inputs that are not finite floating-point numbers `[N, ...]`, labels
      that are not integers `[N]` in [0, C), or a model that does not return logits.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> inputs, labels = jnp.array([[0.55, 0.45, 0.3]]), jnp.array([0])
    >>> ddi_jax.attacks.check_model(jax.nn.softmax, inputs, labels)[0][:31]
    'the model returns probabilities'
  """
  check_positive_int("batch_size", batch_size, optional=True)
  check_bounds(bounds)
  check_arguments(logits_fn, randomised=key is not None)
  first_key, second_key = None, jax.random.key(0)
  if key is not None:
    first_key, second_key = jax.random.split(key)
  # Move the data to the host, where the next operations need no compilation.
  inputs, labels = np.asarray(inputs), np.asarray(labels)
  check_data(inputs, labels)
  check_inside(inputs, None)  # Finite; outside the box is a sign below.
  size = min(batch_size or len(inputs), len(inputs))

  logits_fn = as_partial(logits_fn)
  programs = programs_of(logits_fn, inputs[:size], randomised=key is not None)
  check_labels(labels, programs.num_classes)
  signs = []
  for start in range(0, len(inputs), size):
    # The last batch is padded to the shape of the others.
    indices = np.resize(np.arange(start, min(start + size, len(inputs))), size)
    logits, pull_back = programs.pull_back(logits_fn, inputs[indices], first_key)
    batch_signs = _signs(np.asarray(logits), pull_back, labels[indices])
    left = len(inputs) - start
    signs.append(jax.tree.map(operator.itemgetter(slice(left)), batch_signs))
    if start == 0:
      # This program is traced separately, so a hidden random generator draws again.
      keys = jnp.broadcast_to(second_key, size)
      _, again = programs.classify(keys, logits_fn, inputs[indices], labels[indices])
      differ = not np.allclose(logits, again, rtol=1e-4, atol=1e-5, equal_nan=True)
  all_signs = jax.tree.map(lambda *parts: np.concatenate(parts), *signs)
  return [
    *_of_inputs(inputs, bounds),
    *_of_randomness(differ, key),
    *_of_logits(all_signs),
    *_of_gradients(all_signs),
  ]


class _Signs(NamedTuple):
  """Suspicious signs for each example, `[N]`."""

  right: np.ndarray  # The input is classified correctly.
  not_finite: np.ndarray  # Some logit is not finite.
  probabilities: np.ndarray
  vanished: dict[str, np.ndarray]  # By loss: the gradient is zero.
  gradient_not_finite: dict[str, np.ndarray]  # By loss: some entry is not finite.


# Derivatives at the logits as computed.  If this were compiled together with the model,
# the logits might be computed twice, and their rounding would look like a gradient.
_slopes = jax.jit(
  lambda logits, labels, loss: jax.grad(lambda z: loss(z, labels).sum())(logits),
  static_argnames="loss",
)
_pull = jax.jit(lambda pull_back, slopes: pull_back(slopes)[0])


def _signs(logits: np.ndarray, pull_back: Any, labels: np.ndarray) -> _Signs:
  gradients = {}
  for name, loss in (("cross entropy", losses.cross_entropy), ("DLR", losses.dlr)):
    if loss is losses.dlr and logits.shape[1] < 3:
      continue
    gradient = _pull(pull_back, _slopes(logits, labels, loss))
    gradients[name] = np.asarray(gradient).reshape(len(logits), -1)
  return _Signs(
    right=(np.argmax(logits, axis=1) == labels) & ~np.isnan(logits).any(axis=1),
    not_finite=~np.isfinite(logits).all(axis=1),
    probabilities=(logits >= 0).all(axis=1) & (abs(logits.sum(axis=1) - 1) < 1e-5),
    vanished={name: ~np.any(g != 0, axis=1) for name, g in gradients.items()},
    gradient_not_finite={
      name: ~np.isfinite(g).all(axis=1) for name, g in gradients.items()
    },
  )


def _of_inputs(inputs: np.ndarray, bounds: Bounds) -> list[str]:
  if bounds is None or (np.min(inputs) >= bounds[0] and np.max(inputs) <= bounds[1]):
    return []
  return [
    f"inputs in [{np.min(inputs):g}, {np.max(inputs):g}] leave the box "
    f"[{bounds[0]:g}, {bounds[1]:g}]."
  ]


def _of_randomness(differ: bool, key: jax.Array | None) -> list[str]:
  if differ and key is None:
    return [
      "two calls of the model on the same inputs differ: it is randomised, which "
      'misleads these attacks.  Give it keys and use version="rand".'
    ]
  if not differ and key is not None:
    return [
      "two keys give the same logits: the model is not randomised, and "
      'version="standard" is the stronger test.'
    ]
  return []


def _of_logits(signs: _Signs) -> list[str]:
  messages = []
  if np.any(signs.not_finite):
    messages.append(
      f"some logits are not finite at {np.sum(signs.not_finite)} of "
      f"{len(signs.not_finite)} inputs; where a logit is NaN, the input counts as "
      "misclassified."
    )
  if np.all(signs.probabilities):
    messages.append(
      "the model returns probabilities: gradients of saturated ones vanish.  Return "
      "logits."
    )
  return messages


def _of_gradients(signs: _Signs) -> list[str]:
  messages = []
  for name, vanished in signs.vanished.items():
    count = np.sum(signs.right & vanished)
    if count:
      messages.append(
        f"the gradient of {name} is exactly zero at {count} of {np.sum(signs.right)} "
        "inputs that are classified right: gradient-based attacks cannot start there.  "
        "Look for saturation, rounding or quantisation in the model."
      )
    lost = signs.gradient_not_finite[name]
    if np.any(lost):
      messages.append(
        f"some gradients of {name} are not finite at {np.sum(lost)} of {len(lost)} "
        "inputs: attacks do not move an input where its gradient is NaN or infinite.  "
        "Look for a square root, a logarithm or a norm at 0 in the model."
      )
  return messages
