"""Aggregators of multi-task learning in which every gradient counts alike.

No gradient dominates because it is long.  The weights are functions of the Gram matrix.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddi_jax.directions.implicit import differentiable_weights
from ddi_jax.directions.weighting import (
  WeightingInput,
  Weights,
  norms_of,
  rescaled,
  weighted_direction,
)
from ddi_jax.numerics.precision import matmul
from ddi_jax.reuse import reused

_NEWTON_STEPS = 200
_ACCURATE = 0.1  # A Newton decrement from which a few more steps reach rounding.


@reused
def aligned_mtl_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """Aligned-MTL: the mean after the gradients are made orthogonal and equally long.

  The matrix of the K gradients is replaced by the nearest one, up to a factor, whose
  nonzero singular values are all equal; the factor is its least nonzero singular value
  (Senushkin et al., 2023, "Independent component alignment for multi-task learning").
  There is no guarantee of descent on all K.

  Args:
    normalize: whether to scale the result to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.  It cannot be
    differentiated where two singular values are equal.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> direction = ddi_jax.aligned_mtl_direction()
    >>> gradients = jnp.array([[4.0, 0.0], [0.0, 1.0]])  # K = 2
    >>> direction.update(gradients, direction.init(None))[0]
    Array([0.5, 0.5], dtype=float32)
  """

  def weighting(inputs: WeightingInput) -> jax.Array:
    gram = inputs.gram
    size = len(gram)
    values, vectors = jnp.linalg.eigh(gram)
    kept = values > size * jnp.finfo(gram.dtype).eps * jnp.max(values)
    safe = jnp.where(kept, values, 1)
    least = jnp.min(jnp.where(kept, values, jnp.inf), initial=jnp.inf)
    roots = jnp.where(kept, jnp.sqrt(jnp.where(kept, least, 1) / safe), 0)
    mean = jnp.full(size, 1 / size, gram.dtype)
    return matmul(vectors, roots * matmul(vectors.T, mean))

  return weighted_direction(jax.jit(weighting), normalize=normalize)


@reused
def imtl_g_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """IMTL-G: the combination, with weights of sum 1, of equal cosine with all K.

  Liu et al. (2021), "Towards impartial multi-task learning".  For K = 2 it descends on
  both.  For K > 2 weights can be negative.  If the common cosine is negative too, the
  direction ascends on all K, and the state's `gap` is above 1.

  Args:
    normalize: whether to scale the result to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> direction = ddi_jax.imtl_g_direction()
    >>> gradients = jnp.array([[4.0, 0.0], [0.0, 1.0]])  # K = 2
    >>> out, state = direction.update(gradients, direction.init(None))
    >>> [round(float(part), 3) for part in out]
    [0.8, 0.8]
  """

  def weighting(inputs: WeightingInput) -> jax.Array:
    weights = _of_equal_cosine(inputs.gram)
    total = jnp.sum(weights)
    vanishes = jnp.abs(total) <= _rounding(inputs.gram) * jnp.sum(jnp.abs(weights))
    return jnp.where(vanishes, 0, weights / jnp.where(vanishes, 1, total))

  return weighted_direction(jax.jit(weighting), normalize=normalize)


@reused
def conflict_free_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """ConFIG: the direction of equal positive cosine with all K gradients.

  Its length is the sum of the gradients' projections on it, so that it is short where
  they disagree (Liu, Chu and Thuerey, 2025, "ConFIG: Towards conflict-free training of
  physics informed neural networks").  If the gradients are linearly
  dependent, the cosines are equal only as nearly as least squares makes them.

  Args:
    normalize: whether to scale the result to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> direction = ddi_jax.conflict_free_direction()
    >>> gradients = jnp.array([[4.0, 0.0], [0.0, 1.0]])  # K = 2
    >>> out, state = direction.update(gradients, direction.init(None))
    >>> [round(float(part), 3) for part in out]
    [2.5, 2.5]
  """

  def weighting(inputs: WeightingInput) -> jax.Array:
    weights = _of_equal_cosine(inputs.gram)
    products = matmul(inputs.gram, weights)
    square = matmul(weights, products)
    return weights * jnp.where(square > 0, products.sum() / _or_one(square), 0)

  return weighted_direction(jax.jit(weighting), normalize=normalize)


@reused
def nash_mtl_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """Nash-MTL: the direction that maximises the product of the K descents.

  The weights solve <g_k, z> = 1 / weights_k for z = sum_k weights_k g_k, with positive
  weights (Navon et al., 2022, "Multi-task learning as a bargaining game").
  So z descends on all K, has the norm sqrt(K), and its direction does not depend on the
  gradients' lengths.  The paper approximates the weights by a sequence of convex
  problems.  They are also the unique minimiser of 1/2 ||z||^2 - sum_k log(weights_k),
  which Newton's method finds to rounding here.  The learning rate decides alone how
  long a step is: unlike the others, z does not become short near a stationary point.

  Args:
    normalize: whether to scale the result to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.  Where the hull of
    the gradients holds the origin to rounding, there are no such weights, and zeros are
    returned.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> direction = ddi_jax.nash_mtl_direction()
    >>> gradients = jnp.array([[4.0, 0.0], [0.0, 1.0]])  # K = 2
    >>> out, state = direction.update(gradients, direction.init(None))
    >>> [round(float(part), 3) for part in out]
    [1.0, 1.0]
  """

  def weighting(inputs: WeightingInput) -> Weights:
    gram = inputs.gram
    fixed = jax.lax.stop_gradient(gram)
    cosines, inverse = rescaled(fixed, norms_of(fixed))
    weights = differentiable_weights(
      _bargain(cosines) * inverse,
      lambda weights, gram: matmul(gram, weights) - 1 / _or_one(weights),
      gram,
      on_simplex=False,
    )
    return Weights(weights, factor=1 / inputs.scale)

  return weighted_direction(jax.jit(weighting), normalize=normalize)


def _bargain(cosines: jax.Array) -> jax.Array:
  """The positive b `[K]` with b_k (cosines b)_k = 1; zeros if there is none.

  Damped Newton steps on the self-concordant 1/2 b'cosines b - sum log b converge from
  any start (Boyd and Vandenberghe, 2004, section 9.6).
  """
  size = len(cosines)
  rounding = _rounding(cosines)

  def newton(b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    scaled = cosines * b[:, None] * b[None, :]
    residual = scaled.sum(axis=1) - 1
    hessian = scaled + jnp.eye(size, dtype=b.dtype)
    step = -jax.scipy.linalg.solve(hessian, residual, assume_a="pos")
    decrement = jnp.sqrt(jnp.maximum(-matmul(step, residual), 0))
    return step, decrement, rounding * jnp.abs(scaled).sum(axis=1).max()

  def goes_on(state: Any) -> jax.Array:
    _, _, decrement, noise, count = state
    return (decrement > noise) & (noise < _ACCURATE) & (count < _NEWTON_STEPS)

  def advance(state: Any) -> Any:
    b, step, decrement, _, count = state
    b *= 1 + step / jnp.where(decrement > 1 / 4, 1 + decrement, 1)
    return (b, *newton(b), count + 1)

  start = jnp.ones(size, cosines.dtype)
  b, _, decrement, noise, _ = jax.lax.while_loop(
    goes_on, advance, (start, *newton(start), 0)
  )
  found = jnp.maximum(decrement, noise) < _ACCURATE
  found &= jnp.all(jnp.diagonal(cosines) > 0)
  return jnp.where(found, b, jnp.where(jnp.isfinite(cosines).all(), 0, jnp.nan))


def _of_equal_cosine(gram: jax.Array) -> jax.Array:
  """Weights `[K]` of a combination whose product with every g_k / ||g_k|| is 1."""
  cosines, inverse = rescaled(gram, norms_of(gram))
  pseudoinverse = jnp.linalg.pinv(cosines, hermitian=True)
  return inverse * pseudoinverse.sum(axis=1)


def _or_one(values: jax.Array) -> jax.Array:
  """The values, with 1 in place of 0."""
  return jnp.where(values == 0, 1, values)


def _rounding(gram: jax.Array) -> Any:
  return 4 * len(gram) * jnp.finfo(gram.dtype).eps
