"""From K gradients to one direction, as optax transformations."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ddi_jax import gradient_matrix
from ddi_jax.min_norm import min_norm_weights
from ddi_jax.precision import accumulation_dtype

Weighting = Callable[[jax.Array], jax.Array]  # Gram matrix [K, K] -> weights [K]


class DirectionState(NamedTuple):
  """Diagnostics of the last direction, each a scalar; zeros before the first update.

  They describe the combination z = sum_k weights_k g_k itself: before unit-norm
  scaling, and before whatever follows in the chain.

  Attributes:
    norm: ||z||.
    gap: relative duality gap, `1 - min_k <z, g_k> / ||z||^2`, at least 0.  Below 1, the
      step along -z descends on all K linearised losses; 0 is the min-norm point.
      0 where z = 0.
    cosine: mean cosine of the pairs of gradients (1 for K = 1).
    min_cosine: the least of them.  Negative: some gradients are in conflict.
    support: number of gradients with positive weight (above 1e-6).
    relative_norm: ||z|| / min_k ||g_k||; 1 where both are zero.
  """

  norm: jax.Array
  gap: jax.Array
  cosine: jax.Array
  min_cosine: jax.Array
  support: jax.Array
  relative_norm: jax.Array


def danskin_direction(
  *,
  normalize: bool = True,
  tolerance: float | None = None,
  max_iterations: int = 1_000,
) -> optax.GradientTransformationExtraArgs:
  """Danskin's descent direction: the minimum-norm point of the K gradients' hull.

    z = argmin ||sum_k a_k g_k||,  a on the simplex;  out = z / ||z||  (or z)

  The step along -out descends on all K candidates at once: <z, g_k> >= ||z||^2 for
  every k.  If every maximiser's gradient is within h of a g_k, the robust loss has
  directional derivative at most h - ||z|| along -z / ||z||.  Latorre et al. (2023),
  section 3.

  The updates that come in are gradients with leaves `[K, *param]`, from
  `ddi_jax.restart_gradients` say, so this must be the first of a chain; out come leaves
  `[*param]` of the same dtype, gradient-like: a later `optax.sgd` supplies the minus
  sign.  `init` takes ordinary parameters.  Inner products go over all parameters and
  are accumulated in float32 at least.

  Where the hull holds the origin no direction descends on all K, and zeros are
  returned; so they are where z is so small against the gradients (in float32, below
  about 1e-3) that rounding in the Gram matrix spoils <z, g_k> > 0.  A NaN in the
  gradients comes out as NaN.

  Args:
    normalize: whether to scale to unit norm, as published.  This changes the effective
      learning rate; compare with controls that are scaled too.
    tolerance: see `ddi_jax.min_norm_weights`.
    max_iterations: see `ddi_jax.min_norm_weights`.

  Returns:
    A transformation whose state is a `DirectionState`; inside a chain its fields are
    reached with `optax.tree_utils.tree_get(state, "cosine")`.

  Raises:
    ValueError: when built, for a tolerance < 0 or max_iterations < 1; from `update`,
      for updates without the shape `[K, *param]`, with different K or K = 0, or that
      are not floating point.

  Example:
    >>> import jax.numpy as jnp, optax, ddi_jax
    >>> optimizer = optax.chain(ddi_jax.danskin_direction(), optax.sgd(0.1))
    >>> params = {"w": jnp.array([1.0, 0.0])}
    >>> state = optimizer.init(params)
    >>> gradients = {"w": jnp.array([[2.0, 2.0], [2.0, -2.0]])}  # K = 2
    >>> updates, state = optimizer.update(gradients, state, params)
    >>> updates["w"]
    Array([-0.1, -0. ], dtype=float32)
    >>> optax.tree_utils.tree_get(state, "norm")
    Array(2., dtype=float32)
  """
  if tolerance is not None and not tolerance >= 0:
    raise ValueError(f"tolerance must be None or >= 0, got {tolerance!r}.")
  if max_iterations < 1:
    raise ValueError(f"max_iterations must be >= 1, got {max_iterations!r}.")

  def weighting(gram):
    solution = min_norm_weights(
      gram, tolerance=tolerance, max_iterations=max_iterations
    )
    return solution.weights

  return _direction(weighting, normalize, certified=True)


def average_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """The mean of the K gradients: the control that gets much of the gain for free.

  Args:
    normalize: whether to scale to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.
  """

  def weighting(gram):
    return jnp.full(len(gram), 1 / len(gram), gram.dtype)

  return _direction(weighting, normalize)


def first_restart_direction(
  *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """The first of the K gradients: what PGD adversarial training steps along.

  Args:
    normalize: whether to scale to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.
  """

  def weighting(gram):
    return jax.nn.one_hot(0, len(gram), dtype=gram.dtype)

  return _direction(weighting, normalize)


def _direction(
  weighting: Weighting, normalize: bool, *, certified: bool = False
) -> optax.GradientTransformationExtraArgs:
  """A transformation that combines the gradients with `weighting(Gram matrix)`.

  With `certified`, a combination that does not descend on all K counts as stationary.
  """

  def init(params):
    del params
    zero = jnp.zeros((), accumulation_dtype())
    return DirectionState(*(zero,) * len(DirectionState._fields))

  def update(updates, state, params=None, **extra_args):
    del state, extra_args
    gram, scale = gradient_matrix.scaled_gram_matrix(updates)
    if params is not None:
      _check_against_params(updates, params)
    weights = weighting(gram)
    combination = gradient_matrix.combine(weights, updates)
    norm = gradient_matrix.scaled_norm(combination, scale)
    products = gradient_matrix.scaled_products(updates, combination, scale)
    norms = jnp.sqrt(jnp.diagonal(gram))
    rounding = len(gram) * jnp.finfo(gram.dtype).eps
    stationary = norm <= rounding * jnp.sum(weights * norms)
    if certified:
      stationary |= jnp.min(products) <= 0
    divisor = norm * scale if normalize else 1
    divisor = jnp.where(stationary, 1, divisor)

    def finish(leaf, update):
      return jnp.where(stationary, 0, leaf / divisor).astype(update.dtype)

    # <z, g_k> / ||z||^2: of the direction itself, not by way of the Gram matrix.
    descent = products / jnp.maximum(norm**2, jnp.finfo(norm.dtype).tiny)
    state = _diagnostics(weights, gram, norms, descent, norm, scale, stationary)
    return jax.tree.map(finish, combination, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def _diagnostics(weights, gram, norms, descent, norm, scale, stationary):
  if len(gram) > 1:
    cosines = gradient_matrix.pairwise_cosines(gram)
    cosine, min_cosine = cosines.mean(), cosines.min()
  else:
    cosine = min_cosine = jnp.ones((), gram.dtype)
  smallest = norms.min()
  relative_norm = jnp.where((norm == 0) & (smallest == 0), 1, norm / smallest)
  return DirectionState(
    norm=jnp.where(stationary, 0, norm * scale),
    gap=jnp.where(stationary, 0, jnp.maximum(1 - descent.min(), 0)),
    cosine=cosine,
    min_cosine=min_cosine,
    support=jnp.sum(weights > 1e-6).astype(gram.dtype),
    relative_norm=jnp.where(stationary & (smallest > 0), 0, relative_norm),
  )


def _check_against_params(updates: chex.ArrayTree, params: chex.ArrayTree) -> None:
  def check(path, update, param):
    if jnp.shape(update)[1:] != jnp.shape(param):
      raise ValueError(
        f"gradient{jax.tree_util.keystr(path)} must have shape [K, *param] with "
        f"param shape {jnp.shape(param)}, got {jnp.shape(update)}."
      )

  jax.tree_util.tree_map_with_path(check, updates, params)
