"""The source `warm`: each training image remembers what the last epoch's attacks found.

ATTA, Zheng et al. (2020), "Efficient adversarial training with transferable adversarial
examples": an attack that starts there needs fewer steps.  A perturbation follows its
image through the random crop and mirroring, and back ("inverse data augmentation").
"""

import chex
import jax
import jax.numpy as jnp
import ml_collections

from ddi_jax.data import pad_crop_flip, undo_pad_crop_flip
from ddi_jax.training.sources import WARM, entries

_DTYPE = jnp.float16


def num_remembered(config: ml_collections.ConfigDict) -> int:
  """K of `warm:K` in `config.sources`, else 0."""
  return dict(entries(config)).get(WARM, 0)


def num_bytes(
  config: ml_collections.ConfigDict, num_images: int, image_shape: tuple[int, ...]
) -> int:
  """Of `create_moves`."""
  moves = jax.eval_shape(lambda: create_moves(config, num_images, image_shape))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(moves))


def create_moves(
  config: ml_collections.ConfigDict, num_images: int, image_shape: tuple[int, ...]
) -> chex.ArrayTree:
  """An empty memory, `[N, K, H, W, C]` of float16; () without the source."""
  count = num_remembered(config)
  return jnp.zeros((num_images, count, *image_shape), _DTYPE) if count else ()


def recall(
  config: ml_collections.ConfigDict,
  moves: chex.ArrayTree,
  indices: jax.Array | None,
  epoch: jax.Array,
) -> chex.ArrayTree:
  """What the images at `indices [B]` remember, float32 `[B, K, H, W, C]`; () of ().

  All 0 in an epoch that starts anew, which is every `config.warm.reset_epochs`-th.

  Raises:
    ValueError: if the config wants a memory, and it or the indices are missing.
  """
  if num_remembered(config) and not jax.tree.leaves(moves):
    raise ValueError("the source warm needs state.moves from create_moves, got ().")

  def of_batch(moves):
    if indices is None:
      raise ValueError("the source warm needs the indices of the batch, got None.")
    recalled = moves[indices].astype(jnp.float32)
    if config.warm.reset_epochs is None:
      return recalled
    return jnp.where(epoch % config.warm.reset_epochs == 0, 0.0, recalled)

  return jax.tree.map(of_batch, moves)


def augment(
  config: ml_collections.ConfigDict, key: jax.Array, recalled: chex.ArrayTree
) -> chex.ArrayTree:
  """What `recall` gives, cropped and mirrored as the images with the same key."""

  def crop(one):
    return pad_crop_flip(key, one, pad=config.data.pad, flip=config.data.flip)

  return jax.tree.map(jax.vmap(crop, in_axes=1, out_axes=1), recalled)


def remember(
  config: ml_collections.ConfigDict,
  moves: chex.ArrayTree,
  indices: jax.Array | None,
  key: jax.Array,
  recalled: chex.ArrayTree,
  found: chex.ArrayTree,
) -> chex.ArrayTree:
  """The memory after a step.

  Args:
    config: of the run.
    moves: the memory before.
    indices: `[B]`, of the images.
    key: of their augmentation.
    recalled: from `recall`, `[B, K, H, W, C]`; kept where the crop did not reach.
    found: the candidates' moves from the augmented images, `[B, K, H, W, C]`.
  """

  def put_back(one, before):
    return undo_pad_crop_flip(
      key, one, before, pad=config.data.pad, flip=config.data.flip
    )

  def replace(moves, recalled, found):
    kept = jax.vmap(put_back, in_axes=1, out_axes=1)(found, recalled)
    return moves.at[indices].set(kept.astype(moves.dtype))

  return jax.tree.map(replace, moves, recalled, found)
