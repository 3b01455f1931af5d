"""A direction from a rule for weights: the code that all aggregators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from ddi_jax.gradients.gram import (
  KeptGradients,
  ShiftedGram,
  pairwise_cosines,
  scaled_norm,
)
from ddi_jax.gradients.per_candidate import RestartInfo
from ddi_jax.gradients.recomputed import RecomputedGradients
from ddi_jax.numerics.finite import square_root
from ddi_jax.numerics.precision import accumulation_dtype

if TYPE_CHECKING:
  from jaxtyping import Array, Float


def norms_of(gram: jax.Array) -> jax.Array:
  """The gradients' norms `[K]`, with a finite derivative where one is 0."""
  return square_root(jnp.maximum(jnp.diagonal(gram), 0))


def rescaled(gram: jax.Array, sizes: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The Gram matrix of the gradients / sizes, and 1 / sizes `[K]`, with 0 for 1 / 0."""
  inverse = jnp.where(sizes == 0, 0, 1 / jnp.where(sizes == 0, 1, sizes))
  return gram * inverse[:, None] * inverse[None, :], inverse


class WeightingInput(NamedTuple):
  """The input of a weighting rule.

  Attributes:
    inner: inner products of the K gradients / scale, which keep the differences of the
      gradients.
    scale: scalar > 0.
    losses: `[K]`, or None if `update` was not given them.
    key: a key, or None if `update` was not given one.
  """

  inner: ShiftedGram
  scale: jax.Array
  losses: Float[Array, " K"] | None
  key: jax.Array | None

  @property
  def gram(self) -> Float[Array, "K K"]:
    """The Gram matrix of the K gradients / scale, `[K, K]`."""
    return self.inner.matrix()

  def required_losses(self, needed_by: str) -> Float[Array, " K"]:
    """The candidates' losses, `[K]`.

    Raises:
      ValueError: if they were not passed to `update`.
    """
    if self.losses is None:
      raise ValueError(
        f"{needed_by} needs the candidates' losses: "
        "update(gradients, state, params, losses=losses) with losses [K]."
      )
    return self.losses


class Weights(NamedTuple):
  """A combination of the gradients, with the descent that it guarantees.

  Attributes:
    weights: `[K]`.
    slacks: `[K]`, in units of the Gram matrix: the e in a guarantee for the combination
      z.  For every k, <z, g_k> >= ||z||^2 + e'weights - e_k, which is > 0 if e_k <=
      e'weights.  None: no guarantee.
    factor: z is multiplied by it at the end.  It is kept apart from the weights because
      their product would overflow.
  """

  weights: Float[Array, " K"]
  slacks: Float[Array, " K"] | None = None
  factor: jax.Array | float = 1.0


Weighting = Callable[[WeightingInput], jax.Array | Weights]


class DirectionState(NamedTuple):
  """Scalar diagnostics of the last direction; zeros before the first update.

  They describe the combination z = sum_k weights_k g_k itself, before it is scaled to
  unit norm and before any later transformation of the chain.

  Attributes:
    norm: ||z||.
    gap: relative duality gap, `1 - min_k <z, g_k> / ||z||^2`, at least 0.  If it is
      below 1, the step along -z descends on all K linearised losses; if it is 0, z is
      the minimum-norm point.  It is also 0 if z = 0.  For the forms of
      `danskin_direction` that use the losses, it is the gap of their problem, see
      `ddi_jax.MinNormSolution`.
    cosine: mean cosine of the pairs of gradients (1 for K = 1).
    min_cosine: the least cosine of a pair; if it is negative, some gradients are in
      conflict.
    support: number of gradients with positive weight (above 1e-6).
    relative_norm: ||z|| / min_k ||g_k||; 1 where both are zero.
  """

  norm: Float[Array, ""]
  gap: Float[Array, ""]
  cosine: Float[Array, ""]
  min_cosine: Float[Array, ""]
  support: Float[Array, ""]
  relative_norm: Float[Array, ""]


def weighted_direction(
  weighting: Weighting, *, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
  """Make a direction from a rule for the weights of the K gradients.

    out = sum_k weights_k g_k

  Every aggregator of this library is made by this function, so a new one only has to
  define its weights.  If rounding breaks a guarantee that the weighting gives (see
  `Weights`), the combination counts as stationary, and the direction is zero.

  Args:
    weighting: `WeightingInput` -> weights `[K]`, or `Weights`; a pure function.
    normalize: whether to scale the result to unit norm.

  Returns:
    A transformation like `danskin_direction`, with the same state.

  Raises:
    ValueError: from `update`, for updates without the shape `[K, *param]`, and for
      losses or weights that are not `[K]`.

  Example:
    >>> import jax, jax.numpy as jnp, ddi_jax
    >>> def by_loss(inputs):
    ...   return jax.nn.softmax(inputs.losses)
    >>> direction = ddi_jax.weighted_direction(by_loss)
    >>> params, gradients = {"w": jnp.zeros(2)}, {"w": jnp.eye(2)}  # K = 2
    >>> out, state = direction.update(
    ...     gradients, direction.init(params), params, losses=jnp.array([1.0, 1.0]))
    >>> out["w"]
    Array([0.5, 0.5], dtype=float32)
  """

  def init(params: Any) -> DirectionState:
    del params
    zero = jnp.zeros((), accumulation_dtype())
    return DirectionState(*(zero,) * len(DirectionState._fields))

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    losses: Any = None,
    key: Any = None,
    **extra_args: Any,
  ) -> tuple[chex.ArrayTree, DirectionState]:
    del state, extra_args
    if isinstance(updates, tuple) and any(
      isinstance(part, RestartInfo) for part in updates
    ):
      raise ValueError(
        "updates must be the gradients alone, got (gradients, RestartInfo): write "
        "gradients, info = gradients_fn(...)."
      )
    gradients: Any = updates
    if not isinstance(updates, RecomputedGradients):
      gradients = KeptGradients(updates, params)
    inner, scale = gradients.inner
    losses = _checked_losses(losses, len(inner.offsets))
    result = weighting(WeightingInput(inner, scale, losses, key))
    weights = result if isinstance(result, Weights) else Weights(result)
    if jnp.shape(weights.weights) != inner.offsets.shape:
      raise ValueError(
        f"the weighting must return weights [K] = {inner.offsets.shape}, got "
        f"{jnp.shape(weights.weights)}."
      )
    combination = gradients.combine(weights.weights)
    statistics = _examine(weights, inner.matrix(), gradients, combination)
    direction = _scaled(combination, statistics, weights.factor, scale, normalize)
    return gradients.cast(direction), _diagnose(weights, statistics, scale)

  return optax.GradientTransformationExtraArgs(init, update)


class _Statistics(NamedTuple):
  """Statistics of a combination z, in units of the Gram matrix."""

  gram: jax.Array  # [K, K]
  norm: jax.Array  # ||z||
  gap: jax.Array  # relative amount by which z misses its guarantee
  stationary: jax.Array  # bool: up to rounding, z is 0 or misses its guarantee


def _checked_losses(losses: Any, size: int) -> jax.Array | None:
  if losses is None:
    return None
  losses = jnp.asarray(losses, accumulation_dtype())
  if losses.shape != (size,):
    raise ValueError(
      f"losses must have shape [K] = ({size},), one per candidate (a mean over the "
      f"batch, for example), got {losses.shape}."
    )
  return losses


def _examine(
  weights: Weights, gram: jax.Array, gradients: Any, combination: chex.ArrayTree
) -> _Statistics:
  """Compare the combination with what its weights guarantee."""
  alpha, slacks, _ = weights
  descents = gradients.descents(alpha, combination)
  norm = scaled_norm(combination, gradients.inner[1])
  norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
  rounding = len(gram) * jnp.finfo(gram.dtype).eps
  stationary = norm <= rounding * jnp.sum(alpha * norms)
  mean_slack = jnp.zeros((), gram.dtype)
  if slacks is not None:
    mean_slack = jnp.sum(jnp.where(alpha > 0, slacks * alpha, 0))
    stationary |= jnp.any((slacks <= mean_slack) & (descents <= 0))
  value = norm**2 + mean_slack
  guaranteed = value if slacks is None else value - slacks
  gap = jnp.max(guaranteed - descents) / jnp.maximum(value, jnp.finfo(norm.dtype).tiny)
  return _Statistics(gram, norm, gap, stationary)


def _scaled(
  combination: chex.ArrayTree,
  statistics: _Statistics,
  factor: jax.Array | float,
  scale: jax.Array,
  normalize: bool,
) -> chex.ArrayTree:
  """The direction: the combination, scaled if wanted, or zero if stationary."""
  divisor = statistics.norm * scale if normalize else 1 / factor
  divisor = jnp.where(statistics.stationary, 1, divisor)
  return jax.tree.map(
    lambda leaf: jnp.where(statistics.stationary, 0, leaf / divisor), combination
  )


def _diagnose(
  weights: Weights, statistics: _Statistics, scale: jax.Array
) -> DirectionState:
  gram, norm, gap, stationary = statistics
  cosines = pairwise_cosines(gram)
  smallest = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0)).min()
  relative_norm = jnp.where(
    (norm == 0) & (smallest == 0), 1, norm / smallest * weights.factor
  )
  return DirectionState(
    norm=jnp.where(stationary, 0, norm * (scale * weights.factor)),
    gap=jnp.where(stationary, 0, jnp.maximum(gap, 0)),
    cosine=cosines.mean(),
    min_cosine=cosines.min(),
    support=jnp.sum(weights.weights > 1e-6).astype(gram.dtype),
    relative_norm=jnp.where(stationary & (smallest > 0), 0, relative_norm),
  )
