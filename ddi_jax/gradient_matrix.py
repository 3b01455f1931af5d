"""K gradients as one K x d matrix that is never formed: checks, products, sums."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from ddi_jax.precision import accumulation_dtype, matmul

AxisName = str | tuple[str, ...] | None


def check_gradients(gradients: chex.ArrayTree) -> int:
  """K, the leading axis shared by all leaves.

  Raises:
    ValueError: if there is no leaf, a leaf is not floating point, has no leading axis,
      or the leading axes differ or are empty.
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
      f"leading axis, got {listed}."
    )
  (num_candidates,) = set(sizes.values())
  if num_candidates == 0:
    raise ValueError("expected K >= 1 candidates on the leading axis, got K = 0.")
  return num_candidates


_BLOCK = 2**16  # Columns of the gradient matrix that are worked on together.


class ShiftedGram(NamedTuple):
  """Inner products of K vectors g_k, relative to a reference vector r.

  Nearly equal vectors lose their differences in the rounding of an ordinary Gram
  matrix, differences + products 1' + 1 products' + squared_norm; with one of them as
  the reference these are kept: at pairwise cosine .99999, weights right to 1e-5 instead
  of .02 (docs/min_norm.md).  With r = 0, `differences` is the Gram matrix itself.

  Attributes:
    differences: <g_i - r, g_j - r>, `[K, K]`.
    products: <g_k - r, r>, `[K]`.
    squared_norm: ||r||^2.
  """

  differences: jax.Array
  products: jax.Array
  squared_norm: jax.Array

  def gram(self) -> jax.Array:
    """The Gram matrix, `[K, K]`."""
    products = self.products
    return self.differences + products[:, None] + products[None, :] + self.squared_norm

  def squared_norms(self) -> jax.Array:
    """||g_k||^2, `[K]`."""
    return jnp.diagonal(self.differences) + 2 * self.products + self.squared_norm


def gram_matrix(gradients: chex.ArrayTree) -> jax.Array:
  """Inner products of K gradients over all parameters.

  Accumulated in float32 at least (float64 with x64 enabled) at the highest matmul
  precision: tf32 or bfloat16 products would destroy the differences of nearly equal
  gradients.

  Args:
    gradients: pytree with leaves `[K, *param]`.

  Returns:
    `[K, K]`.  Overflows where a squared norm does.

  Raises:
    ValueError: see `check_gradients`.
  """
  shifted, scale = shifted_gram(gradients)
  return shifted.gram() * scale**2


def shifted_gram(
  gradients: chex.ArrayTree, axis_name: AxisName = None
) -> tuple[ShiftedGram, jax.Array]:
  """(Inner products of gradients / scale, scale): scale is their largest entry.

  Squared norms of gradients of 1e-20 or 1e+20 leave the range of float32; those of the
  scaled gradients do not.  The reference is the shortest gradient where all lie within
  half its norm of it, and the origin otherwise: there a shift would only add rounding.

  Args:
    gradients: pytree with leaves `[K, *param]`.
    axis_name: inside `jax.shard_map`, the mesh axis (or axes) over which coordinates
      are split; what each device has of them is summed.  None: all are here.

  Returns:
    (inner products as in `gram_matrix`, scalar > 0).

  Raises:
    ValueError: see `check_gradients`.
  """
  num_candidates = check_gradients(gradients)
  leaves = [
    jnp.reshape(leaf, (num_candidates, -1)) for leaf in jax.tree.leaves(gradients)
  ]
  largest = jnp.stack([_wide(jnp.max(jnp.abs(leaf), initial=0)) for leaf in leaves])
  maximum = largest.max()
  if axis_name is not None:
    maximum = jax.lax.pmax(maximum, axis_name)
  scale = jnp.where(maximum > 0, maximum, 1)

  def squared_norms(leaves):
    squares = [jnp.sum(jnp.square(leaf / scale), 1) for leaf in leaves]
    return _total(jnp.stack(squares).sum(0), axis_name)

  squares = squared_norms([_wide(leaf) for leaf in leaves])
  shortest = jnp.argmin(squares)
  distances = squared_norms(
    [_wide(leaf) - _wide(leaf[shortest])[None, :] for leaf in leaves]
  )
  near = jnp.max(distances) <= squares[shortest] / 4

  def add(total, columns):
    columns = _wide(columns)
    reference = jnp.where(near, columns[shortest], 0)
    shifted = (columns - reference[None, :]) / scale  # Subtracted first: that is exact.
    reference = reference / scale
    return ShiftedGram(
      total.differences + matmul(shifted, shifted.T),
      total.products + matmul(shifted, reference),
      total.squared_norm + matmul(reference, reference),
    )

  total = ShiftedGram(
    differences=jnp.zeros((num_candidates, num_candidates), accumulation_dtype()),
    products=jnp.zeros(num_candidates, accumulation_dtype()),
    squared_norm=jnp.zeros((), accumulation_dtype()),
  )
  for leaf in leaves:
    # Block by block: the differences are not to be a second copy of the gradients.
    blocks, rest = divmod(leaf.shape[1], _BLOCK)

    def add_block(index, total, leaf=leaf):
      columns = jax.lax.dynamic_slice_in_dim(leaf, index * _BLOCK, _BLOCK, axis=1)
      return add(total, columns)

    if blocks:
      total = jax.lax.fori_loop(0, blocks, add_block, total)
    if rest:
      total = add(total, leaf[:, -rest:])
  return _total(total, axis_name), scale


def _total(shares: Any, axis_name: AxisName) -> Any:
  """The sum over all devices of what each has of the coordinates."""
  return shares if axis_name is None else jax.lax.psum(shares, axis_name)


def _wide(array):
  return jnp.asarray(array, accumulation_dtype())


class KeptGradients:
  """K gradients at hand: what a direction asks of them.

  `ddi_jax.RecomputedGradients` offers the same.  Any of the directions takes either for
  its updates.  Inside `jax.shard_map`, each device may have some coordinates of all K
  gradients: the direction that comes out is split in the same way, and nothing but
  inner products passes between the devices (docs/scaling.md).

  Attributes:
    inner: the inner products, and their scale, see `shifted_gram`.
    axis_name: the mesh axis (or axes) over which the coordinates are split, or None.
  """

  def __init__(
    self,
    gradients: chex.ArrayTree,
    params: chex.ArrayTree | None = None,
    axis_name: AxisName = None,
  ):
    """Checks the gradients and computes their inner products.

    Args:
      gradients: leaves `[K, *param]`; with `axis_name`, of this device's coordinates.
      params: leaves `[*param]`, to check against, or None.
      axis_name: see `shifted_gram`.

    Raises:
      ValueError: see `check_gradients`; also if shapes do not fit the parameters'.
    """
    self.axis_name = axis_name
    self.inner = shifted_gram(gradients, axis_name)
    if params is not None:
      jax.tree_util.tree_map_with_path(_check_against_param, gradients, params)
    self._gradients = gradients

  def combine(self, weights: jax.Array) -> chex.ArrayTree:
    """sum_k weights_k gradients_k, leaves `[*param]`, float32 at least."""

    def combine_leaf(leaf):
      return jnp.tensordot(weights, _wide(leaf), 1, precision="highest")

    return jax.tree.map(combine_leaf, self._gradients)

  def descents(self, weights: jax.Array, combination: chex.ArrayTree) -> jax.Array:
    """<z, g_k> of z = `combine(weights)`, `[K]`, in units of `inner`.

    Of z as it was rounded: an inner product too small for the Gram matrix is seen.
    """
    del weights
    _, scale = self.inner

    def product(leaf, part):
      wide = _wide(leaf) / scale
      return jnp.tensordot(
        wide.reshape(len(wide), -1), part.ravel() / scale, 1, precision="highest"
      )

    products = jax.tree.map(product, self._gradients, combination)
    return _total(jnp.stack(jax.tree.leaves(products)).sum(0), self.axis_name)

  def cast(self, direction: chex.ArrayTree) -> chex.ArrayTree:
    """To the gradients' own types."""
    return jax.tree.map(
      lambda leaf, like: leaf.astype(like.dtype), direction, self._gradients
    )


def _check_against_param(path, gradient, param):
  if jnp.shape(gradient)[1:] != jnp.shape(param):
    raise ValueError(
      f"gradient{jax.tree_util.keystr(path)} must have shape [K, *param] with "
      f"param shape {jnp.shape(param)}, got {jnp.shape(gradient)}."
    )


def scaled_norm(
  tree: chex.ArrayTree, scale: jax.Array, axis_name: AxisName = None
) -> jax.Array:
  """The Euclidean norm of `tree / scale` over all leaves, of all devices' shares."""
  squares = [jnp.sum(jnp.square(leaf / scale)) for leaf in jax.tree.leaves(tree)]
  return jnp.sqrt(_total(jnp.stack(squares).sum(), axis_name))


def pairwise_cosines(gram: jax.Array) -> jax.Array:
  """Cosines of the pairs i < j, `[K (K - 1) / 2]`; 0 where a gradient is zero.

  For K = 1, where there is no pair, `[1]`: a gradient agrees with itself.
  """
  if len(gram) == 1:
    return jnp.ones(1, gram.dtype)
  norms = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 0))
  inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), norms)
  cosines = gram * inverse[:, None] * inverse[None, :]
  return cosines[jnp.triu_indices(len(gram), 1)]
