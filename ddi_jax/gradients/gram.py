"""Inner products of K gradients over all parameters, and combinations of them."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import chex
import jax
from jax.experimental.layout import Layout, with_layout_constraint
import jax.numpy as jnp

from ddi_jax.numerics import platform
from ddi_jax.numerics.finite import square_root
from ddi_jax.numerics.precision import accumulation_dtype

if TYPE_CHECKING:
  from jaxtyping import Array, Float, PyTree


_FEW = 16  # At most so many gradients have operations of their own in a program.


class ShiftedGram(NamedTuple):
  """Inner products of K vectors g_k, relative to a reference vector r.

  An ordinary Gram matrix is differences + offsets 1' + 1 offsets' + squared_norm.  Its
  rounding hides the differences of nearly equal vectors.  With one of the vectors as
  the reference, the differences are kept: at a pairwise cosine of .99999, weights are
  accurate to 1e-5 instead of .02 (docs/min_norm.md).  With r = 0, `differences` is the
  Gram matrix itself.

  Attributes:
    differences: <g_i - r, g_j - r>, `[K, K]`.
    offsets: <g_k - r, r>, `[K]`.
    squared_norm: ||r||^2.
  """

  differences: Float[Array, "K K"]
  offsets: Float[Array, " K"]
  squared_norm: Float[Array, ""]

  def matrix(self) -> Float[Array, "K K"]:
    """The Gram matrix, `[K, K]`."""
    offsets = self.offsets
    return self.differences + offsets[:, None] + offsets[None, :] + self.squared_norm

  def squared_norms(self) -> Float[Array, " K"]:
    """||g_k||^2, `[K]`."""
    return jnp.diagonal(self.differences) + 2 * self.offsets + self.squared_norm


def gram_matrix(gradients: PyTree[Float[Array, "K ..."]]) -> Float[Array, "K K"]:
  """Compute the inner products of K gradients over all parameters.

  The products are accumulated in float32 at least (float64 with x64 enabled) at the
  highest matmul precision: tf32 or bfloat16 products would destroy the differences of
  nearly equal gradients.

  Args:
    gradients: pytree with leaves `[K, *param]`.

  Returns:
    The Gram matrix, `[K, K]`.  It overflows if a squared norm does.

  Raises:
    ValueError: if there is no leaf, if a leaf is not floating point or has no leading
      axis, or if the leading axes differ or are empty.

  Example:
    >>> import jax.numpy as jnp, ddi_jax
    >>> gradients = {"w": jnp.array([[1.0, 0.0], [1.0, 2.0]]), "b": jnp.arange(2.0)}
    >>> ddi_jax.gram_matrix(gradients)
    Array([[1., 1.],
           [1., 6.]], dtype=float32)
  """
  shifted, scale = shifted_gram(gradients)
  return shifted.matrix() * scale**2


def shifted_gram(gradients: chex.ArrayTree) -> tuple[ShiftedGram, jax.Array]:
  """(Inner products of gradients / scale, scale), where scale is the largest entry.

  Squared norms of gradients of 1e-20 or 1e+20 leave the range of float32; those of the
  scaled gradients do not.  The products are taken relative to the shortest gradient.
  If a gradient is further from it than half its norm, they are converted to products
  relative to the origin.  The shift has gained nothing then, and costs a small multiple
  of a product's rounding error, because no gradient is shorter.

  Leaves keep their shapes, so that if their coordinates are split over devices, only
  sums pass between the devices.

  Args:
    gradients: pytree with leaves `[K, *param]`.

  Returns:
    (inner products as in `gram_matrix`, scalar > 0).

  Raises:
    ValueError: see `gram_matrix`.
  """
  check_gradients(gradients)
  leaves = jax.tree.leaves(gradients)
  largest = [
    _of_each(lambda g: jnp.max(jnp.abs(g), initial=0), leaf) for leaf in leaves
  ]
  maximum = _wide(jnp.stack(largest)).max()
  scale = jnp.where(maximum > 0, maximum, 1)

  squares = [
    _of_each(lambda g: jnp.sum(jnp.square(_wide(g) / scale)), leaf) for leaf in leaves
  ]
  shortest = jnp.argmin(jnp.stack(squares).sum(axis=0))
  is_shortest = jnp.arange(len(leaves[0])) == shortest

  def products(leaf: jax.Array) -> jax.Array:
    reference = _wide(leaf[shortest])[None]
    shifted = _wide(leaf) - reference  # Exact, before the division.
    # The reference's own row would be zero.  It holds the reference instead, so that
    # one product of matrices also gives the offsets.
    own = is_shortest.reshape(-1, *(1,) * (leaf.ndim - 1))
    rows = jnp.where(own, reference, shifted) / scale
    return _inner(rows, rows)

  total = functools.reduce(jnp.add, map(products, leaves))
  inner = ShiftedGram(
    differences=jnp.where(is_shortest[:, None] | is_shortest[None, :], 0, total),
    offsets=jnp.where(is_shortest, 0, total[shortest]),
    squared_norm=total[shortest, shortest],
  )
  near = jnp.max(jnp.diagonal(inner.differences)) <= inner.squared_norm / 4
  zeros = jnp.zeros_like(inner.offsets)
  from_origin = ShiftedGram(inner.matrix(), zeros, zeros[0])
  return jax.tree.map(
    lambda shifted, plain: jnp.where(near, shifted, plain), inner, from_origin
  ), scale


def check_gradients(gradients: chex.ArrayTree) -> int:
  """K, the leading axis shared by all leaves.

  Raises:
    ValueError: see `gram_matrix`.
  """
  leaves = jax.tree_util.tree_leaves_with_path(gradients)
  if not leaves:
    raise ValueError("expected gradients with leaves [K, *param], got an empty tree.")
  sizes = {}
  for path, leaf in leaves:
    name = "gradient" + jax.tree_util.keystr(path)
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
      raise ValueError(f"{name} must be floating point, got {jnp.result_type(leaf)}.")
    if jnp.ndim(leaf) < 1:
      raise ValueError(
        f"{name} must have shape [K, *param] with one leading index per candidate "
        "(see ddi_jax.restart_gradients), got a scalar."
      )
    sizes[name] = jnp.shape(leaf)[0]
  if len(set(sizes.values())) > 1:
    listed = ", ".join(f"{name}: {size}" for name, size in sizes.items())
    raise ValueError(
      "all gradient leaves must have the same number K of candidates on their "
      f"leading axis (see ddi_jax.restart_gradients), got {listed}."
    )
  (num_candidates,) = set(sizes.values())
  if num_candidates == 0:
    raise ValueError("expected K >= 1 candidates on the leading axis, got K = 0.")
  return num_candidates


class KeptGradients:
  """K gradients in memory, with the operations that a direction needs.

  `ddi_jax.RecomputedGradients` offers the same operations without keeping the
  gradients.

  Attributes:
    inner: the inner products and their scale, see `shifted_gram`.
  """

  def __init__(
    self, gradients: chex.ArrayTree, params: chex.ArrayTree | None = None
  ) -> None:
    """Check the gradients and compute their inner products.

    Args:
      gradients: leaves `[K, *param]`.
      params: parameters with leaves `[*param]`, to check the shapes against, or None.

    Raises:
      ValueError: see `gram_matrix`; also if the shapes do not fit those of the
        parameters.
    """
    check_gradients(gradients)
    if params is not None:
      jax.tree_util.tree_map_with_path(_check_against_param, gradients, params)
    self._gradients = jax.tree.map(_one_after_another, gradients)
    self.inner = shifted_gram(self._gradients)

  def combine(self, weights: jax.Array) -> chex.ArrayTree:
    """sum_k weights_k gradients_k, leaves `[*param]`, float32 at least."""

    def combine_leaf(leaf: jax.Array) -> jax.Array:
      if _stand_alone(leaf):
        return sum(w * _wide(g) for w, g in zip(weights, leaf, strict=True))
      return jnp.tensordot(weights, _wide(leaf), 1, precision="highest")

    return jax.tree.map(combine_leaf, self._gradients)

  def descents(self, weights: jax.Array, combination: chex.ArrayTree) -> jax.Array:
    """Inner products <z, g_k>, z = `combine(weights)`, `[K]`, in units of `inner`.

    They are computed from the rounded z, and so show an inner product that is too small
    for the Gram matrix.
    """
    del weights
    _, scale = self.inner

    def product(leaf: jax.Array, part: jax.Array) -> jax.Array:
      if _stand_alone(leaf):
        return _of_each(lambda g: jnp.sum(_wide(g) / scale * (part / scale)), leaf)
      return _inner(_wide(leaf) / scale, part[None] / scale)[:, 0]

    products = jax.tree.map(product, self._gradients, combination)
    return jnp.stack(jax.tree.leaves(products)).sum(axis=0)

  def cast(self, direction: chex.ArrayTree) -> chex.ArrayTree:
    """Cast a direction to the dtypes of the gradients."""
    return jax.tree.map(
      lambda leaf, like: leaf.astype(like.dtype), direction, self._gradients
    )


def scaled_norm(tree: chex.ArrayTree, scale: jax.Array | float = 1.0) -> jax.Array:
  """The Euclidean norm of `tree / scale` over all leaves."""
  squares = [jnp.sum(jnp.square(leaf / scale)) for leaf in jax.tree.leaves(tree)]
  return square_root(jnp.stack(squares).sum())


def unit_norm(tree: chex.ArrayTree) -> chex.ArrayTree:
  """The tree divided by its Euclidean norm; zeros stay zeros."""
  largest = jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]).max()
  scale = jnp.where(largest > 0, largest, 1)
  divisor = scaled_norm(tree, scale) * scale
  divisor = jnp.where(largest > 0, divisor, 1)
  return jax.tree.map(lambda leaf: leaf / divisor, tree)


def pairwise_cosines(gram: jax.Array) -> jax.Array:
  """Cosines of the pairs i < j, `[K (K - 1) / 2]`; 0 where a gradient is zero.

  For K = 1 there is no pair, and the result is a single 1: a gradient agrees with
  itself.
  """
  if len(gram) == 1:
    return jnp.ones(1, gram.dtype)
  norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
  inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), norms)
  cosines = gram * inverse[:, None] * inverse[None, :]
  return cosines[jnp.triu_indices(len(gram), 1)]


def _inner(first: jax.Array, second: jax.Array) -> jax.Array:
  """`[N, *param]` and `[M, *param]` -> inner products `[N, M]`."""
  axes = tuple(range(1, first.ndim))
  return jnp.tensordot(first, second, (axes, axes), precision="highest")


def _one_after_another(gradients: jax.Array) -> jax.Array:
  """The same `[K, *param]`, on TPUs laid out in memory as K whole gradients.

  Otherwise, for a product of matrices, XLA would pad K to 16, the rows of a tile, and
  copy every gradient into that form as it is computed (docs/benchmarks.md).
  """
  if platform.target() != "tpu":
    return gradients
  order = Layout(tuple(range(jnp.ndim(gradients))))
  return with_layout_constraint(gradients, order)


def _stand_alone(gradients: jax.Array) -> bool:
  """Whether each of the K `[*param]` is best read as a separate array.

  XLA for TPUs then reads memory only once for results that depend on all K.
  """
  return platform.target() == "tpu" and len(gradients) <= _FEW


def _of_each(fn: Callable[[jax.Array], jax.Array], gradients: jax.Array) -> jax.Array:
  """Apply a function to each of the K gradients `[*param]`, and stack the results."""
  if _stand_alone(gradients):
    return jnp.stack([fn(gradient) for gradient in gradients])
  return jax.vmap(fn)(gradients)


def _wide(array: Any) -> jax.Array:
  return jnp.asarray(array, accumulation_dtype())


def _check_against_param(path: Any, gradient: jax.Array, param: jax.Array) -> None:
  if jnp.shape(gradient)[1:] != jnp.shape(param):
    raise ValueError(
      f"gradient{jax.tree_util.keystr(path)} must have shape [K, *param] with "
      f"param shape {jnp.shape(param)}, got {jnp.shape(gradient)}."
    )
