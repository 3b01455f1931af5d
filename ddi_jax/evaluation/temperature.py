"""The temperature at which a classifier's confidence is right on average."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ddi_jax.checks import check_array

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

_DECADES = 8.0
_BISECTIONS = 50


@jax.jit
def calibrate_temperature(
  logits: Float[Array, "N C"], labels: Int[Array, " N"]
) -> Float[Array, ""]:
  """The temperature T for which softmax(logits / T) fits the labels best.

  It minimises the total cross entropy of logits / T (Guo et al., 2017, section 4.2),
  which is convex in 1/T, plus that of one more example for which every class is equally
  likely.  Without this example, T would tend to 0 if all examples are classified
  correctly.  (It is a prior of one example, in the spirit of Platt, 1999, section 2.2.)

  Scaling the logits scales T, so logits / T does not depend on a model's
  over-confidence.

  Args:
    logits: `[N, C]`, C >= 2.
    labels: integers `[N]` in [0, C).

  Returns:
    T > 0, a scalar, accurate to about 1e-6 of its value.  It lies between 1e-8 and 1e8
    times the largest spread of an example's logits (at the upper end for a model that
    is worse than chance).  It is 1 if every example's logits are all equal.  A class
    with the logit -inf is left out of an example.  An example is left out if the logit
    of its label is not finite, or a logit is NaN or +inf.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> logits = 100 * jnp.eye(3)[jnp.array([0, 1, 2, 0])]  # Sure of everything,
    >>> temperature = ddi_jax.calibrate_temperature(logits, jnp.array([0, 1, 2, 1]))
    >>> bool(temperature > 30)  # but once wrong.
    True
  """
  check_array("logits", logits)
  check_array("labels", labels)
  finite = jnp.isfinite(logits)
  kept = jnp.all(finite | jnp.isneginf(logits), axis=1)
  kept &= jnp.take_along_axis(finite, labels[:, None], axis=1)[:, 0]
  finite &= kept[:, None]
  logits = jnp.where(finite, logits, -jnp.inf)
  logits = jnp.where(finite, logits - jnp.max(logits, axis=1, keepdims=True), 0)
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  spread = -jnp.min(logits)
  solvable = (spread > 0) & jnp.isfinite(spread)
  scaled = logits / jnp.where(solvable, spread, 1)

  def excess(log_inverse: jax.Array) -> jax.Array:
    """The derivative in 1/T, up to a positive factor."""

    def loss(inverse: jax.Array) -> jax.Array:
      products = inverse * scaled
      exponentials = jnp.where(finite, jnp.exp(products), 0)
      normalizer = jnp.log(jnp.where(kept, exponentials.sum(axis=1), 1))
      right = jnp.take_along_axis(products, labels[:, None], axis=1)[:, 0]
      mean = products.sum(axis=1) / jnp.maximum(finite.sum(axis=1), 1)
      prior = (normalizer - mean).sum() / jnp.maximum(kept.sum(), 1)
      return ((normalizer - right).sum() + prior) / (len(labels) + 1)

    return jax.grad(loss)(jnp.exp(log_inverse))

  def halve(_: Any, ends: Any) -> tuple[jax.Array, jax.Array]:
    low, high = ends
    middle = (low + high) / 2
    too_cold = excess(middle) > 0
    return jnp.where(too_cold, low, middle), jnp.where(too_cold, middle, high)

  end = jnp.asarray(_DECADES * jnp.log(10.0), scaled.dtype)
  low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (-end, end))
  return jnp.where(solvable, spread * jnp.exp(-(low + high) / 2), 1.0)
