"""The memory of the source `warm`: the last perturbations of each training image.

This is ATTA (Zheng et al., 2020, "Efficient adversarial training with transferable
adversarial examples").  An attack that starts at these perturbations needs fewer steps.
A stored perturbation is cropped and mirrored in the same way as its image, and the
result is transformed back ("inverse data augmentation").
"""

import chex
import jax
import jax.numpy as jnp
import ml_collections

from ddi_jax.data import pad_crop_flip, undo_pad_crop_flip
from ddi_jax.training.settings.sources import WARM, entries, positions

_DTYPE = jnp.float16


def num_remembered(config: ml_collections.ConfigDict) -> int:
  """K of `warm:K` in `config.sources`, or 0 without this source."""
  return dict(entries(config)).get(WARM, 0)


def num_bytes(
  config: ml_collections.ConfigDict, num_images: int, image_shape: tuple[int, ...]
) -> int:
  """The size in bytes of the result of `create_memory`."""
  memory = jax.eval_shape(lambda: create_memory(config, num_images, image_shape))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(memory))


def create_memory(
  config: ml_collections.ConfigDict, num_images: int, image_shape: tuple[int, ...]
) -> chex.ArrayTree:
  """A memory of zeros, float16 `[N, K, H, W, C]`; () without the source `warm`."""
  count = num_remembered(config)
  return jnp.zeros((num_images, count, *image_shape), _DTYPE) if count else ()


def recall(
  config: ml_collections.ConfigDict,
  memory: chex.ArrayTree,
  indices: jax.Array | None,
  epoch: jax.Array,
  augment_key: jax.Array,
) -> jax.Array | None:
  """The stored perturbations of the augmented images, float32 `[K, B, H, W, C]`.

  They are cropped and mirrored like the images with the same key.  In every
  `config.warm.reset_epochs`-th epoch they are 0.

  Args:
    config: the run's config.
    memory: `[N, K, H, W, C]`.
    indices: the images' indices in the training set, `[B]`.
    epoch: number of the epoch.
    augment_key: key of the images' augmentation.

  Returns:
    The perturbations, or None if the config does not have the source warm.

  Raises:
    ValueError: if the config has this source, but the memory or the indices are
      missing.
  """
  if not num_remembered(config):
    return None
  if not jax.tree.leaves(memory):
    raise ValueError("the source warm needs state.memory from create_memory, got ().")
  recalled = _of_batch(config, memory, indices, epoch)

  def crop(one: jax.Array) -> jax.Array:
    return pad_crop_flip(augment_key, one, pad=config.data.pad, flip=config.data.flip)

  return jax.vmap(crop, in_axes=1)(recalled)


def remember(
  config: ml_collections.ConfigDict,
  memory: chex.ArrayTree,
  indices: jax.Array | None,
  epoch: jax.Array,
  augment_key: jax.Array,
  perturbations: jax.Array,
) -> chex.ArrayTree:
  """The memory after a step; pixels outside the crop keep their recalled values.

  Args:
    config: the run's config.
    memory: the memory before the step, `[N, K, H, W, C]`.
    indices: the images' indices in the training set, `[B]`.
    epoch: number of the epoch.
    augment_key: key of the images' augmentation.
    perturbations: all candidates minus the augmented images, `[K, B, H, W, C]`.
  """
  if not num_remembered(config):
    return memory
  new = perturbations[positions(config, WARM)]
  before = _of_batch(config, memory, indices, epoch)

  def put_back(one: jax.Array, before: jax.Array) -> jax.Array:
    return undo_pad_crop_flip(
      augment_key, one, before, pad=config.data.pad, flip=config.data.flip
    )

  kept = jax.vmap(put_back, in_axes=(0, 1), out_axes=1)(new, before)
  return memory.at[indices].set(kept.astype(memory.dtype))


def _of_batch(
  config: ml_collections.ConfigDict,
  memory: jax.Array,
  indices: jax.Array | None,
  epoch: jax.Array,
) -> jax.Array:
  """The stored perturbations of the images at `indices`, float32 `[B, K, H, W, C]`."""
  if indices is None:
    raise ValueError("the source warm needs the indices of the batch, got None.")
  recalled = memory[indices].astype(jnp.float32)
  if config.warm.reset_epochs is None:
    return recalled
  return jnp.where(epoch % config.warm.reset_epochs == 0, 0.0, recalled)
