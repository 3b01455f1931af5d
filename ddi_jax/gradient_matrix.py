"""K gradients as one K x d matrix that is never formed: checks, products, sums."""

import chex
import jax
import jax.numpy as jnp

from ddi_jax.precision import accumulation_dtype


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


def gram_matrix(gradients: chex.ArrayTree) -> jax.Array:
  """Inner products of K gradients over all parameters.

  Accumulated in float32 at least (float64 with x64 enabled) at the highest matmul
  precision: tf32 or bfloat16 products would destroy the differences of nearly equal
  gradients.

  Args:
    gradients: pytree with leaves `[K, *param]`.

  Returns:
    `[K, K]`.  Overflows where a squared norm does; `scaled_gram_matrix` does not.

  Raises:
    ValueError: see `check_gradients`.
  """
  gram, scale = scaled_gram_matrix(gradients)
  return gram * scale**2


def scaled_gram_matrix(gradients: chex.ArrayTree) -> tuple[jax.Array, jax.Array]:
  """(Gram matrix of gradients / scale, scale): scale is their largest entry.

  Squared norms of gradients of 1e-20 or 1e+20 leave the range of float32; those of the
  scaled gradients do not.

  Args:
    gradients: pytree with leaves `[K, *param]`.

  Returns:
    (`[K, K]`, scalar > 0).

  Raises:
    ValueError: see `check_gradients`.
  """
  num_candidates = check_gradients(gradients)
  leaves = [
    jnp.asarray(leaf, accumulation_dtype()).reshape(num_candidates, -1)
    for leaf in jax.tree.leaves(gradients)
  ]
  largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]).max()
  scale = jnp.where(largest > 0, largest, 1)
  gram = jnp.zeros((num_candidates, num_candidates), accumulation_dtype())
  for leaf in leaves:
    scaled = leaf / scale
    gram += jnp.matmul(scaled, scaled.T, precision="highest")
  return gram, scale


def combine(weights: jax.Array, gradients: chex.ArrayTree) -> chex.ArrayTree:
  """sum_k weights_k gradients_k: leaves `[K, *param]` -> `[*param]`, not cast back."""

  def combine_leaf(leaf):
    wide = jnp.asarray(leaf, accumulation_dtype())
    return jnp.tensordot(weights, wide, 1, precision="highest")

  return jax.tree.map(combine_leaf, gradients)


def scaled_products(
  gradients: chex.ArrayTree, vector: chex.ArrayTree, scale: jax.Array
) -> jax.Array:
  """Inner products `[K]` of gradients / scale with vector / scale."""

  def product(leaf, part):
    wide = jnp.asarray(leaf, accumulation_dtype()) / scale
    return jnp.tensordot(
      wide.reshape(len(wide), -1), part.ravel() / scale, 1, precision="highest"
    )

  return jnp.stack(jax.tree.leaves(jax.tree.map(product, gradients, vector))).sum(0)


def scaled_norm(tree: chex.ArrayTree, scale: jax.Array) -> jax.Array:
  """The Euclidean norm of `tree / scale` over all leaves."""
  squares = [jnp.sum(jnp.square(leaf / scale)) for leaf in jax.tree.leaves(tree)]
  return jnp.sqrt(jnp.stack(squares).sum())


def pairwise_cosines(gram: jax.Array) -> jax.Array:
  """Cosines of the pairs i < j, `[K (K - 1) / 2]`; 0 where a gradient is zero."""
  norms = jnp.sqrt(jnp.diagonal(gram))
  inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), norms)
  cosines = gram * inverse[:, None] * inverse[None, :]
  return cosines[jnp.triu_indices(len(gram), 1)]
