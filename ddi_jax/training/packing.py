"""A tree of parameters as an n x m matrix: one row for each of n devices."""

import math

import chex
import jax
import jax.numpy as jnp

from ddi_jax.precision import at_least_float32


def split_dimension(shape: tuple[int, ...], num_parts: int) -> int | None:
  """The longest dimension (of equals, the last) that `num_parts` divides, or None."""
  divisible = [i for i, size in enumerate(shape) if size and size % num_parts == 0]
  return max(divisible, key=lambda i: (shape[i], i), default=None)


class Packing:
  """Between trees like the parameters and matrices of n rows.

  Row i holds the i-th of n equal parts of every leaf, cut along `split_dimension`: of a
  leaf that is split over n devices in that way, device i has just what row i needs.  A
  leaf without such a dimension is cut as it lies in memory, padded with zeros.

  Attributes:
    num_rows: n.
    num_columns: m; n m is the number of parameters and of the padding.
  """

  def __init__(self, params: chex.ArrayTree, num_rows: int):
    """Of leaves `[*param]`, floating point."""
    self._params = params
    self._like = jax.tree.leaves(params)
    self.num_rows = num_rows
    self._widths = [-(-leaf.size // num_rows) for leaf in self._like]
    self.num_columns = sum(self._widths)

  def pack(self, tree: chex.ArrayTree) -> jax.Array:
    """Leaves `[K, *param]` -> `[K, n, m]`."""
    parts = [
      self._rows_of(leaf, like, width)
      for leaf, like, width in zip(
        jax.tree.leaves(tree), self._like, self._widths, strict=True
      )
    ]
    return jnp.concatenate(parts, axis=2)

  def unpack(self, rows: jax.Array) -> chex.ArrayTree:
    """`[n, m]` -> leaves `[*param]`, float32 at least."""
    leaves, start = [], 0
    for like, width in zip(self._like, self._widths, strict=True):
      leaf = self._leaf_of(rows[:, start : start + width], like.shape)
      leaves.append(leaf.astype(jax.eval_shape(at_least_float32, like).dtype))
      start += width
    return jax.tree.unflatten(jax.tree.structure(self._params), leaves)

  def _rows_of(self, leaf, like, width):
    count, dimension = len(leaf), split_dimension(like.shape, self.num_rows)
    if dimension is None:
      padding = self.num_rows * width - like.size
      flat = jnp.pad(leaf.reshape(count, like.size), ((0, 0), (0, padding)))
      return flat.reshape(count, self.num_rows, width)
    parts = leaf.reshape(count, *self._cut(like.shape, dimension))
    return jnp.moveaxis(parts, 1 + dimension, 1).reshape(count, self.num_rows, width)

  def _leaf_of(self, rows, shape):
    dimension = split_dimension(shape, self.num_rows)
    if dimension is None:
      return rows.ravel()[: math.prod(shape)].reshape(shape)
    cut = self._cut(shape, dimension)
    rest = cut[:dimension] + cut[dimension + 1 :]
    return jnp.moveaxis(rows.reshape(-1, *rest), 0, dimension).reshape(shape)

  def _cut(self, shape, dimension):
    part = shape[dimension] // self.num_rows
    return (*shape[:dimension], self.num_rows, part, *shape[dimension + 1 :])
