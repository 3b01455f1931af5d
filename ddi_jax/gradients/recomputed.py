"""K gradients that are not kept, but computed again whenever they are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import chex
import jax
import jax.numpy as jnp

from ddi_jax.checks import check_positive_int
from ddi_jax.gradients.gram import ShiftedGram
from ddi_jax.gradients.per_candidate import (
  LossFn,
  RestartInfo,
  check_candidates,
  mean_gradient,
  points_of,
  widened,
)
from ddi_jax.numerics.precision import accumulation_dtype, matmul

if TYPE_CHECKING:
  from jaxtyping import Array, Float, PyTree


@jax.tree_util.register_pytree_node_class
class RecomputedGradients:
  """A stand-in for K gradients, of which only a few exist at any time.

  Every direction accepts it in place of its updates.  It is a pytree of the parameters,
  the candidates, the labels and the inner products.

  With n gradients at a time and N = ceil(K / n), the inner products take about K (N +
  1) / 2 gradient computations, and the combination takes one for each positive weight.

  Attributes:
    inner: the inner products and their scale, see `gradients.gram.shifted_gram`.
  """

  def __init__(
    self,
    loss_fn: LossFn,
    has_aux: bool,
    arguments: tuple[chex.ArrayTree, Any, Any],
    inner: tuple[ShiftedGram, jax.Array],
  ) -> None:
    """Hold (params, points with leaves `[K, ...]`, labels) and the inner products."""
    self._loss_fn, self._has_aux = loss_fn, has_aux
    self._arguments = arguments
    self.inner = inner

  def combine(self, weights: jax.Array) -> chex.ArrayTree:
    """sum_k weights_k gradients_k; gradients of weight 0 are not computed."""
    params, points, labels = self._arguments

    def add(total: Any, pair: Any) -> tuple[chex.ArrayTree, None]:
      weight, point = pair

      def added() -> chex.ArrayTree:
        gradient, _ = mean_gradient(self._loss_fn, self._has_aux, params, point, labels)
        return jax.tree.map(lambda leaf, part: leaf + weight * part, total, gradient)

      return jax.lax.cond(weight != 0, added, lambda: total), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, accumulation_dtype()), params)
    return jax.lax.scan(add, zeros, (weights, points))[0]

  def descents(self, weights: jax.Array, combination: chex.ArrayTree) -> jax.Array:
    """Inner products <z, g_k>, z = `combine(weights)`, `[K]`, in units of `inner`.

    They are computed from the inner products of the gradients, because those with
    `combination` itself would cost K more gradients.
    """
    del combination
    return matmul(self.inner[0].matrix(), weights)

  def cast(self, direction: chex.ArrayTree) -> chex.ArrayTree:
    """The direction unchanged: there are no gradients whose dtypes it could take."""
    return direction

  def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arrays, and the static parts."""
    return (self._arguments, self.inner), (self._loss_fn, self._has_aux)

  @classmethod
  def tree_unflatten(
    cls, static: tuple[Any, ...], children: tuple[Any, ...]
  ) -> RecomputedGradients:
    """The inverse of `tree_flatten`."""
    return cls(*static, *children)


def recomputed_gradients(
  loss_fn: LossFn,
  params: PyTree,
  candidates: Float[Array, "K B ..."],
  labels: Any,
  *,
  at_a_time: int = 1,
  has_aux: bool = False,
  keys: jax.Array | None = None,
) -> tuple[RecomputedGradients, RestartInfo]:
  """Stand in for K gradients that would not fit into memory together.

  The function is like `ddi_jax.candidate_gradients`, but the gradients are computed
  when their inner products and their combination are needed, a few at a time.  Memory
  does not grow with K; a step takes about twice the time (docs/benchmarks.md).

  Args:
    loss_fn: (params, inputs `[B, ...]`, labels) -> losses `[B]`, or (losses, aux).
    params: pytree of floating-point arrays; lower precision is cast to float32.
    candidates: `[K, B, ...]`, K >= 1.
    labels: passed to `loss_fn`.
    at_a_time: number of gradients kept at once, n >= 1.
    has_aux: whether `loss_fn` returns (losses, aux).
    keys: for a random loss, see `ddi_jax.candidate_gradients`.

  Returns:
    (`RecomputedGradients`, `RestartInfo`).

  Raises:
    ValueError: if `at_a_time` is not an integer >= 1, the losses do not have shape
      `[B]`, or a parameter is not floating point.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> loss_fn = lambda params, x, y: (x @ params - y) ** 2
    >>> candidates, params = jnp.eye(2)[:, None], jnp.array([2.0, 1.0])  # K = 2, B = 1
    >>> gradients, info = ddi_jax.recomputed_gradients(
    ...     loss_fn, params, candidates, jnp.zeros(1))
    >>> direction = ddi_jax.danskin_direction(normalize=False)
    >>> [round(float(x), 4) for x in direction.update(gradients, None)[0]]
    [0.8, 1.6]
  """
  check_positive_int("at_a_time", at_a_time)
  check_candidates(candidates, labels)
  params = widened(params)

  def rows_of(point: Any) -> tuple[list[jax.Array], tuple[jax.Array, Any]]:
    gradient, aux = mean_gradient(loss_fn, has_aux, params, point, labels)
    return _as_rows(gradient), aux

  points = points_of(candidates, keys)
  inner, (losses, aux) = _inner_products(rows_of, points, at_a_time)
  gradients = RecomputedGradients(loss_fn, has_aux, (params, points, labels), inner)
  return gradients, RestartInfo(candidates, losses, aux)


def _inner_products(
  rows_of: Callable[[Any], tuple[list[jax.Array], Any]],
  points: tuple[jax.Array, ...],
  at_a_time: int,
) -> tuple[tuple[ShiftedGram, jax.Array], Any]:
  """((`ShiftedGram`, scale), all aux), a block of gradients against all others."""
  count = len(points[0])
  at_a_time = min(at_a_time, count)

  def at(index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], points)

  def block(carry: Any, start: jax.Array) -> Any:
    products, offsets, all_aux, reference, scale = carry
    first = start == 0
    # The last block may overlap the one before; it computes the same values again.
    start = jnp.minimum(start, count - at_a_time)
    indices = start + jnp.arange(at_a_time)
    kept, aux = jax.lax.map(rows_of, at(indices))
    kept = [rows.reshape(at_a_time, -1) for rows in kept]
    # Any gradient may be the reference of the differences; take the first.
    reference = [
      jnp.where(first, rows[:1], row) for rows, row in zip(kept, reference, strict=True)
    ]
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(row)) for row in reference]))
    scale = jnp.where(first, jnp.where(largest > 0, largest, 1), scale)
    all_aux = jax.tree.map(lambda a, b: a.at[indices].set(b), all_aux, aux)
    offsets = offsets.at[indices].set(_offsets(kept, reference, scale))
    within = _plain_and_shifted(kept, kept, reference, scale)
    products = products.at[:, indices[:, None], indices[None, :]].set(within)

    def against(index: Any, products: Any) -> jax.Array:
      rows, _ = rows_of(at(index))
      column = _plain_and_shifted(kept, rows, reference, scale)[:, :, 0]
      products = products.at[:, indices, index].set(column)
      return products.at[:, index, indices].set(column)

    products = jax.lax.fori_loop(start + at_a_time, count, against, products)
    return (products, offsets, all_aux, reference, scale), None

  rows_shapes, aux_shapes = jax.eval_shape(rows_of, at(0))
  carry = (
    jnp.zeros((2, count, count), accumulation_dtype()),
    jnp.zeros(count, accumulation_dtype()),
    jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), aux_shapes),
    [jnp.zeros(rows.shape, rows.dtype) for rows in rows_shapes],
    jnp.ones((), accumulation_dtype()),
  )
  starts = jnp.arange(0, count, at_a_time)
  carry, _ = jax.lax.scan(block, carry, starts)
  products, offsets, all_aux, reference, scale = carry
  plain, differences = products
  squared_norm = _plain_and_shifted(reference, reference, reference, scale)[0, 0, 0]
  near = jnp.max(jnp.diagonal(differences)) <= squared_norm / 4
  shifted = ShiftedGram(
    differences=jnp.where(near, differences, plain),
    offsets=jnp.where(near, offsets, 0),
    squared_norm=jnp.where(near, squared_norm, 0),
  )
  return (shifted, scale), all_aux


def _plain_and_shifted(
  first: list[jax.Array],
  second: list[jax.Array],
  reference: list[jax.Array],
  scale: jax.Array,
) -> jax.Array:
  """Inner products of rows, and of their differences from `reference`, `[2, n, m]`."""
  plain, shifted = [], []
  for a, b, r in zip(first, second, reference, strict=True):
    plain.append(matmul(a / scale, b.T / scale))
    shifted.append(matmul((a - r) / scale, (b - r).T / scale))
  return jnp.stack([sum(plain[1:], plain[0]), sum(shifted[1:], shifted[0])])


def _offsets(
  rows: list[jax.Array], reference: list[jax.Array], scale: jax.Array
) -> jax.Array:
  """<g - r, r>, `[n]`."""
  pairs = zip(rows, reference, strict=True)
  parts = [matmul((a - r) / scale, r[0] / scale) for a, r in pairs]
  return jnp.stack(parts).sum(axis=0)


def _as_rows(tree: chex.ArrayTree) -> list[jax.Array]:
  """Leaves `[*param]` as a list of `[1, size]`."""
  return [
    jnp.asarray(leaf, accumulation_dtype()).reshape(1, -1)
    for leaf in jax.tree.leaves(tree)
  ]
