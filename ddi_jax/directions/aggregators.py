"""Other aggregators of K gradients, for comparison, as optax transformations.

All take the same updates as `danskin_direction`, and return a direction and a state of
the same form.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddi_jax.checks import check_choice, check_key, check_number
from ddi_jax.directions import active_set
from ddi_jax.directions.implicit import differentiable_weights
from ddi_jax.directions.min_norm import MinNormSolution, min_norm_weights, solve
from ddi_jax.directions.weighting import (
  WeightingInput,
  Weights,
  norms_of,
  rescaled,
  weighted_direction,
)
from ddi_jax.numerics.precision import matmul
from ddi_jax.reuse import reused

NORMALIZATIONS = ("l2", "loss", "loss+")
_BISECTIONS = 60


@reused
def mgda_direction(
  *, normalization: str = "l2", normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """The minimum-norm point of the hull of normalised gradients g_k / s_k.

  Multiple-gradient descent (Desideri, 2012) with the normalisations of Sener and Koltun
  (2018): s_k = ||g_k|| ("l2"), l_k ("loss") or l_k ||g_k|| ("loss+").  A small gradient
  then no longer attracts all the weight.  Because <z, g_k> >= s_k ||z||^2, z descends
  on all K.  Without normalisation this is `ddi_jax.danskin_direction`.  The result is a
  combination of the normalised gradients.  Sener and Koltun's code puts the same
  weights on the unnormalised gradients, and that combination need not descend on all K.

  Args:
    normalization: "l2", "loss" or "loss+"; the latter two need the extra argument
      `losses`, `[K]`, all > 0 (else the direction is NaN).
    normalize: whether to scale the result to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.

  Raises:
    ValueError: for an unknown normalisation; from `update`, for missing losses.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> direction = ddi_jax.mgda_direction()
    >>> gradients = jnp.array([[4.0, 0.0], [0.0, 1.0]])  # K = 2
    >>> direction.update(gradients, direction.init(None))[0]
    Array([0.5, 0.5], dtype=float32)
  """
  check_choice("normalization", normalization, NORMALIZATIONS)

  def weighting(inputs: WeightingInput) -> jax.Array | Weights:
    gram = inputs.gram
    sizes = jnp.ones(len(gram), gram.dtype)
    if normalization != "loss":
      sizes = norms_of(gram)
    if normalization != "l2":
      losses = inputs.required_losses(f"normalization={normalization!r}")
      sizes *= jnp.where(losses > 0, losses, jnp.nan)
    gram, inverse = rescaled(gram, sizes)
    weights = min_norm_weights(gram).weights
    unit = 1.0 if normalization == "loss" else inputs.scale
    return Weights(weights * inverse, jnp.zeros_like(weights), 1 / unit)

  return weighted_direction(weighting, normalize=normalize)


@reused
def upgrad_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """UPGrad: the mean of the gradients' projections onto the dual cone.

  Quinton and Rey (2024).  Each gradient is projected onto {x: <x, g_k> >= 0 for all k},
  so the mean conflicts with no gradient, and gradients without conflict are simply
  averaged.

  Args:
    normalize: whether to scale to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> direction = ddi_jax.upgrad_direction()
    >>> gradients = jnp.array([[1.0, 0.0], [-1.0, 1.0]])  # in conflict
    >>> out, state = direction.update(gradients, direction.init(None))
    >>> [round(float(part), 3) for part in out]
    [0.25, 0.75]
  """

  def weighting(inputs: WeightingInput) -> jax.Array:
    size = len(inputs.gram)
    return _onto_dual_cone(inputs.gram, jnp.eye(size)).mean(axis=0)

  return weighted_direction(jax.jit(weighting), normalize=normalize)


@reused
def dual_projection_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """DualProj: the mean of the gradients, projected onto the dual cone.

  It is the vector nearest to the mean among those that conflict with no gradient,
  {x: <x, g_k> >= 0 for all k} (Lopez-Paz and Ranzato, 2017, "Gradient episodic memory
  for continual learning", section 3, with the mean as the gradient that is projected).

  Args:
    normalize: whether to scale the result to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> direction = ddi_jax.dual_projection_direction()
    >>> gradients = jnp.array([[4.0, 0.0], [-2.0, 1.0]])  # in conflict
    >>> out, state = direction.update(gradients, direction.init(None))
    >>> [round(float(part), 3) for part in out]
    [0.4, 0.8]
  """

  def weighting(inputs: WeightingInput) -> jax.Array:
    size = len(inputs.gram)
    return _onto_dual_cone(inputs.gram, jnp.full((1, size), 1 / size))[0]

  return weighted_direction(jax.jit(weighting), normalize=normalize)


def _onto_dual_cone(gram: jax.Array, combinations: jax.Array) -> jax.Array:
  """Weights `[N, K]` of combinations of the gradients, projected onto the dual cone."""
  size = len(gram)
  scale = jnp.max(jnp.diagonal(gram))
  scale = jax.lax.stop_gradient(jnp.where(scale > 0, scale, 1))
  scaled = gram / scale
  fixed = jax.lax.stop_gradient(scaled)
  rounding = 4 * size * jnp.finfo(gram.dtype).eps * jnp.abs(fixed)

  def project(start: jax.Array) -> jax.Array:
    # argmin ||sum_j v_j g_j|| over v >= start, with v = start + weights, weights >= 0.
    def assess(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
      total = weights + start
      gradient = matmul(fixed, total)
      violation = jnp.where(gradient < -matmul(rounding, total), -gradient, 0)
      return gradient, violation

    limit = 50 + 8 * size
    weights, _ = active_set.minimize_on_orthant(fixed, assess, limit)
    return start + differentiable_weights(
      weights,
      lambda weights, data: matmul(data[0], weights + data[1]),
      (scaled, start),
      on_simplex=False,
    )

  return jax.vmap(project)(combinations.astype(gram.dtype))


@reused
def cagrad_direction(
  *, radius: float = 0.5, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """CAGrad: the direction near the average whose worst inner product is greatest.

    argmax min_k <g_k, d>  over  ||d - g_0|| <= radius ||g_0||,  g_0 the mean

  Liu et al. (2021).  With radius = 0 the result is the average; the larger the radius,
  the more the result is like the minimum-norm point.  If the hull contains the origin,
  no d has a positive worst product, and the average is returned.

  Args:
    radius: in [0, 1).
    normalize: whether to scale to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.

  Raises:
    ValueError: for a radius out of range.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> direction = ddi_jax.cagrad_direction(radius=0.5)
    >>> gradients = jnp.array([[4.0, 0.0], [0.0, 1.0]])
    >>> out, state = direction.update(gradients, direction.init(None))
    >>> [round(float(part), 3) for part in out]
    [2.0, 1.531]
  """
  check_number("radius", radius, "[0, 1)")

  def weighting(inputs: WeightingInput) -> jax.Array | Weights:
    inner, gram = jax.lax.stop_gradient((inputs.inner, inputs.gram))
    size = len(gram)
    mean = jnp.full(size, 1 / size, gram.dtype)
    with_mean = matmul(gram, mean)
    fixed_radius = jax.lax.stop_gradient(jnp.asarray(radius, gram.dtype))
    reach = fixed_radius * jnp.sqrt(jnp.maximum(matmul(mean, with_mean), 0))

    # The dual is min_w <g_w, g_0> + reach ||g_w||.  Here ||g_w|| is the minimum over n
    # of ||g_w||^2 / (2 n) + n / 2.  For each guess of n the dual is therefore a
    # minimum-norm problem with slacks, and ||g_w|| / n falls as the guess grows.
    def weights_at(guess: jax.Array) -> MinNormSolution:
      slacks = with_mean * (guess / jnp.where(reach > 0, reach, 1))
      return solve(inner, slacks)

    largest = jnp.sqrt(jnp.max(jnp.maximum(jnp.diagonal(gram), 0)))
    upper = jnp.log(jnp.where(largest > 0, largest, 1))
    lower = upper + jnp.log(size * jnp.finfo(gram.dtype).eps)

    def halve(
      _: Any, bounds: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
      lower, upper = bounds
      middle = (lower + upper) / 2
      guess = jnp.exp(middle)
      too_small = weights_at(guess).squared_norm > guess**2
      return jnp.where(too_small, middle, lower), jnp.where(too_small, upper, middle)

    _, upper = jax.lax.fori_loop(0, _BISECTIONS, halve, (lower, upper))
    solution = weights_at(jnp.exp(upper))
    norm = jnp.sqrt(solution.squared_norm)
    lost = norm <= 4 * size * jnp.finfo(gram.dtype).eps * largest
    extra = jnp.where(lost, 0, reach / jnp.where(lost, 1, norm))
    problem = (inputs.gram, jnp.asarray(radius, gram.dtype))
    weights = differentiable_weights(
      solution.weights, _cagrad_gradient, problem, on_simplex=True
    )
    again = jnp.where(lost, 0, _cagrad_extra(weights, problem))
    # This keeps the value of the bisection, with the derivative of the formula.
    extra += again - jax.lax.stop_gradient(again)
    return mean + extra * weights

  return weighted_direction(jax.jit(weighting), normalize=normalize)


def _cagrad_gradient(weights: jax.Array, problem: tuple[Any, Any]) -> jax.Array:
  """The gradient of <g_w, g_0> + radius ||g_0|| ||g_w|| in w."""
  gram, _ = problem
  mean = jnp.full(len(gram), 1 / len(gram), gram.dtype)
  return matmul(gram, mean) + _cagrad_extra(weights, problem) * matmul(gram, weights)


def _cagrad_extra(weights: jax.Array, problem: tuple[Any, Any]) -> jax.Array:
  """The factor radius ||g_0|| / ||g_w||; the ratio counts as 1 if a norm is 0."""
  gram, radius = problem
  mean = jnp.full(len(gram), 1 / len(gram), gram.dtype)
  square = matmul(mean, matmul(gram, mean))
  other = matmul(weights, matmul(gram, weights))
  regular = (square > 0) & (other > 0)
  ratio = jnp.where(regular, square, 1) / jnp.where(regular, other, 1)
  return radius * jnp.sqrt(ratio)


@reused
def pcgrad_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """PCGrad: project each gradient's conflicts with the others away, then average.

  Yu et al. (2020).  Each gradient is compared with the others in random order.  If its
  inner product with g_j is negative, its part along g_j is removed.  The result is the
  mean of these gradients (the paper's sum divided by K, so that learning rates are
  those of the average).  For K > 2 a conflict can come back, so there is no guarantee.

  Args:
    normalize: whether to scale to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.  Its `update` needs
    the extra argument `key`, which is consumed.

  Raises:
    ValueError: from `update`, if there is no key.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> direction = ddi_jax.pcgrad_direction()
    >>> gradients = jnp.array([[1.0, 0.0], [-1.0, 1.0]])
    >>> state = direction.init(None)
    >>> out, state = direction.update(gradients, state, key=jax.random.key(0))
    >>> [round(float(part), 3) for part in out]
    [0.25, 0.75]
  """

  def weighting(inputs: WeightingInput) -> jax.Array | Weights:
    if inputs.key is None:
      raise ValueError(
        "pcgrad_direction needs a key, got None: "
        "update(gradients, state, params, key=key)."
      )
    check_key(inputs.key)
    gram = inputs.gram
    size = len(gram)
    squares = jnp.diagonal(gram)
    squares = jnp.where(squares > 0, squares, 1)

    def project(index: Any, key: jax.Array) -> jax.Array:
      def remove(weights: jax.Array, other: jax.Array) -> Any:
        product = matmul(gram[other], weights)
        conflict = jnp.where(other == index, 0, jnp.minimum(product, 0))
        return weights.at[other].add(-conflict / squares[other]), None

      unit = jax.nn.one_hot(index, size, dtype=gram.dtype)
      return jax.lax.scan(remove, unit, jax.random.permutation(key, size))[0]

    keys = jax.random.split(inputs.key, size)
    return jax.vmap(project)(jnp.arange(size), keys).mean(axis=0)

  return weighted_direction(jax.jit(weighting), normalize=normalize)
