"""K gradients that are not kept: computed again whenever they are needed."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from ddi_jax.gradient_matrix import ShiftedGram
from ddi_jax.precision import accumulation_dtype, matmul

GradientFn = Callable[[jax.Array], tuple[chex.ArrayTree, Any]]


class RecomputedGradients:
  """Stands for K gradients, of which only a few exist at any time.

  Any of the directions takes it for its updates, inside the `jax.jit` in which it was
  made (it is no pytree).  Made by `ddi_jax.candidate_gradients` with
  `gradients_at_a_time`.

  With n gradients at a time and N = ceil(K / n), inner products take about
  K (N + 1) / 2 gradient computations, the combination one for each positive weight.

  Attributes:
    inner: the inner products, and their scale, see `gradient_matrix.shifted_gram`.
    aux: the auxiliary outputs, leaves `[K, ...]`.
    axis_name: None: every device has all coordinates, see `ddi_jax.KeptGradients`.
  """

  axis_name = None

  def __init__(self, gradient: GradientFn, candidates: jax.Array, at_a_time: int):
    """Computes the inner products.

    Args:
      gradient: inputs `[B, ...]` -> (gradient, aux).
      candidates: `[K, B, ...]`.
      at_a_time: n >= 1.
    """
    self._gradient = gradient
    self._candidates = candidates
    self.inner, self.aux = self._inner_products(at_a_time)

  def combine(self, weights: jax.Array) -> chex.ArrayTree:
    """sum_k weights_k gradients_k; gradients of weight 0 are not computed."""

    def add(total, pair):
      weight, inputs = pair

      def added():
        gradient, _ = self._gradient(inputs)
        return jax.tree.map(lambda leaf, part: leaf + weight * part, total, gradient)

      return jax.lax.cond(weight != 0, added, lambda: total), None

    shapes, _ = jax.eval_shape(self._gradient, self._candidates[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, accumulation_dtype()), shapes)
    return jax.lax.scan(add, zeros, (weights, self._candidates))[0]

  def descents(self, weights: jax.Array, combination: chex.ArrayTree) -> jax.Array:
    """<z, g_k> of z = `combine(weights)`, `[K]`, in units of `inner`.

    From the inner products: of `combination` itself it would cost K gradients more.
    """
    del combination
    return matmul(self.inner[0].gram(), weights)

  def cast(self, direction: chex.ArrayTree) -> chex.ArrayTree:
    """As it is: there are no gradients whose types it could take."""
    return direction

  def _inner_products(self, at_a_time):
    count = len(self._candidates)
    at_a_time = min(at_a_time, count)

    def one(index):
      gradient, aux = self._gradient(self._candidates[index])
      return _as_rows(gradient), aux

    def inner(first, second, reference, scale):
      """(Plain, of the differences to the reference), `[2, n, m]`."""
      plain, differences = 0.0, 0.0
      for a, b, r in zip(first, second, reference, strict=True):
        plain += matmul(a / scale, b.T / scale)
        differences += matmul((a - r) / scale, (b - r).T / scale)
      return jnp.stack([plain, differences])

    def with_reference(rows, reference, scale):
      """<g - r, r>, `[n]`."""
      pairs = zip(rows, reference, strict=True)
      parts = [matmul((a - r) / scale, r[0] / scale) for a, r in pairs]
      return jnp.stack(parts).sum(axis=0)

    def block(carry, start):
      products, offsets, all_aux, reference, scale = carry
      first = start == 0
      # The last block may reach back over the one before: the same values again.
      start = jnp.minimum(start, count - at_a_time)
      indices = start + jnp.arange(at_a_time)
      kept, aux = jax.lax.map(one, indices)
      kept = [rows.reshape(at_a_time, -1) for rows in kept]
      # The differences that matter are those to some gradient: the first will do.
      reference = [
        jnp.where(first, rows[:1], row)
        for rows, row in zip(kept, reference, strict=True)
      ]
      largest = jnp.max(jnp.stack([jnp.max(jnp.abs(row)) for row in reference]))
      scale = jnp.where(first, jnp.where(largest > 0, largest, 1), scale)
      all_aux = jax.tree.map(lambda a, b: a.at[indices].set(b), all_aux, aux)
      offsets = offsets.at[indices].set(with_reference(kept, reference, scale))
      within = inner(kept, kept, reference, scale)
      products = products.at[:, indices[:, None], indices[None, :]].set(within)

      def against(index, products):
        column = inner(kept, one(index)[0], reference, scale)[:, :, 0]
        products = products.at[:, indices, index].set(column)
        return products.at[:, index, indices].set(column)

      products = jax.lax.fori_loop(start + at_a_time, count, against, products)
      return (products, offsets, all_aux, reference, scale), None

    rows_shapes, aux_shapes = jax.eval_shape(one, 0)
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
    squared_norm = inner(reference, reference, reference, scale)[0, 0, 0]
    near = jnp.max(jnp.diagonal(differences)) <= squared_norm / 4
    shifted = ShiftedGram(
      differences=jnp.where(near, differences, plain),
      products=jnp.where(near, offsets, 0),
      squared_norm=jnp.where(near, squared_norm, 0),
    )
    return (shifted, scale), all_aux


def _as_rows(tree):
  """Leaves `[*param]` as a list of `[1, size]`."""
  return [
    jnp.asarray(leaf, accumulation_dtype()).reshape(1, -1)
    for leaf in jax.tree.leaves(tree)
  ]
